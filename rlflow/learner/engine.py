"""A rank's DeepSpeed engine around its model."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import nn

from rlflow.learner.load_model import load_causal_lm, load_value_model
from rlflow.learner.policy_model import trainable_parameters
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec

Role = Literal["policy", "value", "teacher"]
"""A causal language model; one with a scalar head, a critic or a reward model; or a frozen one, without optimiser."""


def build_model(
    role: Role, wrap: Callable[[Any], nn.Module], model_path: str, model: ModelSpec, spec: LearnerSpec, config: dict[str, Any]
) -> Any:
    """The role's model, loaded and wrapped; its parameters are partitioned at stage 3."""
    load = load_value_model if role == "value" else load_causal_lm
    if spec.zero_stage != 3:
        return wrap(load(model_path, model, spec))
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(config)  # transformers partitions weights while loading as long as this object lives
    loaded = load(model_path, model, spec)
    loaded.rlflow_deepspeed_config = keep_alive
    return wrap(loaded)


def initialize_frozen(model: nn.Module, config: dict[str, Any], spec: LearnerSpec, device: torch.device) -> Any:
    """Without optimiser there is an engine only to gather partitioned parameters."""
    if spec.zero_stage != 3:
        for parameter in model.parameters():  # a copy, because memory mapped from a file cannot be given back
            parameter.data = parameter.data.to(device, copy=True)
        return model.to(device)
    import deepspeed

    _gather_whole_layers(model)
    unneeded = ("optimizer", "gradient_clipping", "managed_gradient_accumulation", "zero_allow_untested_optimizer", "data_types")
    engine, *_ = deepspeed.initialize(model=model, config={k: v for k, v in config.items() if k not in unneeded})
    return engine


def initialize(model: nn.Module, config: dict[str, Any], spec: LearnerSpec) -> Any:
    """The engine that trains it."""
    import deepspeed

    if spec.zero_stage == 3:
        _gather_whole_layers(model)
    groups = trainable_parameters(model, spec.optimizer.weight_decay)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=cast(Any, groups), config=config)
    return engine


def _gather_whole_layers(model: Any) -> None:
    """Let ZeRO-3 fetch and free a decoder layer at a time: its hooks around every linear layer and norm take longer than they
    save, and a mixture of experts must not gather experts one by one.
    """
    from deepspeed.utils import set_z3_leaf_modules

    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    classes = {type(module) for module in model.modules() if type(module).__name__ in names}
    if classes:
        set_z3_leaf_modules(model, list(classes))


class GradientClipper:
    """Clips at stage 0, where DeepSpeed would, but keep the norm to itself. Gradients are averaged over ranks by then."""

    def __init__(self, model: nn.Module, optimizer: Any, max_norm: float) -> None:
        self._model, self._max_norm = model, max_norm
        self.norm = torch.tensor(float("nan"))
        optimizer.register_step_pre_hook(self._clip)

    def _clip(self, *_: Any) -> None:
        self.norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
