"""Token sequences on disk: one Arrow file per data, tokenizer and settings, written once, memory-mapped."""

import hashlib
import json
import uuid
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = 3
_SOURCE_ROWS = b"source_rows"
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
"""Those that render and tokenise."""


def fingerprint(rows_fingerprint: str, tokenizer: "PreTrainedTokenizerBase", settings: dict[str, Any]) -> str:
    """Digest of everything that decides the token sequences: rows, tokenizer, chat template and settings."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    # State that earlier calls leave behind; it decides nothing here.
    del backend["truncation"], backend["padding"]
    decides = [
        _VERSION,
        rows_fingerprint,
        backend,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        settings,
    ]
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def shared_name(kind: str, rows_fingerprint: str, tokenizer: "PreTrainedTokenizerBase", settings: dict[str, Any]) -> str:
    """Name of a file that any run may use: it also changes with the code and the libraries that make token sequences."""
    made_by = {
        "code": _code_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "tokenizer": [type(tokenizer).__qualname__, getattr(tokenizer, "split_special_tokens", False)],
    }
    return f"{kind}-{fingerprint(rows_fingerprint, tokenizer, {'settings': settings, 'made_by': made_by})}.arrow"


@cache
def _code_digest() -> str:
    """Of the modules beside this one."""
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def write_arrow(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], source_rows: int, *, is_shared: bool = False
) -> None:
    """Write the batches; the file gets its name when it is whole.

    `source_rows`: rows before dropping. `is_shared`: what has this name is the same wherever it comes from; a file that another
    process has written meanwhile is left alone, as processes of other nodes may have mapped it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    metadata = {_SOURCE_ROWS: str(source_rows).encode()}
    try:
        with (
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, schema, metadata=metadata) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
        if not (is_shared and path.exists()):
            unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def map_arrow(path: Path) -> tuple[pa.Table, int]:
    """The memory-mapped table of a file, and the number of rows before dropping."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    assert reader.metadata is not None
    return reader.read_all(), int(reader.metadata[_SOURCE_ROWS])
