"""Reward functions and models of `swift rlhf`."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlflow.convert.draft import Draft
from rlflow.convert.flags import Settings
from rlflow.errors import UserError

_COSINE = {
    "cosine_min_len_value_wrong": "min_len_value_wrong",
    "cosine_max_len_value_wrong": "max_len_value_wrong",
    "cosine_min_len_value_correct": "min_len_value_correct",
    "cosine_max_len_value_correct": "max_len_value_correct",
    "cosine_max_len": "max_tokens",
}


def convert_rewards(settings: Settings, draft: Draft) -> None:
    """`rewards`, weighted in ms-swift's order: functions, then models."""
    rewards = [_reward(name, settings, draft) for name in settings["reward_funcs"]]
    rewards += list(_models(settings, draft))
    weights = settings["reward_weights"]
    if weights is not None and len(weights) != len(rewards):
        raise UserError(f"{settings.written['reward_weights']}: {len(weights)} weights for {len(rewards)} rewards")
    for reward, weight in zip(rewards, weights or [], strict=False):
        reward["weight"] = weight
    if any(reward["type"] == "accuracy" for reward in rewards):
        draft.note(
            "changed",
            "accuracy",
            "a row whose solution cannot be parsed has no reward and is left out of its group; ms-swift counts it as wrong (0)",
        )
    draft.set("rewards", rewards)


def _reward(name: str, settings: Settings, draft: Draft) -> dict[str, Any]:
    if name in ("accuracy", "format"):
        return {"type": name}
    if name == "cosine":
        return {"type": "cosine", **_given(settings, _COSINE)}
    if name == "repetition":
        return {
            "type": "repetition",
            **_given(settings, {"repetition_n_grams": "ngram", "repetition_max_penalty": "max_penalty"}),
        }
    if name == "soft_overlong":
        if settings["soft_cache_length"] is None:
            raise UserError("--soft_cache_length: missing; the reward soft_overlong needs it")
        return {"type": name, **_given(settings, {"soft_max_length": "max_tokens", "soft_cache_length": "cache_tokens"})}
    return _plugin(name, settings, draft)


def _given(settings: Settings, names: dict[str, str]) -> dict[str, Any]:
    return {field: settings[flag] for flag, field in names.items() if settings.gives(flag)}


def _plugin(name: str, settings: Settings, draft: Draft) -> dict[str, Any]:
    """A function of the user: the class that a plugin file registers under this name."""
    files = settings["external_plugins"] or []
    for file in files:
        if registered := _registered(Path(file)).get(name):
            draft.note(
                "changed", f"reward {name}", f"is {registered} of {file}, run in a process of its own; see docs/rewards.md"
            )
            return {"type": "plugin", "name": name, "target": f"{file}:{registered}"}
    if not files:
        raise UserError(f"--reward_funcs {name}: has no equivalent; give its file with --external_plugins, or write a plugin")
    draft.note(
        "warning", f"reward {name}", f"{files[0]} cannot be read here, or does not register it: check the name after the colon"
    )
    return {"type": "plugin", "name": name, "target": f"{files[0]}:{name}"}


def _registered(file: Path) -> dict[str, str]:
    """What a plugin file says as `orms['name'] = Class`; nothing if the file is not here."""
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=str(name)))], value=ast.Name(id=target)):
                found[name] = target
            case _:
                pass
    return found


def _models(settings: Settings, draft: Draft) -> Iterator[dict[str, Any]]:
    plugins = settings["reward_model_plugin"]
    if len(plugins) > len(settings["reward_model"]):
        raise UserError(f"{settings.written['reward_model_plugin']}: there are fewer reward models")
    for index, path in enumerate(settings["reward_model"]):
        plugin = plugins[index] if index < len(plugins) else "default"
        if plugin != "default":
            raise UserError(f"--reward_model_plugin {plugin}: has no equivalent; a generative judge is a reward of type judge")
        yield {"type": "model", "path": path}
