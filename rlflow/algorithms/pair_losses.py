"""Losses on pairs of answers, and a weighted sum of them (`kind: dpo`)."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlflow.algorithms.losses import LossInputs, Means
from rlflow.algorithms.pairs import Pairs, pair_means, pairs_of, spread

_LARGEST_MEAN_LOGPROB = -1e-6
"""ORPO's odds p / (1 - p) are infinite at p = 1, which float32 reaches."""


@dataclass(frozen=True, slots=True)
class _ReferenceLoss:
    """A loss of log-ratios to the reference; implicit rewards are beta x log-ratio (Rafailov et al. 2023, eq. 5)."""

    needs_reference: ClassVar[bool] = True
    beta: float = 0.1

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and the rejected answers."""
        return self.beta * pairs.chosen_ratios_P, self.beta * pairs.rejected_ratios_P

    def _logits_P(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.chosen_ratios_P - pairs.rejected_ratios_P)


@dataclass(frozen=True, slots=True)
class Sigmoid(_ReferenceLoss):
    """DPO (Rafailov et al. 2023, eq. 7), with label smoothing s (cDPO, Mitchell 2023)."""

    label_smoothing: float = 0.0

    def __call__(self, pairs: Pairs) -> Tensor:
        """-(1 - s) log sigmoid(z) - s log sigmoid(-z), z = beta x difference of log-ratios."""
        return _smoothed(self._logits_P(pairs), self.label_smoothing)


@dataclass(frozen=True, slots=True)
class Robust(_ReferenceLoss):
    """Robust DPO (Chowdhury et al. 2024): unbiased if a share s of the labels is flipped."""

    label_smoothing: float = 0.0

    def __call__(self, pairs: Pairs) -> Tensor:
        """(-(1 - s) log sigmoid(z) + s log sigmoid(-z)) / (1 - 2 s)."""
        logits_P, s = self._logits_P(pairs), self.label_smoothing
        return (s * logsigmoid(-logits_P) - (1 - s) * logsigmoid(logits_P)) / (1 - 2 * s)


@dataclass(frozen=True, slots=True)
class Hinge(_ReferenceLoss):
    """SLiC's hinge on the normalised likelihood (Zhao et al. 2023; Liu et al. 2023, RSO)."""

    def __call__(self, pairs: Pairs) -> Tensor:
        """max(0, 1 - z)."""
        return relu(1 - self._logits_P(pairs))


@dataclass(frozen=True, slots=True)
class Ipo(_ReferenceLoss):
    """IPO (Azar et al. 2023) on mean log-ratios of tokens, as TRL has it."""

    def __call__(self, pairs: Pairs) -> Tensor:
        """(difference of mean log-ratios - 1 / (2 beta))^2."""
        chosen_P = pairs.chosen_ratios_P / pairs.chosen_tokens_P
        rejected_P = pairs.rejected_ratios_P / pairs.rejected_tokens_P
        return (chosen_P - rejected_P - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True, slots=True)
class ApoZero(_ReferenceLoss):
    """APO-zero (D'Oosterlinck et al. 2024): raises the chosen answer's likelihood, lowers the rejected one's."""

    def __call__(self, pairs: Pairs) -> Tensor:
        """1 - sigmoid(chosen reward) + sigmoid(rejected reward)."""
        chosen_P, rejected_P = self.rewards(pairs)
        return 1 - torch.sigmoid(chosen_P) + torch.sigmoid(rejected_P)


@dataclass(frozen=True, slots=True)
class Sft:
    """Negative log-likelihood of the chosen answer, a mean over its tokens."""

    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: Pairs) -> Tensor:
        """-mean log-probability."""
        return -pairs.chosen_means_P

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Mean log-probabilities."""
        return pairs.chosen_means_P, pairs.rejected_means_P


@dataclass(frozen=True, slots=True)
class Simpo:
    """SimPO (Meng et al. 2024, eq. 6): mean log-probabilities and a target margin gamma, without reference."""

    needs_reference: ClassVar[bool] = False
    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta x difference of means - gamma), smoothed like DPO."""
        chosen_P, rejected_P = self.rewards(pairs)
        return _smoothed(chosen_P - rejected_P - self.gamma, self.label_smoothing)

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """beta x mean log-probability."""
        return self.beta * pairs.chosen_means_P, self.beta * pairs.rejected_means_P


