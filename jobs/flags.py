"""Flags of `rlflow infer` and `rlflow chat` as the specs they are short for."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rlflow.errors import SpecError, UserError
from rlflow.jobs.adapters import check_hub, find_model, find_run
from rlflow.spec.rollout import GenerationSpec

if TYPE_CHECKING:
    from rlflow.jobs.chat import ChatOptions

_SECTIONS = {
    "name": "run.name",
    "runs": "run.dir",
    "dtype": "model.dtype",
    "hub": "model.hub",
    "data": "data.sources",
    "max_prompt_tokens": "data.max_prompt_tokens",
    "system": "data.system",
    "adapter": "adapter",
    "num_workers": "rollout.num_workers",
    "tensor_parallel_size": "rollout.tensor_parallel_size",
    "max_tokens": "rollout.max_completion_tokens",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "output": "infer.output",
    "num_samples": "infer.num_samples",
    "drop_truncated": "infer.drop_truncated",
    "drop_unbalanced_thinking": "infer.drop_unbalanced_thinking",
    "response_prefix": "infer.response_prefix",
}
"""Where the value of a flag stands in a spec."""
_FIELDS = {field: f"--{flag.replace('_', '-')}" for flag, field in _SECTIONS.items()}
_DOTTED = "|".join(sorted((re.escape(field) for field in _FIELDS if "." in field), key=len, reverse=True))
_FIELD = re.compile(rf"(?<![\w./-])(?:spec: )?({_DOTTED}|^adapter(?=:))\b(?:\[\d+\](?:\.\w+)?)?", re.MULTILINE)


def infer_document(model: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The spec, as plain data, of `rlflow infer MODEL` with these flags; one that is None or empty was not given."""
    runs = Path(flags["runs"])
    is_run = find_run(model, runs) is not None
    if not is_run:
        find_model(model, runs, check_hub(flags.get("hub") or "huggingface", "--hub"))
    document: dict[str, Any] = {
        "kind": "infer",
        "run": {"name": default_name(flags["output"])},
        "model": {"from_run" if is_run else "path": model, "dtype": stored_dtype(model, runs)},
    }
    for flag, place in _SECTIONS.items():
        if is_given(flags.get(flag)):
            _set(document, place.split("."), flags[flag])
    if flags.get("no_thinking"):
        document["data"]["chat_template_kwargs"] = {"enable_thinking": False}
    return document


@contextmanager
def in_flags() -> Iterator[None]:
    """Mistakes found inside name the flags of `rlflow infer` instead of the fields that they are short for."""
    try:
        yield
    except UserError as error:
        error.args = (_FIELD.sub(lambda match: _FIELDS[match[1]], str(error)),)
        raise


def default_name(output: str | None) -> str:
    """A run's name from its file of answers."""
    stem = Path(output).name.removesuffix(".jsonl") if output else "answers"
    return "infer_" + re.sub(r"[^A-Za-z0-9_.-]", "_", stem)


def stored_dtype(model: str, runs: Path) -> str:
    """float32 if the model's weights are stored so, else bfloat16."""
    run = find_run(model, runs)
    file = (run.path / "model" if run else Path(model).expanduser()) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return "float32" if config.get("dtype", config.get("torch_dtype")) == "float32" else "bfloat16"


def read_text(value: str | None) -> str | None:
    r"""Text of a flag: that of a .txt file, or the value with `\n` as a line break."""
    if value is None:
        return None
    if value.endswith(".txt") and Path(value).is_file():
        return Path(value).read_text(encoding="utf-8")
    return value.replace("\\n", "\n")


def is_given(value: Any) -> bool:
    """Whether a flag was given; zero is a value."""
    return value is not None and value is not False and value != []


def _set(document: dict[str, Any], place: Sequence[str], value: Any) -> None:
    for name in place[:-1]:
        document = document.setdefault(name, {})
    document[place[-1]] = list(value) if isinstance(value, list | tuple) else value


def refuse_flags(flags: Mapping[str, Any]) -> None:
    """Raises `SpecError` naming the flags that were given: a spec file says all."""
    given = [flag for flag, value in flags.items() if is_given(value) and (flag, value) != ("runs", "runs")]
    if given:
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise SpecError(f"{names}: a spec file says what to do; change it with KEY=VALUE, such as infer.num_samples=4")


def chat_options(flags: Mapping[str, Any]) -> "ChatOptions":
    """The options of `rlflow chat`. Raises `SpecError` naming the flag."""
    from rlflow.jobs.chat import ChatOptions

    fields = ("temperature", "top_p", "top_k", "repetition_penalty", "tensor_parallel_size", "gpu_memory_utilization")
    values = {name: flags[name] for name in fields} | {"max_completion_tokens": flags["max_tokens"], "max_num_seqs": 4}
    try:
        settings = GenerationSpec.model_validate(values)
    except ValidationError as error:
        items = [item for item in error.errors() if item["type"] != "literal_error"]  # auto is for specs: flags are numbers
        lines = [f"--{_flag_of(str(item['loc'][0]))}: {item['msg']}" for item in items]
        raise SpecError("\n".join(lines)) from None
    if flags["dtype"] not in (None, "bfloat16", "float16", "float32"):
        raise SpecError(f"--dtype: {flags['dtype']!r} is none of bfloat16, float16 and float32")
    return ChatOptions(
        model=flags["model"],
        hub=check_hub(flags["hub"], "--hub"),
        adapter=flags["adapter"],
        settings=settings,
        thinking=not flags["no_thinking"],
        response_prefix=read_text(flags["response_prefix"]) or "",
        system=read_text(flags["system"]),
        chat_template=flags["chat_template"],
        dtype=flags["dtype"],
        max_model_tokens=flags["max_model_tokens"],
        seed=flags["seed"],
        runs=flags["runs"],
    )


def _flag_of(field: str) -> str:
    return "max-tokens" if field == "max_completion_tokens" else field.replace("_", "-")
