"""Settings of preference learning: the losses of DPO and its relatives, KTO, and reward models."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlflow.spec.base import Spec


class _PairLossFields(Spec):
    weight: float = Field(default=1.0, gt=0)
    """Factor of this loss in the sum of all. 1.0 as in ms-swift and TRL."""


class SigmoidLossSpec(_PairLossFields):
    """DPO (Rafailov et al. 2023)."""

    type: Literal["sigmoid"] = "sigmoid"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference (ms-swift, TRL: 0.1)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round (cDPO)."""


class RobustLossSpec(_PairLossFields):
    """Robust DPO (Chowdhury et al. 2024): unbiased under flipped labels."""

    type: Literal["robust"] = "robust"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""


class HingeLossSpec(_PairLossFields):
    """A hinge on the difference of rewards (SLiC, RSO)."""

    type: Literal["hinge"] = "hinge"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Reciprocal of the margin."""


class IpoLossSpec(_PairLossFields):
    """IPO (Azar et al. 2023)."""

    type: Literal["ipo"] = "ipo"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """The difference of mean log-ratios is drawn to 1 / (2 beta)."""


class ApoZeroLossSpec(_PairLossFields):
    """APO-zero (D'Oosterlinck et al. 2024)."""

    type: Literal["apo_zero"] = "apo_zero"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""


class SftLossSpec(_PairLossFields):
    """Negative log-likelihood of the chosen answer, a mean over its tokens."""

    type: Literal["sft"] = "sft"
    """Kind of loss."""


class SimpoLossSpec(_PairLossFields):
    """SimPO (Meng et al. 2024), without reference."""

    type: Literal["simpo"] = "simpo"
    """Kind of loss."""
    beta: float = Field(default=2.0, gt=0)
    """Scale of mean log-probabilities (ms-swift: 2.0)."""
    gamma: float = Field(default=1.0, ge=0)
    """Target margin between the scaled means (ms-swift: 1.0)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""


class OrpoLossSpec(_PairLossFields):
    """ORPO (Hong et al. 2024), without reference: likelihood of the chosen answer and an odds ratio."""

    type: Literal["orpo"] = "orpo"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio (ms-swift, TRL: 0.1)."""


class CpoLossSpec(_PairLossFields):
    """CPO (Xu et al. 2024), without reference."""

    type: Literal["cpo"] = "cpo"
    """Kind of loss."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of log-probabilities (ms-swift, TRL: 0.1)."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood (ms-swift, TRL: 1.0)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""


class PluginLossSpec(_PairLossFields):
    """A loss written by the user: a function `(pairs, **options) -> losses [P]` of an importable module."""

    type: Literal["plugin"] = "plugin"
    """Kind of loss."""
    target: str
    """`package.module:function`; it gets `rlflow.algorithms.pairs.Pairs`."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of every call."""

    @field_validator("target")
    @classmethod
    def _names_a_function(cls, target: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise ValueError("must be package.module:function")
        return target


PairLossSpec = Annotated[
    SigmoidLossSpec
    | RobustLossSpec
    | HingeLossSpec
    | IpoLossSpec
    | ApoZeroLossSpec
    | SftLossSpec
    | SimpoLossSpec
    | OrpoLossSpec
    | CpoLossSpec
    | PluginLossSpec,
    Field(discriminator="type"),
]
_WITHOUT_REFERENCE = ("sft", "simpo", "orpo", "cpo")


class DpoSpec(Spec):
    """Direct preference optimisation and its relatives: what is minimised on pairs."""

    losses: tuple[PairLossSpec, ...] = Field(default=(SigmoidLossSpec(),), min_length=1)
    """Losses that are added up; the first one's rewards are logged."""
    rpo_alpha: float | None = Field(default=None, gt=0)
    """Adds so much of the chosen answer's negative log-likelihood (Pang et al. 2024): short for another loss of type sft."""
    reference: Literal["swapped", "stored"] = "swapped"
    """The reference scores every step with the starting weights (swapped in, or adapters off), or all rows once at the start,
    stored beside the tokenised data: faster after the first pass over the data, and no copy of the weights is kept."""

    @property
    def needs_reference(self) -> bool:
        """Whether any loss compares with the reference."""
        return any(loss.type not in _WITHOUT_REFERENCE for loss in self.losses)

    @model_validator(mode="after")
    def _reference_is_used(self) -> Self:
        if self.reference == "stored" and not self.needs_reference:
            raise ValueError("reference: none of the losses compares with a reference")
        return self


class KtoSpec(Spec):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024)."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference (ms-swift, TRL: 0.1)."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Factor of desirable answers' losses (ms-swift, TRL: 1.0)."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Factor of the other answers' losses (ms-swift, TRL: 1.0)."""
    unpair_rows: bool = False
    """Take rows that hold a chosen and a rejected answer apart, into a desirable and an undesirable one."""
    reference: Literal["swapped", "stored"] = "swapped"
    """As `dpo.reference`."""


class RewardModelSpec(Spec):
    """A reward model (Ouyang et al. 2022): a scalar head trained on pairs."""

    center_coefficient: float = Field(default=0.0, ge=0)
    """Weight of (chosen + rejected score)^2, which keeps scores around 0 (Eisenstein et al. 2023: 0.01)."""