@dataclass(frozen=True, slots=True)
class Orpo:
    """ORPO (Hong et al. 2024, eq. 6 and 7): likelihood of the chosen answer, and odds against the rejected one."""

    needs_reference: ClassVar[bool] = False
    beta: float = 0.1

    def __call__(self, pairs: Pairs) -> Tensor:
        """-mean log-probability - beta log sigmoid(log odds ratio), odds = p / (1 - p) of the mean log-probability."""
        odds_P = _log_odds(pairs.chosen_means_P) - _log_odds(pairs.rejected_means_P)
        return -pairs.chosen_means_P - self.beta * logsigmoid(odds_P)

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """beta x mean log-probability."""
        return self.beta * pairs.chosen_means_P, self.beta * pairs.rejected_means_P


@dataclass(frozen=True, slots=True)
class Cpo:
    """CPO (Xu et al. 2024): DPO with a uniform reference, and alpha x likelihood of the chosen answer."""

    needs_reference: ClassVar[bool] = False
    beta: float = 0.1
    alpha: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta x difference of log-probabilities) - alpha x mean log-probability."""
        chosen_P, rejected_P = self.rewards(pairs)
        return _smoothed(chosen_P - rejected_P, self.label_smoothing) - self.alpha * pairs.chosen_means_P

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """beta x log-probability."""
        return self.beta * pairs.chosen_P, self.beta * pairs.rejected_P


class PluginLossError(TypeError):
    """A user's loss function returned something else than one loss a pair."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A user's function `(pairs, **options) -> losses [P]`, imported where it is called."""

    needs_reference: ClassVar[bool] = True
    target: str
    """`module:function`."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: Pairs) -> Tensor:
        """What the function returns. Raises `PluginLossError`."""
        losses_P = load_function(self.target)(pairs, **self.options)
        if not isinstance(losses_P, Tensor) or losses_P.shape != pairs.chosen_P.shape:
            raise PluginLossError(f"{self.target} must return one loss a pair, a tensor of shape {tuple(pairs.chosen_P.shape)}")
        return losses_P

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Log-ratios to the reference."""
        return pairs.chosen_ratios_P, pairs.rejected_ratios_P


PairLoss = Sigmoid | Robust | Hinge | Ipo | ApoZero | Sft | Simpo | Orpo | Cpo | Plugin
PAIR_LOSSES: dict[str, Callable[..., PairLoss]] = {
    "sigmoid": Sigmoid,
    "robust": Robust,
    "hinge": Hinge,
    "ipo": Ipo,
    "apo_zero": ApoZero,
    "sft": Sft,
    "simpo": Simpo,
    "orpo": Orpo,
    "cpo": Cpo,
    "plugin": Plugin,
}
"""Losses by their `type` in a spec; its other fields are theirs."""


def load_function(target: str) -> Callable[..., Any]:
    """The function at `module:function`. Raises `ImportError` or `AttributeError`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, slots=True)
class PairObjective:
    """A weighted sum of losses on pairs; the first one's rewards are logged."""

    level: ClassVar[str] = "sequence"
    losses: tuple[tuple[PairLoss, float], ...]

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses compares with a reference."""
        return any(loss.needs_reference for loss, _ in self.losses)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Means]:
        """Losses [S] of S = 2 P sequences, and metrics of the pairs."""
        pairs = pairs_of(inputs)
        losses_P = torch.stack([weight * loss(pairs) for loss, weight in self.losses]).sum(0)
        return spread(losses_P), pair_means(*self.losses[0][0].rewards(pairs))


def _smoothed(logits_P: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(logits_P) - smoothing * logsigmoid(-logits_P)


def _log_odds(mean_logprobs_P: Tensor) -> Tensor:
    """log(p / (1 - p)), accurate also where p is near 1."""
    means_P = mean_logprobs_P.clamp(max=_LARGEST_MEAN_LOGPROB)
    return means_P - torch.log(-torch.expm1(means_P))
