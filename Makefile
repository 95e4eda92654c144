# make quickstart   create .venv, install the CPU stack, SFT warm start -> GRPO
# make test         the whole suite
# make lint         ruff and pyright         make check   these and the fast tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test lint check clean

quickstart: $(STAMP)
	$(BIN)/rlflow run jobs/specs/quickstart_sft.yaml jobs/specs/quickstart_grpo.yaml

test: $(STAMP)
	$(BIN)/python -m pytest tests

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
