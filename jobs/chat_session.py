"""A chat's state: conversation, system prompt and settings, and how it turns into prompts and into rows to train on."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlflow.data.messages import Message
from rlflow.data.questions import Question, ask
from rlflow.errors import UserError
from rlflow.jobs.chat_commands import setting
from rlflow.observe.durable import write_json_lines
from rlflow.spec.data import DataSpec
from rlflow.spec.rollout import GenerationSpec


class ChatSession:
    """Messages are kept whole, thinking included; what the model reads of earlier turns is without it."""

    def __init__(
        self, tokenizer: Any, settings: GenerationSpec, data: DataSpec, *, response_prefix: str, max_model_tokens: int
    ) -> None:
        self._tokenizer, self._data, self._prefix, self._room = tokenizer, data, response_prefix, max_model_tokens
        self._first_system = data.system
        self.settings = settings
        self.system = data.system
        self.messages: list[Message] = []
        self._ended: list[list[Message]] = []
        self._saved: set[Path] = set()

    def ask(self, text: str) -> Question:
        """The prompt for a message; it is part of the conversation when `answer` is called.

        Raises `UserError` if it leaves no room for an answer.
        """
        spec = self._data.model_copy(update={"system": self.system})
        question = ask(self._tokenizer, [*self.messages, {"role": "user", "content": text}], spec, self._prefix)
        tokens = len(question.prompt_ids)
        if tokens >= self._room:
            raise UserError(
                f"the conversation has {tokens} tokens with this message, the context {self._room}: clear, or say less "
                "(--max-model-tokens makes it longer, if the model can)"
            )
        return question

    def longest_answer(self, question: Question) -> int:
        """Tokens: the setting, or what the context has left."""
        return min(self.settings.max_completion_tokens, self._room - len(question.prompt_ids))

    def answer(self, text: str, answer: str) -> None:
        """Add a turn."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Begin a new conversation."""
        if self.messages:
            self._ended.append(self._conversation())
        self.messages = []

    def set_system(self, text: str | None) -> None:
        """Another system prompt begins a new conversation."""
        self.clear()
        self.system = text

    def reset_system(self) -> None:
        """As the chat began."""
        self.set_system(self._first_system)

    def change(self, name: str, value: str) -> None:
        """Change a setting. Raises `UserError` if the value is none."""
        field = setting(name)
        try:
            self.settings = GenerationSpec.model_validate({**self.settings.model_dump(), field: value})
        except ValidationError as error:
            raise UserError(f"{name}: {error.errors()[0]['msg']}") from None

    def save(self, path: str) -> int:
        """Write every conversation of the chat as a row with `messages`; returns how many. Raises `UserError`."""
        rows = [*self._ended, *([self._conversation()] if self.messages else [])]
        file = Path(path).expanduser()
        if not rows:
            raise UserError("there is nothing to save yet")
        if file.suffix != ".jsonl":
            raise UserError(f"save: {path} does not end in .jsonl")
        if file.exists() and file not in self._saved:
            raise UserError(f"save: {path} exists; choose another name")
        try:
            write_json_lines(file, [{"messages": messages} for messages in rows])
        except OSError as error:
            raise UserError(f"save: {path}: {error.strerror}") from None
        self._saved.add(file)
        return len(rows)

    def _conversation(self) -> list[Message]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.messages]
