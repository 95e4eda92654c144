"""Models of the Hugging Face hub: found with one question, before libraries ask for each of their files.

huggingface_hub itself asks again after a failed connection, and for the head of a file after an HTTP 5xx too; without a network
that takes half a minute a file. What it asks once only (about a repository, or for a file's content after a 5xx) goes through
`retried`.
"""

import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from rlflow.errors import SpecError

T = TypeVar("T")
_TIMEOUT_S = 10.0
_PAUSES_S = (0.5, 1.0, 2.0)
_HICCUPS = (408, 429)
"""HTTP statuses below 500 that ask for another try."""
_MADE_BY = {"models/smollm2": "python deploy/smollm2_model.py models/smollm2"}
"""Directories that packaged specs name."""


def find_hub_model(name: str, field: str) -> str:
    """The id of a model that the hub has, or the directory of its cached copy where the hub cannot be reached.

    Raises:
        SpecError: it is neither on the hub nor in the cache, or no id at all; names `field`.
    """
    try:
        return _find(name)
    except _NotFoundError as error:
        raise SpecError(f"{field}: {error}") from None


def may_be_id(name: str) -> bool:
    """Whether the hub may have a model of this name: `org/name`, or a name alone."""
    return name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def cached_config(name: str, revision: str | None = None) -> Path | None:
    """The config.json of a model in the hub's cache, if it is there. Raises `HFValidationError`: the name is no id."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


class _NotFoundError(Exception):
    """A model cannot be had; the message says why."""


@cache
def _find(name: str) -> str:
    """Asked once a process, so that all parts of a job read the same."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    cached = None
    try:
        cached = cached_config(name)
        retried(lambda: HfApi().model_info(name, timeout=_TIMEOUT_S))
        return name
    except HFValidationError:
        raise _NotFoundError(f"{_no_directory(name)}, and it is no hub id{_hint(name)}") from None
    except (OfflineModeIsEnabled, HfHubHTTPError) as error:
        if cached is not None:
            return name  # which every library then reads from the cache
        reason = _reason(error)
    except transport_errors() as error:
        if cached is not None:
            return str(cached.parent)
        reason = _reason(error)
    raise _NotFoundError(f"{_no_directory(name)}, and {reason}{_hint(name)}")


def retried(ask: Callable[[], T]) -> T:
    """What `ask` returns. After a hiccup of the hub it is asked again, at most three times; timeouts have waited long enough."""
    for pause in _PAUSES_S:
        try:
            return ask()
        except Exception as error:
            if not _is_hiccup(error):
                raise
        time.sleep(pause)
    return ask()


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library below huggingface_hub: httpx up to its version 1, httpx2 from 2 on."""
    return _http_classes("HTTPError")


def _http_classes(name: str) -> tuple[type[Exception], ...]:
    return tuple(getattr(import_module(library), name) for library in ("httpx", "httpx2") if find_spec(library))


def _is_hiccup(error: BaseException) -> bool:
    """Whether it, or what caused it, is a failed connection or an HTTP status that may be gone at the next try."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in _HICCUPS
    if isinstance(error, _http_classes("TransportError")):
        return not isinstance(error, _http_classes("TimeoutException"))
    return error.__cause__ is not None and _is_hiccup(error.__cause__)


def _no_directory(name: str) -> str:
    return f"there is no directory {name} (looked in {Path(name).expanduser().absolute()})"


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return "the Hugging Face hub is switched off (HF_HUB_OFFLINE), and its cache has no such model"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hugging Face hub has no such model (or it is private: set HF_TOKEN)"
    line = " ".join(str(error).split()) or type(error).__name__
    refused = isinstance(error, HfHubHTTPError) and not _is_hiccup(error)
    return f"the Hugging Face hub {'refuses to say more' if refused else 'cannot be reached'}: {line}"


def _hint(name: str) -> str:
    command = _MADE_BY.get(name.removesuffix("/"))
    return f"; make it: {command}" if command else ""
