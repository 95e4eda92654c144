"""Token sequences on disk: one Arrow file per data, tokenizer and settings, written once, memory-mapped."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = 3
_SOURCE_ROWS = b"source_rows"


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


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], source_rows: int) -> None:
    """Write the batches; the file gets its name when it is whole. `source_rows`: rows before dropping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    metadata = {_SOURCE_ROWS: str(source_rows).encode()}
    try:
        with (
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, schema, metadata=metadata) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def map_arrow(path: Path) -> tuple[pa.Table, int]:
    """The memory-mapped table of a file, and the number of rows before dropping."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    assert reader.metadata is not None
    return reader.read_all(), int(reader.metadata[_SOURCE_ROWS])
