"""One rank of a learner group."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlflow.algorithms.batch_plan import MicroBatch, StepPlan
from rlflow.algorithms.losses import Means
from rlflow.algorithms.policy_terms import entropy_threshold
from rlflow.errors import LearnerError
from rlflow.learner.checkpoints import CheckpointFiles, Layout
from rlflow.learner.deepspeed_config import deepspeed_config
from rlflow.learner.engine import GradientClipper, Role, build_model, initialize, initialize_frozen
from rlflow.learner.export import BUCKET_BYTES, WeightExporter
from rlflow.learner.policy_model import PolicyModel
from rlflow.learner.process_group import RankInfo, join_process_group, leave_process_group
from rlflow.learner.reference import AdapterReference, SwappedReference
from rlflow.learner.residency import State, StateMover
from rlflow.learner.sequence_parallel import SequenceParallel
from rlflow.learner.sequences import MicroBatchTensors, TrainSequence, build_micro_batch
from rlflow.learner.teacher_model import TeacherModel
from rlflow.learner.value_model import ValueModel
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec

Objective = Callable[[Any], tuple[Tensor, Means]]
"""Losses of the role's inputs (`LossInputs`, `ValueInputs`) and metrics: one loss a token [N], or one a sequence [S] if the
objective's `level` is `sequence`.
"""
Scores = dict[int, Tensor]
"""Sequence -> one value for each of its trained tokens, float32 [n] (what a teacher says of them: [n, ...])."""


class Learner:
    """A model partitioned by ZeRO, its optimiser, and what is done with them. Most methods are collective."""

    def __init__(
        self,
        model_path: str,
        model: ModelSpec,
        spec: LearnerSpec,
        info: RankInfo,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        role: Role = "policy",
        keep_reference: bool = False,
        num_candidates: int | None = None,
        num_tokens: int = 0,
        bucket_bytes: int | None = None,
    ) -> None:
        self._is_quantised = model.is_quantised
        stage = spec.zero_stage
        if stage == "auto":  # usually the plan has decided, by what fits
            stage = 3 if info.world_size > 1 and not self._is_quantised else 1
            spec = spec.model_copy(update={"zero_stage": stage})
        self._zero_stage: int = stage
        self._spec, self._info, self._temperature = spec, info, temperature
        self.device = join_process_group(info, spec.timeout_s)
        torch.manual_seed(seed)
        config = deepspeed_config(spec, dtype=model.dtype, on_gpu=self.device.type == "cuda")
        self.is_trained = role != "teacher"
        parallel = SequenceParallel(spec.sequence_parallel, info) if spec.sequence_parallel > 1 else None
        self._counts = parallel is None or parallel.rank == 0
        """Whether this rank's metrics count: of those that share sequences, one does."""
        build = {
            "policy": partial(PolicyModel, balances_experts=spec.router_aux_loss_coefficient > 0, parallel=parallel),
            "value": ValueModel,
            "teacher": partial(TeacherModel, num_candidates=num_candidates, num_tokens=num_tokens),
        }[role]
        self._model = build_model(role, build, model_path, model, spec, config)
        if self.is_trained:
            self._engine = initialize(self._model, config, spec)
        else:
            self._engine = initialize_frozen(self._model, config, spec, self.device)
        if spec.zero_stage == 0 and self.is_trained:
            self._clipper = GradientClipper(self._model, self._engine.optimizer, spec.max_grad_norm)
        self._reference = None
        if keep_reference:
            self._reference = AdapterReference(self._model.model) if model.lora else SwappedReference(self._model)
        self.exporter = WeightExporter(self._model.model, BUCKET_BYTES if bucket_bytes is None else bucket_bytes)
        self._mover = StateMover(self._engine, self._model)

    # ---- residency

    def move(self, state: State) -> None:
        """Bring the states to `offloaded`, `weights` or `full`."""
        self._mover.move(state)

    # ---- training

    def score(self, step: StepPlan, sequences: Mapping[int, TrainSequence], *, reference: bool = False) -> Scores:
        """One number for each of this rank's trained tokens: log-probabilities (policy or reference), or a critic's values."""
        if reference:
            assert self._reference is not None, "the learner was built without a reference"
            with self._reference.active():
                return self.score(step, sequences)
        return self._scores(step, sequences, self._model.per_token)

    def refresh_reference(self) -> None:
        """The policy's present weights become the reference. Not for adapters, whose reference is the model below them."""
        assert isinstance(self._reference, SwappedReference)
        self._reference.refresh()

    def entropy_masks(self, steps: Iterable[StepPlan], sequences: Mapping[int, TrainSequence], quantile: float) -> Scores:
        """1 for each of this rank's trained tokens whose entropy is among the `quantile` highest of its step, else 0. A step's
        tokens are those of all ranks.
        """
        masks = [self._entropy_mask(step, sequences, quantile) for step in _distinct(steps)]
        return {i: mask for of_step in masks for i, mask in of_step.items()}

    def _entropy_mask(self, step: StepPlan, sequences: Mapping[int, TrainSequence], quantile: float) -> Scores:
        entropies = self._scores(step, sequences, lambda output: output.scores.entropy_N)
        counted = self.own_sequences([step])
        parts = self._gathered([entropies[i] for i in sorted(counted)])
        threshold = entropy_threshold(torch.cat([values for rank_values in parts for values in rank_values]), quantile)
        return {i: (values >= threshold).float() for i, values in entropies.items()}

    def _scores(self, step: StepPlan, sequences: Mapping[int, TrainSequence], per_token: Callable[[Any], Tensor]) -> Scores:
        scores: Scores = {}
        with self._without_gradient():
            for micro_batch in step.ranks[self._info.rank]:
                batch = self._build(micro_batch, sequences, step)
                scores.update(batch.split(per_token(self._forward(batch))))
        return scores

    def ask_teacher(self, step: StepPlan, sequences: Mapping[int, TrainSequence]) -> dict[str, Scores]:
        """What a teacher says in the place of each of this rank's trained tokens: the fields of `LikeliestTokens`, or of
        `HiddenStates`.
        """
        answers: dict[str, Scores] = {}
        with self._without_gradient():
            for micro_batch in step.ranks[self._info.rank]:
                batch = self._build(micro_batch, sequences, step)
                for name, values in self._forward(batch)._asdict().items():
                    answers.setdefault(name, {}).update(batch.split(values))
        return answers

    @property
    def teacher_head(self) -> Tensor:
        """A teacher's output head [U, G], in host memory, once it has been asked for hidden states."""
        return self._model.head

    def score_all(self, steps: Iterable[StepPlan], sequences: Mapping[int, TrainSequence], *, reference: bool = False) -> Scores:
        """`score` of several steps; a step that comes again, in a later epoch, once."""
        scores = [self.score(step, sequences, reference=reference) for step in _distinct(steps)]
        return {i: values for of_step in scores for i, values in of_step.items()}

    def own_sequences(self, steps: Iterable[StepPlan]) -> set[int]:
        """Sequences that count on this rank and no other: those of its micro-batches but padding."""
        if not self._counts:
            return set()
        return {i for step in steps for m in step.ranks[self._info.rank] if not m.is_padding for i in m.sequences}

    def train_step(
        self,
        step: StepPlan,
        sequences: Mapping[int, TrainSequence],
        objective: Objective,
        *,
        learning_rate: float,
        known: Mapping[str, Scores] | None = None,
    ) -> dict[str, float]:
        """One optimiser step over the plan's micro-batches. Returns metrics, equal on every rank.

        `known`: what has been computed before for the trained tokens, as `<name>_N` of the inputs (`old_logprobs`, ...). The loss
        is the sum over all ranks and micro-batches of weight x loss: neither micro-batches nor ranks nor packing change it.
        DeepSpeed averages gradients over ranks, hence the factor world size; ranks that share sequences have the same loss.
        """
        self._engine.train()
        means: Means = {}
        for micro_batch in step.ranks[self._info.rank]:
            batch = self._build(micro_batch, sequences, step)
            loss, micro_means = self._losses(batch, objective, known or {})
            self._engine.backward(loss * (self._info.world_size / self._spec.sequence_parallel), scale_wrt_gas=False)
            self._mover.begin_arrival()  # the passes have their memory by now: taking more of it waits for transfers
            _add(means, micro_batch, loss, micro_means)
        metrics = self._reduced(means)
        self._set_learning_rate(learning_rate)
        return {**metrics, "grad_norm": self._step(), "learning_rate": learning_rate}

    def evaluate(
        self,
        step: StepPlan,
        sequences: Mapping[int, TrainSequence],
        objective: Objective,
        *,
        temperature: float | None = None,
        known: Mapping[str, Scores] | None = None,
    ) -> dict[str, float]:
        """The metrics of `train_step` without training, at the training temperature or another."""
        means: Means = {}
        with self._without_gradient():
            for micro_batch in step.ranks[self._info.rank]:
                batch = self._build(micro_batch, sequences, step)
                _add(means, micro_batch, *self._losses(batch, objective, known or {}, temperature))
        return self._reduced(means)

    @contextmanager
    def _without_gradient(self) -> Iterator[None]:
        """For forward passes alone. ZeRO-3 keeps what they gather for the backward pass that it expects: it would hide weights
        that are swapped in afterwards, and fill the device.
        """
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            if self._zero_stage == 3:
                self._engine.optimizer.empty_partition_cache()

    def _build(self, micro_batch: MicroBatch, sequences: Mapping[int, TrainSequence], step: StepPlan) -> MicroBatchTensors:
        return build_micro_batch(
            micro_batch,
            sequences,
            step.token_weights,
            packing=self._spec.packing,
            device=self.device,
            multiple=self._spec.sequence_parallel,
        )

    def _forward(self, batch: MicroBatchTensors, temperature: float | None = None) -> Any:
        return self._engine(batch, self._temperature if temperature is None else temperature)

    def _losses(
        self, batch: MicroBatchTensors, objective: Objective, known: Mapping[str, Scores], temperature: float | None = None
    ) -> tuple[Tensor, Means]:
        flat = {name: batch.flatten(values) for name, values in known.items()}
        if hasattr(objective, "head_score"):
            batch = replace(batch, head_score=objective.head_score(flat))
        if torch.is_grad_enabled() and hasattr(objective, "slopes"):
            batch = replace(batch, slopes=objective.slopes(batch.weights_N, batch.advantages_N, flat))
        output = self._forward(batch, temperature)
        losses, means = objective(self._model.inputs(output, batch, flat))
        weights = batch.sequence_weights_S if getattr(objective, "level", "token") == "sequence" else batch.weights_N
        loss = (losses * weights).sum()
        if getattr(output, "balance_S", None) is not None:
            share_S = torch.stack([part.sum() for part in batch.weights_N.split(batch.counts)])
            balance = (output.balance_S * share_S).sum()
            loss = loss + self._spec.router_aux_loss_coefficient * balance
            means = {**means, "router_aux_loss": (balance.detach(), share_S.sum())}
        return loss, means

    def _step(self) -> float:
        self._mover.arrive()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        norm = float(self._clipper.norm if norm is None else norm)
        if norm != norm or norm == float("inf"):
            raise LearnerError(f"the gradient norm is {norm}")
        return norm

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def _reduced(self, means: Means) -> dict[str, float]:
        """Means over all ranks (the loss is a sum); ranks may know different metrics."""
        local = {name: (float(total), float(count)) for name, (total, count) in means.items()} if self._counts else {}
        known = self._gathered(local)
        names = dict.fromkeys(name for rank_means in known for name in rank_means)
        sums = {name: [sum(part) for part in zip(*(m[name] for m in known if name in m), strict=True)] for name in names}
        return {name: total if name == "loss" else total / count for name, (total, count) in sums.items() if count}

    def _gathered(self, own: Any) -> list[Any]:
        """What every rank has, in order of ranks."""
        if self._info.world_size == 1:
            return [own]
        gathered: list[Any] = [None] * self._info.world_size
        dist.all_gather_object(gathered, own)
        return gathered

    # ---- checkpoints

    def save(self, directory: Path, client_state: dict[str, Any]) -> None:
        """Write this rank's part of the training state (weights, optimiser, random state)."""
        self._mover.arrive()
        self._files.save(directory, client_state)

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `save` wrote, and return its client state.

        Raises `LearnerError` for another number of ranks or another ZeRO stage: the state is partitioned by both.
        """
        self._mover.arrive()
        return self._files.load(directory)

    @property
    def _files(self) -> CheckpointFiles:
        layout = Layout(self._info.world_size, self._zero_stage, self._spec.expert_parallel)
        return CheckpointFiles(self._engine, self._reference, layout, self._info.rank, keeps_frozen=not self._is_quantised)

    def save_model(self, directory: Path, tokenizer: Any) -> None:
        """Write the weights as a transformers model directory."""
        self.exporter.save(directory, tokenizer, is_writer=self._info.rank == 0)

    def release(self) -> None:
        """Free the engine."""
        self.exporter.release()
        self._mover.close()
        if self.is_trained or self._zero_stage == 3:
            self._engine.destroy()

    def close(self) -> None:
        """Free the engine and leave the process group."""
        self.release()
        leave_process_group()


def _distinct(steps: Iterable[StepPlan]) -> Iterable[StepPlan]:
    """Each step once: later epochs have the same ones."""
    return {id(step): step for step in steps}.values()


def _add(means: Means, micro_batch: MicroBatch, loss: Tensor, more: Means) -> None:
    if micro_batch.is_padding:
        return
    for name, (total, count) in {"loss": (loss.detach(), loss.new_ones(())), **more}.items():
        before = means.get(name)
        means[name] = (total, count) if before is None else (before[0] + total, before[1] + count)
