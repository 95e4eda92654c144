# make quickstart   create .venv, install the CPU stack, SFT warm start -> GRPO
# make test         the whole suite            make test-optional   tests that need bitsandbytes and modelscope, beside .venv
# make lint         ruff and pyright         make check   these and the fast tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPTIONAL := $(CURDIR)/build/optional

.PHONY: quickstart test test-optional lint check clean

quickstart: $(STAMP)
	$(BIN)/rlflow run jobs/specs/quickstart_sft.yaml jobs/specs/quickstart_grpo.yaml

test: $(STAMP)
	$(BIN)/python -m pytest tests

test-optional: $(OPTIONAL)/.installed
	PYTHONPATH=$(OPTIONAL) $(BIN)/python -m pytest tests/integration/test_quantised_base.py tests/unit/jobs/test_modelscope_push.py

$(OPTIONAL)/.installed: $(STAMP) deploy/requirements-optional.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OPTIONAL) -r deploy/requirements-optional.txt
	touch $@

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

check: lint
	$(BIN)/python -m pytest tests/unit -q

$(STAMP): deploy/requirements-cpu.txt deploy/requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r deploy/requirements-cpu.txt -r deploy/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
