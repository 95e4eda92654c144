"""A causal language model whose output head returns log-probabilities instead of logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlflow.algorithms.distillation import DistillationInputs, HeadScore
from rlflow.algorithms.fused_logprobs import Slopes, TokenScores, fused_logprobs
from rlflow.algorithms.load_balancing import load_balancing_loss
from rlflow.algorithms.losses import LossInputs
from rlflow.errors import LearnerError
from rlflow.learner.sequence_parallel import SequenceParallel
from rlflow.learner.sequences import MicroBatchTensors

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class LogprobHead(nn.Module):
    """Takes the place of `lm_head` and owns its weight, so that ZeRO gathers it for this forward and its backward."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        assert lm_head.bias is None, "an output head with bias is not supported"
        self.weight = lm_head.weight

    def forward(
        self,
        hidden_NH: Tensor,
        targets_N: Tensor,
        temperature: float,
        score: HeadScore | None = None,
        slopes: Slopes | None = None,
    ) -> TokenScores | Tensor:
        """Score N targets from their hidden states; or what `score` makes of these and the weight."""
        if score is not None:
            return score(hidden_NH, self.weight, temperature=temperature)
        return fused_logprobs(hidden_NH, self.weight, targets_N, temperature, slopes)


class PolicyOutput(NamedTuple):
    """Of a micro-batch (a tuple, which DeepSpeed's hooks see through)."""

    scores: Any
    """`TokenScores`, or what the batch's `head_score` returns."""
    balance_S: Tensor | None
    """float32 [S]: load-balancing loss of each sequence, with gradient; None if not asked for."""


class PolicyModel(nn.Module):
    """A transformers causal language model (with or without peft adapters), called with micro-batches."""

    def __init__(self, model: Any, *, balances_experts: bool = False, parallel: SequenceParallel | None = None) -> None:
        """Raises `LearnerError` for models whose logits, experts or heads are not as asked for."""
        super().__init__()
        self._parallel = parallel
        self._balances_experts = balances_experts
        self.model = model
        self.causal_lm = [model.get_base_model() if hasattr(model, "peft_config") else model]  # a list: not a second submodule
        _refuse_logit_transforms(self.causal_lm[0].config)
        if balances_experts and not hasattr(self.causal_lm[0].config, "num_experts_per_tok"):
            raise LearnerError("learner.router_aux_loss_coefficient: this model has no experts to balance; set it to 0")
        if parallel is not None:
            parallel.attach(self.causal_lm[0])
        self.causal_lm[0].set_output_embeddings(LogprobHead(self.causal_lm[0].get_output_embeddings()))

    @property
    def config(self) -> Any:
        """The model's configuration, which DeepSpeed looks at to find experts."""
        return self.causal_lm[0].config

    def forward(self, batch: MicroBatchTensors, temperature: float) -> PolicyOutput:
        """Score the batch's N trained tokens."""
        output = self.base_output(batch)
        if self._parallel is not None:
            return PolicyOutput(self._shared_scores(output, batch, temperature, self._parallel), None)
        hidden_NH = output.last_hidden_state.flatten(0, 1)[batch.source_N]
        head = self.causal_lm[0].get_output_embeddings()
        scores = head(hidden_NH, batch.targets_N, temperature, batch.head_score, batch.slopes)
        return PolicyOutput(scores, self._balance(output, batch) if self._balances_experts else None)

    def _shared_scores(
        self, output: Any, batch: MicroBatchTensors, temperature: float, parallel: SequenceParallel
    ) -> TokenScores:
        """Those of all N trained tokens, from the part of them that each rank predicts."""
        own_n, source_n = parallel.own_tokens(batch.source_N, batch.input_ids_BT.numel())
        has_none = len(own_n) == 0  # the head is called all the same: ZeRO gathers its weight on all ranks together
        own_n, source_n = (own_n.new_zeros(1), source_n.new_zeros(1)) if has_none else (own_n, source_n)
        head = self.causal_lm[0].get_output_embeddings()
        scores = head(output.last_hidden_state.flatten(0, 1)[source_n], batch.targets_N[own_n], temperature)
        values_4n = torch.stack([scores.logprobs_N, scores.mean_logprobs_N, scores.entropy_N, scores.correct_N.float()])
        values_4N = parallel.together(values_4n * (not has_none), own_n, len(batch.source_N))
        logprobs_N, mean_logprobs_N, entropy_N, correct_N = values_4N
        return TokenScores(logprobs_N, mean_logprobs_N, entropy_N, correct_N > 0.5)

    def base_output(self, batch: MicroBatchTensors) -> Any:
        """What the model without its head makes of the batch."""
        # use_cache=False and no attention mask: with either, transformers builds masks that ignore packing.
        return self.causal_lm[0].base_model(
            input_ids=batch.input_ids_BT if self._parallel is None else self._parallel.own(batch.input_ids_BT),
            position_ids=batch.position_ids_BT if self._parallel is None else self._parallel.own(batch.position_ids_BT),
            use_cache=False,
            rlflow_segments=batch.segments,
            **({"output_router_logits": True} if self._balances_experts else {}),
        )

    def hidden_states(self, batch: MicroBatchTensors) -> Tensor:
        """What the head makes the N predictions of, [N, H]."""
        return self.base_output(batch).last_hidden_state.flatten(0, 1)[batch.source_N]

    def _balance(self, output: Any, batch: MicroBatchTensors) -> Tensor:
        router_logits_LTE = torch.stack([logits.flatten(0, -2) for logits in output.router_logits])
        top_k = self.causal_lm[0].config.num_experts_per_tok
        return load_balancing_loss(router_logits_LTE, batch.sequence_of_T, len(batch.sequences), top_k)

    def inputs(
        self, output: PolicyOutput, batch: MicroBatchTensors, known: Mapping[str, Tensor]
    ) -> LossInputs | DistillationInputs:
        """What a policy's or a student's objective depends on."""
        scores = output.scores
        if batch.head_score is not None:
            return DistillationInputs(scores, known.get("teacher_logprobs"))
        return LossInputs(
            logprobs_N=scores.logprobs_N,
            mean_logprobs_N=scores.mean_logprobs_N,
            entropy_N=scores.entropy_N,
            correct_N=scores.correct_N,
            counts=batch.counts,
            weights_N=batch.weights_N,
            advantages_N=batch.advantages_N,
            sampler_logprobs_N=batch.sampler_logprobs_N,
            labels_S=batch.labels_S,
            **{f"{name}_N": values for name, values in known.items()},
        )

    def per_token(self, output: PolicyOutput) -> Tensor:
        """What a scoring pass returns: log-probabilities, float32 [N]."""
        return output.scores.logprobs_N


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
    # DeepSpeed splits experts off each group, and tells the new ones by name.
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "others", "params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
