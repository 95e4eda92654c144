"""`rlflow chat`: a conversation with a model in this process."""

import asyncio
import os
import tempfile
import warnings
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlflow.data.chat import load_tokenizer
from rlflow.data.questions import Question
from rlflow.data.text_stream import StreamedText
from rlflow.errors import EngineDied, RolloutError, UserError
from rlflow.jobs.adapters import find_adapter, find_model, merge_to
from rlflow.jobs.chat_commands import HELP, Command, read_command
from rlflow.jobs.chat_screen import Screen, describe_settings, open_screen, stdout_is_stderr
from rlflow.jobs.chat_session import ChatSession
from rlflow.jobs.flags import stored_dtype
from rlflow.rollout.completions import GroupRequest
from rlflow.rollout.engine import RolloutEngine
from rlflow.rollout.model_settings import with_model_settings
from rlflow.spec.data import DataSpec
from rlflow.spec.rollout import GenerationSpec
from rlflow.spec.sources import Hub

_LONGEST_CONTEXT = 8192
"""Tokens, where neither the model nor the user wants fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What the command line says."""

    model: str
    hub: Hub
    adapter: str | None
    settings: GenerationSpec
    thinking: bool
    response_prefix: str
    system: str | None
    chat_template: str | None
    dtype: str | None
    max_model_tokens: int | None
    seed: int
    runs: Path


def chat(options: ChatOptions) -> None:
    """Talk until `exit` or the end of input. Raises `UserError` before the engine starts."""
    screen = open_screen()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    data = _data_spec(options)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        with stdout_is_stderr():
            model = _model_path(options, stack)
            tokenizer = load_tokenizer(model, data)
            settings = with_model_settings(options.settings, model)
            room = _max_model_tokens(model, options.max_model_tokens)
            screen.note(f"starting {options.model} …")
            dtype = options.dtype or stored_dtype(model, options.runs)
            engine = runner.run(
                RolloutEngine.start(model, settings, dtype=dtype, max_model_tokens=room, seed=options.seed, load_weights=True)
            )
        stack.callback(lambda: runner.run(engine.close()))
        session = ChatSession(tokenizer, settings, data, response_prefix=options.response_prefix, max_model_tokens=room)
        screen.note(f"{describe_settings(settings)}  (help: commands)")
        Chat(session, screen, engine, tokenizer, runner).run()


class Chat:
    """The loop of reading and answering."""

    def __init__(
        self, session: ChatSession, screen: Screen, engine: RolloutEngine, tokenizer: Any, runner: asyncio.Runner
    ) -> None:
        self._session, self._screen, self._engine, self._tokenizer, self._runner = session, screen, engine, tokenizer, runner
        self._is_multi_line = False

    def run(self) -> None:
        """Until `exit` or the end of input. Ctrl-C at the prompt of a terminal begins a new line."""
        while True:
            try:
                line = self._read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._screen.is_interactive:
                    raise
                self._screen.end()
                continue
            command = read_command(line)
            if command is not None and command.name == "exit":
                return
            try:
                if command is not None:
                    self._obey(command)
                elif line.strip():
                    self._answer(line.strip())
            except EngineDied:
                raise
            except (UserError, RolloutError) as error:
                self._screen.note(str(error))

    def _read(self) -> str:
        """A line, or with multi-line the lines up to one that ends in #, or to the end of input; a command stands alone on the
        first of them.
        """
        lines = [self._screen.read("<<<[M] " if self._is_multi_line else "<<< ")]
        if not self._is_multi_line or read_command(lines[0]) is not None:
            return lines[0]
        with suppress(EOFError):
            while not lines[-1].rstrip().endswith("#"):
                lines.append(self._screen.read("... "))
        return "\n".join(lines).rstrip().removesuffix("#")

    def _obey(self, command: Command) -> None:
        session, note = self._session, self._screen.note
        if command.name == "help":
            note(HELP)
        elif command.name == "clear":
            session.clear()
            note("a new conversation")
        elif command.name in ("system", "reset-system"):
            self._system(command)
        elif command.name in ("multi-line", "single-line"):
            self._is_multi_line = command.name == "multi-line"
        elif command.name == "save":
            note(f"{session.save(command.argument)} conversations written to {command.argument}")
        elif command.name == "set":
            if command.argument:
                session.change(*command.argument.split())
            note(describe_settings(session.settings))

    def _system(self, command: Command) -> None:
        if command.name == "reset-system":
            self._session.reset_system()
        else:
            self._session.set_system(command.argument or None)
        self._screen.note(f"system prompt: {self._session.system or 'none'}")

    def _answer(self, text: str) -> None:
        question = self._session.ask(text)
        answer = self._runner.run(self._stream(question))
        self._session.answer(text, answer)

    async def _stream(self, question: Question) -> str:
        """Show the answer as it is sampled. Ctrl-C cancels this task, and the answer is what there is by then."""
        request, settings = self._request(question), self._session.settings
        text, reason = StreamedText(self._tokenizer), None
        self._screen.show(question.answer_start)
        try:
            async with aclosing(self._engine.stream(request)) as steps:
                async for token_ids, ended in steps:
                    reason = ended
                    self._screen.show(text.add(token_ids))
        except asyncio.CancelledError:
            reason = "abort"
        finally:
            self._screen.show(text.finish())
            self._screen.end()
        if reason == "abort":
            self._screen.note("(stopped)")
        if reason == "length":
            self._screen.note(f"(cut: max_tokens is {settings.max_completion_tokens}, or the context is full)")
        return question.answer_start + text.text

    def _request(self, question: Question) -> GroupRequest:
        settings = self._session.settings
        return GroupRequest(
            slot=0,
            prompt_id=0,
            prompt_ids=np.asarray(question.prompt_ids, dtype=np.int32),
            num_completions=1,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
            max_tokens=self._session.longest_answer(question),
        )


def _model_path(options: ChatOptions, stack: ExitStack) -> str:
    """The model; with adapters merged into it in a folder that goes with the chat."""
    model = find_model(options.model, options.runs, options.hub)
    if options.adapter is None:
        return model
    adapter = find_adapter(options.adapter, options.runs)
    merged = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlflow-chat-"))) / "model"
    merge_to(model, adapter, merged, options.dtype, None)
    return str(merged)


def _data_spec(options: ChatOptions) -> DataSpec:
    """How conversations are rendered; a chat has no sources, which a spec of a file must have."""
    kwargs = {} if options.thinking else {"enable_thinking": False}
    return DataSpec.model_construct(
        sources=(), system=options.system, chat_template=options.chat_template, chat_template_kwargs=kwargs
    )


def _max_model_tokens(model: str, wanted: int | None) -> int:
    """The context's length. Raises `UserError` if the model has fewer positions than are wanted."""
    from transformers import AutoConfig

    most = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None) or _LONGEST_CONTEXT
    if wanted is not None and wanted > most:
        raise UserError(f"--max-model-tokens: the model has {most} positions, fewer than {wanted}")
    return wanted or min(most, _LONGEST_CONTEXT)
