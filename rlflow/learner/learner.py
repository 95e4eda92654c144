"""One rank of a learner group."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rlflow.algorithms.batch_plan import MicroBatch, StepPlan
from rlflow.algorithms.losses import LossInputs, Means
from rlflow.errors import LearnerError
from rlflow.learner.deepspeed_config import deepspeed_config
from rlflow.learner.export import WeightExporter
from rlflow.learner.load_model import load_causal_lm
from rlflow.learner.policy_model import PolicyModel, count_parameters, trainable_parameters
from rlflow.learner.process_group import RankInfo, join_process_group, leave_process_group
from rlflow.learner.reference import AdapterReference, SwappedReference
from rlflow.learner.residency import State, StateMover
from rlflow.learner.sequences import MicroBatchTensors, TrainSequence, build_micro_batch
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec

TokenLoss = Callable[[LossInputs], tuple[Tensor, Means]]
Scores = dict[int, Tensor]
_LAYOUT_FILE = "layout.json"
"""Beside DeepSpeed's files: what they are partitioned by."""


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
        keep_reference: bool = False,
        bucket_bytes: int | None = None,
    ) -> None:
        stage = spec.zero_stage
        if stage == "auto":  # usually the plan has decided, by what fits
            stage = 3 if info.world_size > 1 else 1
            spec = spec.model_copy(update={"zero_stage": stage})
        self._zero_stage: int = stage
        self._spec, self._info, self._temperature = spec, info, temperature
        self.device = join_process_group(info, spec.timeout_s)
        torch.manual_seed(seed)
        config = deepspeed_config(spec, dtype=model.dtype, on_gpu=self.device.type == "cuda")
        causal_lm = _load(model_path, model, spec, config)
        self._policy = PolicyModel(causal_lm)
        self._engine = _initialize(self._policy, config, spec)
        if spec.zero_stage == 0:
            self._clipper = _GradientClipper(self._policy, self._engine.optimizer, spec.max_grad_norm)
        self._reference = None
        if keep_reference:
            self._reference = AdapterReference(causal_lm) if model.lora else SwappedReference(self._policy)
        self.exporter = WeightExporter(causal_lm) if bucket_bytes is None else WeightExporter(causal_lm, bucket_bytes)
        self._mover = StateMover(self._engine, self._policy)
        self.num_parameters = count_parameters(causal_lm)

    # ---- residency

    def move(self, state: State) -> None:
        """Bring the states to `offloaded`, `weights` or `full`."""
        self._mover.move(state)

    # ---- training

    def score(self, step: StepPlan, sequences: Mapping[int, TrainSequence], *, reference: bool = False) -> Scores:
        """Log-probabilities of this rank's trained tokens: sequence -> float32 [n], under the policy or the reference."""
        if reference:
            assert self._reference is not None, "the learner was built without a reference"
            with self._reference.active():
                return self.score(step, sequences)
        scores: Scores = {}
        with self._without_gradient():
            for micro_batch in step.ranks[self._info.rank]:
                batch = self._build(micro_batch, sequences, step)
                scores.update(batch.split(self._engine(batch, self._temperature).logprobs_N))
        return scores

    def train_step(
        self,
        step: StepPlan,
        sequences: Mapping[int, TrainSequence],
        token_loss: TokenLoss,
        *,
        learning_rate: float,
        old: Scores | None = None,
        reference: Scores | None = None,
    ) -> dict[str, float]:
        """One optimiser step over the plan's micro-batches. Returns metrics, equal on every rank.

        The loss is the sum over all ranks and micro-batches of token weight x token loss: neither micro-batches nor ranks nor
        packing change it. DeepSpeed averages gradients over ranks, hence the factor world size.
        """
        self._engine.train()
        means: Means = {}
        for micro_batch in step.ranks[self._info.rank]:
            batch = self._build(micro_batch, sequences, step)
            loss, micro_means = self._token_losses(batch, token_loss, old, reference)
            self._engine.backward(loss * self._info.world_size, scale_wrt_gas=False)
            _add(means, micro_batch, loss, micro_means)
        metrics = self._reduced(means)
        self._set_learning_rate(learning_rate)
        return {**metrics, "grad_norm": self._step(), "learning_rate": learning_rate}

    def evaluate(
        self,
        step: StepPlan,
        sequences: Mapping[int, TrainSequence],
        token_loss: TokenLoss,
        *,
        temperature: float | None = None,
    ) -> dict[str, float]:
        """The metrics of `train_step` without training, at the training temperature or another."""
        means: Means = {}
        with self._without_gradient():
            for micro_batch in step.ranks[self._info.rank]:
                batch = self._build(micro_batch, sequences, step)
                _add(means, micro_batch, *self._token_losses(batch, token_loss, None, None, temperature))
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
        return build_micro_batch(micro_batch, sequences, step.token_weights, packing=self._spec.packing, device=self.device)

    def _token_losses(
        self,
        batch: MicroBatchTensors,
        token_loss: TokenLoss,
        old: Scores | None,
        reference: Scores | None,
        temperature: float | None = None,
    ) -> tuple[Tensor, Means]:
        scores = self._engine(batch, self._temperature if temperature is None else temperature)
        inputs = LossInputs(
            logprobs_N=scores.logprobs_N,
            mean_logprobs_N=scores.mean_logprobs_N,
            entropy_N=scores.entropy_N,
            correct_N=scores.correct_N,
            counts=batch.counts,
            weights_N=batch.weights_N,
            advantages_N=batch.advantages_N,
            old_logprobs_N=None if old is None else batch.flatten(old),
            reference_logprobs_N=None if reference is None else batch.flatten(reference),
            sampler_logprobs_N=batch.sampler_logprobs_N,
        )
        losses_N, means = token_loss(inputs)
        return (losses_N * batch.weights_N).sum(), means

    def _step(self) -> float:
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
        local = {name: (float(total), float(count)) for name, (total, count) in means.items()}
        known: list[Any] = [local]
        if self._info.world_size > 1:
            known = [None] * self._info.world_size
            dist.all_gather_object(known, local)
        names = dict.fromkeys(name for rank_means in known for name in rank_means)
        sums = {name: [sum(part) for part in zip(*(m[name] for m in known if name in m), strict=True)] for name in names}
        return {name: total if name == "loss" else total / count for name, (total, count) in sums.items() if count}

    # ---- checkpoints

    def save(self, directory: Path, client_state: dict[str, Any]) -> None:
        """Write this rank's part of the training state (weights, optimiser, random state)."""
        own = {"torch_rng": torch.get_rng_state(), "client_state_names": list(client_state)}
        state = {**client_state, **own}
        self._engine.save_checkpoint(str(directory), tag="learner", client_state=state)
        if self._info.rank == 0:
            (directory / _LAYOUT_FILE).write_text(json.dumps(self._layout()))

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `save` wrote, and return its client state.

        Raises `LearnerError` for another number of ranks or another ZeRO stage: the state is partitioned by both.
        """
        saved, present = json.loads((directory / _LAYOUT_FILE).read_text()), self._layout()
        if saved != present:
            raise LearnerError(
                f"{directory} was saved with {_describe(saved)}, but this run has {_describe(present)}: "
                "set learner.num_ranks and learner.zero_stage as they were"
            )
        loaded, state = self._engine.load_checkpoint(str(directory), tag="learner")
        if loaded is None:
            raise LearnerError(f"{directory}: no learner state could be read")
        torch.set_rng_state(state["torch_rng"])
        return {name: state[name] for name in state["client_state_names"]}

    def _layout(self) -> dict[str, int]:
        return {"num_ranks": self._info.world_size, "zero_stage": self._zero_stage}

    def save_model(self, directory: Path, tokenizer: Any) -> None:
        """Write the weights as a transformers model directory."""
        self.exporter.save(directory, tokenizer, is_writer=self._info.rank == 0)

    def close(self) -> None:
        """Free the engine and leave the process group."""
        self.exporter.release()
        self._engine.destroy()
        leave_process_group()


def _describe(layout: dict[str, int]) -> str:
    return f"{layout['num_ranks']} learner ranks at ZeRO stage {layout['zero_stage']}"


def _load(model_path: str, model: ModelSpec, spec: LearnerSpec, config: dict[str, Any]) -> Any:
    if spec.zero_stage != 3:
        return load_causal_lm(model_path, model, spec)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(config)  # transformers partitions weights while loading as long as this object lives
    causal_lm = load_causal_lm(model_path, model, spec)
    causal_lm.rlflow_deepspeed_config = keep_alive
    return causal_lm


def _initialize(policy: PolicyModel, config: dict[str, Any], spec: LearnerSpec) -> Any:
    import deepspeed

    if spec.zero_stage == 3:
        _gather_whole_layers(policy.causal_lm[0])
    groups = trainable_parameters(policy, spec.optimizer.weight_decay)
    engine, *_ = deepspeed.initialize(model=policy, model_parameters=cast(Any, groups), config=config)
    return engine


def _gather_whole_layers(causal_lm: Any) -> None:
    """Let ZeRO-3 fetch and free a decoder layer at a time: its hooks around every linear layer and norm take longer than they
    save, and a mixture of experts must not gather experts one by one.
    """
    from deepspeed.utils import set_z3_leaf_modules

    names = set(causal_lm._no_split_modules or ())
    classes = {type(module) for module in causal_lm.modules() if type(module).__name__ in names}
    if classes:
        set_z3_leaf_modules(causal_lm, list(classes))


class _GradientClipper:
    """Clips at stage 0, where DeepSpeed would, but keep the norm to itself. Gradients are averaged over ranks by then."""

    def __init__(self, policy: PolicyModel, optimizer: Any, max_norm: float) -> None:
        self._policy, self._max_norm = policy, max_norm
        self.norm = torch.tensor(float("nan"))
        optimizer.register_step_pre_hook(self._clip)

    def _clip(self, *_: Any) -> None:
        self.norm = torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._max_norm)


def _add(means: Means, micro_batch: MicroBatch, loss: Tensor, more: Means) -> None:
    if micro_batch.is_padding:
        return
    for name, (total, count) in {"loss": (loss.detach(), loss.new_ones(())), **more}.items():
        before = means.get(name)
        means[name] = (total, count) if before is None else (before[0] + total, before[1] + count)
