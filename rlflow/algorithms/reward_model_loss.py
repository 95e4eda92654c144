"""Bradley-Terry: a loss on the scores of pairs (`kind: rm`)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlflow.algorithms.losses import Means, ValueInputs
from rlflow.algorithms.pairs import pair_means, spread


@dataclass(frozen=True, slots=True)
class RewardModelLoss:
    """Bradley-Terry on scores (Ouyang et al. 2022, eq. 1), with margins m (Touvron et al. 2023, Llama 2, eq. 2)."""

    level: ClassVar[str] = "sequence"
    needs_reference: ClassVar[bool] = False
    center_coefficient: float = 0.0

    def __call__(self, inputs: ValueInputs) -> tuple[Tensor, Means]:
        """-log sigmoid(chosen - rejected - m) + center_coefficient x (chosen + rejected)^2 (Eisenstein et al. 2023)."""
        assert inputs.labels_S is not None
        chosen_P, rejected_P = inputs.last_values_S[::2], inputs.last_values_S[1::2]
        losses_P = -logsigmoid(chosen_P - rejected_P - inputs.labels_S[::2])
        losses_P = losses_P + self.center_coefficient * (chosen_P + rejected_P) ** 2
        return spread(losses_P), pair_means(chosen_P, rejected_P)
