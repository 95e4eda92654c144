"""A language model with a scalar head: a critic, or a reward model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from rlflow.algorithms.losses import ValueInputs
from rlflow.learner.sequences import MicroBatchTensors


class Values(NamedTuple):
    """The head's output (a tuple, which DeepSpeed's hooks see through)."""

    values_N: Tensor
    """float32 [N]: at the position before each trained token, the value of the state in which it is chosen."""
    last_values_S: Tensor
    """float32 [S]: at each sequence's last token, what a reward model says of it."""


class ValueModel(nn.Module):
    """A transformers model for sequence classification with one label, called with micro-batches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._base = [model.get_base_model() if hasattr(model, "peft_config") else model]  # a list: not a second submodule

    def forward(self, batch: MicroBatchTensors, temperature: float) -> Values:
        """Values at the batch's N trained tokens and S last tokens; `temperature` is a policy's alone."""
        classifier = self._base[0]
        hidden_BTH = classifier.base_model(
            input_ids=batch.input_ids_BT,
            position_ids=batch.position_ids_BT,
            use_cache=False,
            rlflow_segments=batch.segments,
        ).last_hidden_state
        values_T = classifier.score(hidden_BTH).float().flatten()
        return Values(values_T[batch.source_N], values_T[batch.last_S])

    def inputs(self, output: Values, batch: MicroBatchTensors, known: Mapping[str, Tensor]) -> ValueInputs:
        """What a critic's or reward model's objective depends on."""
        return ValueInputs(
            values_N=output.values_N,
            last_values_S=output.last_values_S,
            counts=batch.counts,
            weights_N=batch.weights_N,
            labels_S=batch.labels_S,
            **{f"{name}_N": values for name, values in known.items()},
        )

    def per_token(self, output: Values) -> Tensor:
        """What a scoring pass returns: values, float32 [N]."""
        return output.values_N
