"""Models that think: whether they do, what of it is trained, and what stays of earlier turns."""

from rlflow.convert.draft import Draft
from rlflow.convert.flags import Flag, Settings, boolean, missing, part
from rlflow.convert.models import is_hybrid

OFF_IN_4 = "is off in ms-swift 4 for models that can think or not"
"""What `enable_thinking` is by default."""
_SAMPLING = ("infer", "grpo", "ppo", "gkd")
_TEMPLATE = "the chat template decides: Qwen3's own"
_EMPTY_BLOCK = f"{_TEMPLATE} begins the last answer, if it has no thinking, with an empty block"

THINKING: dict[str, Flag] = {
    "enable_thinking": part(boolean),
    "add_non_thinking_prefix": part(boolean, True),
    "disable_ignore_empty_think": part(boolean, False),
    "preserve_thinking": missing(
        f"{_TEMPLATE} drops thinking before the last question; data.chat_template takes another template, "
        "data.chat_template_kwargs what the template knows",
        boolean,
        (False,),
    ),
}
"""Flags of all commands that render conversations."""


def convert_thinking(settings: Settings, draft: Draft) -> None:
    """`data.chat_template_kwargs`; what an empty think block in rows to train on becomes is only noted."""
    if draft.kind in _SAMPLING:
        thinks = lets_think(settings, draft, settings["model"] or "", "data.chat_template_kwargs: {enable_thinking: false}")
    else:
        thinks = settings["enable_thinking"]
    if draft.kind not in ("infer", "grpo", "ppo"):
        _note_empty_blocks(settings, draft)
    if thinks is not None:
        draft.set("data.chat_template_kwargs", {"enable_thinking": thinks})


def lets_think(settings: Settings, draft: Draft, model: str, switch: str) -> bool | None:
    """Whether answers may begin with thinking; None: as the chat template has it. `switch`: what turns it off here."""
    given = settings["enable_thinking"]
    if settings["response_prefix"] is not None:
        if given is not None:
            draft.note("same", settings.written["enable_thinking"], "response_prefix decides how answers begin")
        return None
    if given is None and settings.version == "4" and is_hybrid(model):
        draft.note("changed", "enable_thinking", f"{OFF_IN_4}; written out ({switch})")
        return False
    return given


def adds_ignore_empty_think(settings: Settings) -> bool:
    """Whether version 4 gives empty think blocks no loss, without being asked to."""
    hybrid = settings.version == "4" and settings["loss_scale"] is None and is_hybrid(settings["model"] or "")
    return hybrid and not settings["disable_ignore_empty_think"]


def _note_empty_blocks(settings: Settings, draft: Draft) -> None:
    """Which answers to train on begin with an empty block, if they have no thinking: what they have by the template."""
    flag, given = "add_non_thinking_prefix", settings.gives("add_non_thinking_prefix")
    adds = settings[flag] and (given or settings.version == "4")
    base = (settings["loss_scale"] or ("default" if draft.kind == "sft" else "last_round")).partition("+")[0]
    what = settings.written.get(flag, flag)
    if adds and base == "last_round":
        if given:
            draft.note("same", what, _EMPTY_BLOCK)
    elif given or is_hybrid(settings["model"] or ""):
        kind = "no equivalent" if given and not adds else "changed"
        there = "ms-swift all that are trained" if adds else "data.chat_template: qwen3 begins none so, as ms-swift does"
        draft.note(kind, what, f"{_EMPTY_BLOCK}; {there}")
