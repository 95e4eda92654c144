"""A causal language model whose output head returns log-probabilities instead of logits."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rlflow.algorithms.distillation import DistillationInputs
from rlflow.algorithms.fused_candidates import fused_candidate_logprobs
from rlflow.algorithms.fused_logprobs import TokenScores, fused_logprobs
from rlflow.algorithms.losses import LossInputs
from rlflow.errors import LearnerError
from rlflow.learner.sequences import MicroBatchTensors

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class LogprobHead(nn.Module):
    """Takes the place of `lm_head` and owns its weight, so that ZeRO gathers it for this forward and its backward."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        assert lm_head.bias is None, "an output head with bias is not supported"
        self.weight = lm_head.weight

    def forward(
        self, hidden_NH: Tensor, targets_N: Tensor, temperature: float, candidates_NK: Tensor | None = None
    ) -> TokenScores | Tensor:
        """Score N targets from their hidden states; or log-probabilities [N, K] of the candidates, if there are any."""
        if candidates_NK is not None:
            return fused_candidate_logprobs(hidden_NH, self.weight, candidates_NK, temperature)
        return fused_logprobs(hidden_NH, self.weight, targets_N, temperature)


class PolicyModel(nn.Module):
    """A transformers causal language model (with or without peft adapters), called with micro-batches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.causal_lm = [model.get_base_model() if hasattr(model, "peft_config") else model]  # a list: not a second submodule
        _refuse_logit_transforms(self.causal_lm[0].config)
        self.causal_lm[0].set_output_embeddings(LogprobHead(self.causal_lm[0].get_output_embeddings()))

    def forward(self, batch: MicroBatchTensors, temperature: float) -> TokenScores | Tensor:
        """Score the batch's N trained tokens, or its candidates for them."""
        head = self.causal_lm[0].get_output_embeddings()
        return head(self.hidden_states(batch), batch.targets_N, temperature, batch.candidates_NK)

    def hidden_states(self, batch: MicroBatchTensors) -> Tensor:
        """What the head makes the N predictions of, [N, H]."""
        # use_cache=False and no attention mask: with either, transformers builds masks that ignore packing.
        hidden_BTH = (
            self.causal_lm[0]
            .base_model(
                input_ids=batch.input_ids_BT,
                position_ids=batch.position_ids_BT,
                use_cache=False,
                rlflow_segments=batch.segments,
            )
            .last_hidden_state
        )
        return hidden_BTH.flatten(0, 1)[batch.source_N]

    def inputs(self, output: Any, batch: MicroBatchTensors, known: Mapping[str, Tensor]) -> LossInputs | DistillationInputs:
        """What a policy's or a student's objective depends on."""
        if batch.candidates_NK is not None:
            return DistillationInputs(
                logprobs_NK=output,
                teacher_logprobs_NK=known["teacher_logprobs"],
                counts=batch.counts,
                weights_N=batch.weights_N,
            )
        return LossInputs(
            logprobs_N=output.logprobs_N,
            mean_logprobs_N=output.mean_logprobs_N,
            entropy_N=output.entropy_N,
            correct_N=output.correct_N,
            counts=batch.counts,
            weights_N=batch.weights_N,
            advantages_N=batch.advantages_N,
            sampler_logprobs_N=batch.sampler_logprobs_N,
            **{f"{name}_N": values for name, values in known.items()},
        )

    def per_token(self, output: TokenScores) -> Tensor:
        """What a scoring pass returns: log-probabilities, float32 [N]."""
        return output.logprobs_N


def _refuse_logit_transforms(config: Any) -> None:
    for name in _LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 0, 1.0):
            raise LearnerError(f"models with {name} are not supported: their logits are not hidden states times the head")


def trainable_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: matrices decay, vectors (norms, biases) do not."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (decayed if len(shape) > 1 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
