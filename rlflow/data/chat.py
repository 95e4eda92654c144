"""Chat templates: which one a job uses, and messages rendered with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.data.messages import Message
from rlflow.errors import DataError
from rlflow.spec.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATES = Path(__file__).parent / "templates"
_OWN_KEYS = ("loss", "loss_scale", "tools")


def load_tokenizer(path: str, spec: DataSpec | None = None, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory or hub id, with the chat template that `data.chat_template` names.

    Raises:
        DataError: it cannot be loaded, gives no character offsets, or there is no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"model: cannot load the tokenizer of {path}: {reason}") from None
    if not tokenizer.is_fast:
        raise DataError(f"model: the tokenizer of {path} has no fast version, so loss cannot be mapped to its tokens")
    set_template(tokenizer, path, spec)
    return tokenizer


def set_template(tokenizer: "PreTrainedTokenizerBase", path: str, spec: DataSpec | None) -> None:
    """Give the tokenizer the template of `data.chat_template`. Raises `DataError` if it then has none."""
    if spec is not None and spec.chat_template is not None:
        tokenizer.chat_template = read_template(spec.chat_template)
    if not tokenizer.chat_template:
        names = " or ".join(repr(name) for name in list_templates())
        raise DataError(
            f"model: the tokenizer of {path} has no chat template; set data.chat_template to {names} or to a .jinja file"
        )


def list_templates() -> list[str]:
    """Names of the packaged chat templates."""
    return sorted(file.stem for file in _TEMPLATES.glob("*.jinja"))


def read_template(name: str) -> str:
    """The text of a packaged template, or of a .jinja file."""
    file = _TEMPLATES / f"{name}.jinja" if name in list_templates() else Path(name).expanduser()
    if not file.is_file():
        raise DataError(f"data.chat_template: {name} is neither a file nor one of {', '.join(list_templates())}")
    return file.read_text(encoding="utf-8")


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec, *, for_generation: bool) -> str:
    """The text of a conversation, ending in the header of an assistant turn if it is for generation.

    Raises:
        DataError: the template refuses the messages, or knows no tools and there are some.
    """
    from jinja2 import TemplateError

    plain = [{key: value for key, value in message.items() if key not in _OWN_KEYS} for message in messages]
    tools = next((message["tools"] for message in messages if message.get("tools")), None)
    _check_knows_tools(tokenizer, tools, messages)
    try:
        text = tokenizer.apply_chat_template(
            plain, tools=tools, tokenize=False, add_generation_prompt=for_generation, **spec.chat_template_kwargs
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses it: {error}") from None
    assert isinstance(text, str)
    return text


def _check_knows_tools(tokenizer: "PreTrainedTokenizerBase", tools: Any, messages: Sequence[Message]) -> None:
    """A template that does not name them would leave them out without a word."""
    calls = any(message.get("tool_calls") for message in messages)
    for name, given in (("tools", tools), ("tool_calls", calls)):
        if given and name not in str(tokenizer.chat_template):
            raise DataError(f"it has {name}, which the chat template does not write; set data.chat_template to one that does")


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], spec: DataSpec) -> tuple[str, list[int]]:
    """Text and token ids [T] of a prompt: the conversation without its last answer, and an assistant header.

    Raises:
        DataError: the template refuses the messages.
    """
    text = render(tokenizer, prompt_messages(messages, spec), spec, for_generation=True)
    return text, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def prompt_messages(messages: Sequence[Message], spec: DataSpec) -> list[Message]:
    """The messages a rollout starts from: with the spec's system prompt, without trailing assistant turns."""
    kept = add_system(messages, spec)
    while kept[-1]["role"] == "assistant":
        kept.pop()
    return kept


def add_system(messages: Sequence[Message], spec: DataSpec) -> list[Message]:
    """The messages, after the spec's system prompt if they have none of their own."""
    if spec.system is None or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": spec.system}, *messages]
