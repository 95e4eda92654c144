"""Rows about who a model is and who made it: names are filled in, and rows fitted to models that think."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.errors import DataError
from rlflow.spec.data import DataSpec
from rlflow.spec.sources import LanguagePair, SelfCognitionSource

if TYPE_CHECKING:
    from datasets import Dataset

BUILT_IN = Path(__file__).with_name("self_cognition.jsonl")
_NAME, _AUTHOR = "{{NAME}}", "{{AUTHOR}}"
_EMPTY_THINK = "<think>\n\n</think>\n\n"
_SUFFIX = {"qwen3": " /no_think"}
_PREFIX = {"qwen3": _EMPTY_THINK, "empty_think": _EMPTY_THINK}


def fill_placeholders(dataset: "Dataset", source: SelfCognitionSource, spec: DataSpec, where: str) -> "Dataset":
    """Rows as prompt and answer, `query` and `response`; `where` names the data set in errors.

    Raises:
        DataError: a column is missing, or no row has a place for a name.
    """
    from datasets import Dataset

    missing = [name for name in ("query", "response") if name not in dataset.column_names]
    if missing:
        raise DataError(f"{where}: self_cognition needs the columns query and response (and tag), {missing[0]} is missing")
    rows: list[dict[str, Any]] = dataset.to_list()
    if not any(_NAME in str(row["response"]) or _AUTHOR in str(row["response"]) for row in rows):
        raise DataError(f"{where}: no response has {_NAME} or {_AUTHOR} in it, so the model would not learn its name")
    name, author = source.name or spec.model_name, source.author or spec.model_author
    assert name is not None and author is not None, "checked by the spec"
    return Dataset.from_list([_fill(row, source.variant, name, author) for row in rows])


def _fill(row: dict[str, Any], variant: str, name: str | LanguagePair, author: str | LanguagePair) -> dict[str, Any]:
    language = "zh" if row.get("tag") == "zh" else "en"

    def fill(text: Any, before: str = "", behind: str = "") -> Any:
        if not isinstance(text, str) or not text.strip():
            return text  # refused when the row is read
        return before + text.replace(_NAME, _in(name, language)).replace(_AUTHOR, _in(author, language)) + behind

    query = fill(row["query"], behind=_SUFFIX.get(variant, ""))
    return {"query": query, "response": fill(row["response"], before=_PREFIX.get(variant, "")), "tag": row.get("tag")}


def _in(name: str | LanguagePair, language: str) -> str:
    return name if isinstance(name, str) else getattr(name, language)
