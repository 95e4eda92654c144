"""What a run needs before any actor starts: its model's directory, tokenizer and tokenised rows."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlflow.actors.reward_samples import PromptRow
from rlflow.data.hugging_face_hub import retried, transport_errors
from rlflow.data.order import RowOrder, VisitOrder
from rlflow.data.raw_rows import RawRows, load_raw_rows
from rlflow.data.rows import Rows
from rlflow.data.stream import RowStream
from rlflow.data.streamed_conversations import StreamedConversations
from rlflow.data.thinking import opened_thinking
from rlflow.data.tokenized import PromptSet, tokenize_conversations, tokenize_prompts
from rlflow.data.tokenized_preferences import tokenize_labelled, tokenize_pairs
from rlflow.errors import DataError, SpecError
from rlflow.jobs.adapters import fetch_from_hub
from rlflow.jobs.earlier_runs import with_answers
from rlflow.loops.conversations import ConversationLengths
from rlflow.observe.run_dir import RunDirectory
from rlflow.spec.jobs import InferJob, Job, KtoJob, PreferenceJob, RolloutJob, SftJob
from rlflow.spec.model import ModelSpec, RandomModelSpec
from rlflow.spec.rollout import EngineSpec

EngineT = TypeVar("EngineT", bound=EngineSpec)


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that learner and engines can load."""

    path: str
    """Directory or hub id."""
    tokenizer_path: str
    """Directory of the tokenizer with the chat template that the job uses."""
    tokenizer: Any


def run_directory(job: Job) -> RunDirectory:
    """Where the job's run lies, or will."""
    return RunDirectory(Path(job.run.dir) / job.run.name)


def prepare_model(job: Job, run: RunDirectory) -> PreparedModel:
    """Find or create the model; write the job's tokenizer into the run directory. Raises `UserError`."""
    from rlflow.data.chat import load_tokenizer

    path = _create_random(job.model.random, job, run) if job.model.random else fetch_model(job.model, Path(job.run.dir))
    tokenizer = load_tokenizer(path, job.data, trust_remote_code=job.model.trust_remote_code)
    tokenizer_path = run.path / "tokenizer"
    tokenizer.save_pretrained(tokenizer_path)
    return PreparedModel(path, str(tokenizer_path), tokenizer)


def find_tokenizer(job: Job) -> Any:
    """The tokenizer that the job will use, before its model is written or loaded. Raises `UserError`."""
    from rlflow.data.characters import build_character_tokenizer
    from rlflow.data.chat import load_tokenizer, set_template

    random = job.model.random
    if random is None:
        path = fetch_model(job.model, Path(job.run.dir))
        return load_tokenizer(path, job.data, trust_remote_code=job.model.trust_remote_code)
    if random.characters is None:
        assert random.tokenizer is not None
        return load_tokenizer(_random_tokenizer(random.tokenizer), job.data)
    tokenizer = build_character_tokenizer(random.characters)
    set_template(tokenizer, "model.random", job.data)
    return tokenizer


def model_path(model: ModelSpec, runs: Path, field: str = "model") -> str:
    """Path or hub id of a model that exists already. Raises `SpecError` naming the field."""
    if model.from_run is None:
        assert model.path is not None
        return str(Path(model.path).absolute()) if Path(model.path).is_dir() else model.path
    newest = RunDirectory(runs / model.from_run).newest_model()
    if newest is None:
        raise SpecError(f"{field}.from_run: {model.from_run} has no model in {runs}; run that job first")
    return str(newest)


def fetch_model(model: ModelSpec, runs: Path, field: str = "model") -> str:
    """The same, as a path or id that all libraries load alike: a revision, or a model of ModelScope, is downloaded.

    Raises `SpecError` naming the field if there is no such model, or its hub cannot be reached.
    """
    path = model_path(model, runs, field)
    if model.hub == "huggingface" and model.revision is not None and not Path(path).is_dir():
        return _download_revision(path, model.revision, field)
    return fetch_from_hub(path, model.hub, f"{field}.path", revision=model.revision)


def _download_revision(path: str, revision: str, field: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return retried(lambda: snapshot_download(path, revision=revision))
    except (OSError, ValueError, *transport_errors()) as error:  # no such model or revision, or no connection
        reason = " ".join(str(error).split())
        raise SpecError(f"{field}.revision: cannot download {path} at {revision}: {reason}") from None


def engine_settings(settings: EngineT, model: ModelSpec) -> EngineT:
    """Settings of engines, with what the model needs of them."""
    if not model.trust_remote_code:
        return settings
    return settings.model_copy(update={"engine": {"trust_remote_code": True, **settings.engine}})


def check_vocabulary(path: str, tokenizer: Any, field: str) -> None:
    """Raises `SpecError` if the model at `path` has another vocabulary than the trained model's tokenizer."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(path).get_vocab()
    except (OSError, ValueError) as error:
        raise SpecError(f"{field}: {path} has no tokenizer to compare with model's: {' '.join(str(error).split())}") from None
    ours = tokenizer.get_vocab()
    if other != ours:
        different = sum(ours.get(token) != number for token, number in other.items())
        raise SpecError(
            f"{field}: {path} has another vocabulary than model ({len(other)} tokens, {different} of which differ; "
            f"model has {len(ours)}); use models of one family"
        )


def _create_random(spec: RandomModelSpec, job: Job, run: RunDirectory) -> str:
    """Write the random model once; a resumed run finds it there."""
    from transformers import AutoTokenizer

    from rlflow.data.characters import build_character_tokenizer
    from rlflow.learner.load_model import create_random_model

    directory = run.path / "initial_model"
    if not (directory / "config.json").is_file():
        characters = spec.characters
        if characters is None:
            assert spec.tokenizer is not None
            tokenizer = AutoTokenizer.from_pretrained(_random_tokenizer(spec.tokenizer))
        else:
            tokenizer = build_character_tokenizer(characters)
        with _quiet():
            create_random_model(spec, job.model.dtype, tokenizer, directory)
    return str(directory)


def _random_tokenizer(name: str) -> str:
    return fetch_from_hub(name, "huggingface", "model.random.tokenizer")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warning that DeepSpeed, which is imported when a model is saved, has found no GPU."""
    from transformers.utils import logging as transformers_logging

    had_bars, disabled = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        if had_bars:
            transformers_logging.enable_progress_bar()


def load_rows(job: Job, run: RunDirectory) -> tuple[Rows | RowStream, Rows]:
    """Training rows and held-out rows. Raises `DataError`."""
    from rlflow.data.sources import load_sources
    from rlflow.data.split import split_held_out
    from rlflow.data.stream import open_stream

    if job.data.streaming is not None:
        return open_stream(with_answers(job), shared_cache_dir(run), row_format(job))
    train, held_out = split_held_out(load_sources(with_answers(job), shared_cache_dir(run), row_format(job)), job.data)
    if len(train) == 0:
        raise DataError("data.held_out: no row is left to train on")
    return train, held_out


def load_questions(job: InferJob, run: RunDirectory) -> RawRows:
    """The rows that batch inference answers.

    Raises `DataError`; also if they are not those that the run began with, as rows are known by their place in them.
    """
    rows = load_raw_rows(with_answers(job), shared_cache_dir(run))
    began_with = run.read_rows()
    if began_with is not None:
        _check_same_rows(began_with, rows.digests(), run)
    return rows


def _check_same_rows(before: Mapping[str, str], now: Mapping[str, str], run: RunDirectory) -> None:
    states = {
        "is gone": before.keys() - now.keys(),
        "is new": now.keys() - before.keys(),
        "has changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    for state, names in states.items():
        if names:
            raise DataError(
                f"data.sources: {min(names)} {state} since {run.path} began, which knows its rows by their numbers; "
                "bring back what there was, or choose another run.name"
            )


def row_format(job: Job) -> Any:
    """What detects how the job's rows are read."""
    from rlflow.data.formats import detect_format, detect_training_format
    from rlflow.data.preferences import DetectLabelled, detect_preference_format

    if isinstance(job, KtoJob):
        return DetectLabelled(job.kto.unpair_rows)
    if isinstance(job, SftJob):
        return detect_training_format
    return detect_preference_format if isinstance(job, PreferenceJob) else detect_format


def cache_dir(run: RunDirectory) -> Path:
    """Where the run's own data lie: tokenised windows of a stream, stored references."""
    return run.path / "data"


def shared_cache_dir(run: RunDirectory) -> Path:
    """Where Arrow copies of sources and tokenised rows lie: beside the runs, which all use them; the run's own folder if another
    user has made that one.
    """
    shared = run.path.parent / ".cache"
    return cache_dir(run) if shared.exists() and not os.access(shared, os.W_OK) else shared


class PromptRows:
    """Prompts by number, as loops and rewards see them."""

    def __init__(self, prompts: PromptSet) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def prompt_ids(self, index: int) -> np.ndarray:
        """Token ids, int32 [p]."""
        return np.asarray(self._prompts[index].prompt_ids, dtype=np.int32)

    def row(self, index: int) -> PromptRow:
        """What rewards get of the row."""
        prompt = self._prompts[index]
        messages = [dict(message) for message in prompt.messages]
        return PromptRow(messages, prompt.text, prompt.columns, opened_thinking(prompt.text))


def prepare_rows(rows: Rows | RowStream, tokenizer: Any, job: Job, run: RunDirectory) -> Any:
    """Tokenise rows as the job's kind trains on them, or map what was tokenised before: prompts, conversations, pairs of them, or
    labelled ones. Raises `DataError` for the first bad row.
    """
    if isinstance(rows, RowStream) or not isinstance(job, RolloutJob | PreferenceJob):
        return prepare_conversations(rows, tokenizer, job, run)
    if isinstance(job, RolloutJob):
        return PromptRows(tokenize_prompts(rows, tokenizer, job.data, shared_cache_dir(run)))
    tokenize = tokenize_labelled if isinstance(job, KtoJob) else tokenize_pairs
    return tokenize(rows, tokenizer, job.data, shared_cache_dir(run))


def prepare_conversations(rows: Rows | RowStream, tokenizer: Any, job: Job, run: RunDirectory) -> Any:
    """Tokenise conversations, or map what an earlier start or run has tokenised; of a stream the first window.

    Raises `DataError` for the first bad row.
    """
    if isinstance(rows, RowStream):
        return StreamedConversations(rows, tokenizer, job.data, cache_dir(run))
    return tokenize_conversations(rows, tokenizer, job.data, shared_cache_dir(run))


def row_order(rows: Any, job: Job) -> VisitOrder:
    """The order in which prepared rows are visited: a stream has its own."""
    return rows if job.data.streaming is not None else RowOrder(len(rows), job.data.seed, job.data.shuffle)


def conversation_lengths(conversations: Any) -> ConversationLengths:
    """What a loop knows of them."""
    return ConversationLengths(conversations.lengths, conversations.loss_weight_sums)
