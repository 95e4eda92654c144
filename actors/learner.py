"""The Ray actor of one learner rank."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

from rlflow.algorithms.batch_plan import StepPlan
from rlflow.algorithms.distillation import TeacherAnswers
from rlflow.algorithms.policy_batch import PolicyBatch
from rlflow.algorithms.policy_terms import KlEstimator
from rlflow.spec.algorithm import PpoSpec
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class LearnerSetup:
    """What a rank is built from."""

    model_path: str
    """The model the run started from: the reference, and the weights before a checkpoint is loaded."""
    tokenizer_path: str
    model: ModelSpec
    learner: LearnerSpec
    temperature: float
    seed: int
    keep_reference: bool
    num_threads: int | None
    """CPU threads; None leaves torch's default."""
    conversations: tuple[str, ...] = ()
    """Arrow files of tokenised rows: training rows, then held-out rows."""
    references: tuple[str, ...] = ()
    """Files of the reference's log-probabilities of these rows; empty: the learner scores them itself."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `Learner`: its role if it is no policy, and what belongs to it."""
    others: tuple["RoleSetup", ...] = ()
    """Learners beside the policy."""
    takes_turns: bool = False
    """Whether the learners of a rank take turns on its device."""


@dataclass(frozen=True, slots=True)
class RoleSetup:
    """A learner beside the policy."""

    name: str
    """critic or teacher."""
    options: dict[str, Any]
    """Of `Learner`: its role, and what belongs to it."""
    model_path: str
    model: ModelSpec
    learner: LearnerSpec


class LearnerActor:
    """Delegates to `rlflow.learner.Learner`; builds its sequences from object references or mapped files."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._roles: Any = None
        self._learner: Any = None
        self._files: list[Any] = []
        self._head: Any = None
        """A teacher's output head: with the teacher where it can be fetched, with its student the head itself."""

    def __repr__(self) -> str:
        return self._label

    def rendezvous(self) -> tuple[str, int]:
        """An address and a free port of this node for torch.distributed."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def import_libraries(self) -> None:
        """Import what takes long, without touching a device."""
        from rlflow.learner.process_group import import_libraries

        import_libraries()

    def build(self, setup: LearnerSetup, rank: int, world_size: int, address: tuple[str, int]) -> tuple[Any, ...]:
        """Start the engine (collective). Returns the weight buckets."""
        if setup.num_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(setup.num_threads)
        import torch
        from transformers.utils import logging

        from rlflow.learner.learner import Learner
        from rlflow.learner.process_group import RankInfo
        from rlflow.learner.roles import Roles

        logging.disable_progress_bar()
        if setup.num_threads is not None:
            torch.set_num_threads(setup.num_threads)
        self._files = [_open_conversations(path) for path in setup.conversations]
        info = RankInfo(rank, world_size, *address)
        common: dict[str, Any] = {"temperature": setup.temperature, "seed": setup.seed}
        self._roles = Roles(takes_turns=setup.takes_turns)
        own = partial(Learner, setup.model_path, setup.model, setup.learner, info, keep_reference=setup.keep_reference)
        self._roles.build("policy", partial(own, **common, **setup.options))
        for other in setup.others:
            build = partial(Learner, other.model_path, other.model, other.learner, info, **common, **other.options)
            self._roles.build(other.name, build)
        self._learner = self._roles.hold("policy")
        self._rank, self._tokenizer_path, self._references = rank, setup.tokenizer_path, setup.references
        return self._learner.exporter.buckets

    # ---- policy training

    def train_policy(
        self,
        batch: PolicyBatch,
        groups: Sequence[ObjectRef],
        token_loss: Any,
        learning_rates: Sequence[float],
        on_policy: bool,
    ) -> list[dict[str, float]]:
        """The batch's optimiser steps (collective)."""
        from rlflow.learner.grpo import train_policy

        sequences = self._policy_sequences(batch, groups)
        return train_policy(self._learner, batch.plan.steps, sequences, token_loss, learning_rates, on_policy=on_policy)

    def sequence_kl(self, batch: PolicyBatch, groups: Sequence[ObjectRef], estimator: KlEstimator) -> dict[int, float]:
        """KL of the policy, as it is, from the reference for this rank's samples, summed over tokens (collective)."""
        from rlflow.learner.grpo import sequence_kl

        return sequence_kl(self._learner, batch.plan.steps, self._policy_sequences(batch, groups), estimator)

    def refresh_reference(self) -> None:
        """The policy becomes its own reference."""
        self._learner.refresh_reference()

    def train_ppo(
        self,
        batch: PolicyBatch,
        groups: Sequence[ObjectRef],
        spec: PpoSpec,
        policy_rates: Sequence[float],
        critic_rates: Sequence[float],
    ) -> list[dict[str, float]]:
        """The batch's optimiser steps of critic and policy (collective). No `policy_rates`: of the critic alone."""
        from rlflow.learner.ppo import train_ppo

        sequences = self._policy_sequences(batch, groups)
        rewards = {i: batch.samples[i].advantage for i in sequences}
        return train_ppo(self._roles, batch.plan.steps, sequences, rewards, spec, policy_rates, critic_rates)

    def sampler_mismatch(self, batch: PolicyBatch, groups: Sequence[ObjectRef], token_loss: Any) -> dict[str, float]:
        """Metrics of the batch without training, the log-probability difference to the sampler among them (collective)."""
        return self._learner.evaluate(batch.plan.steps[0], self._policy_sequences(batch, groups), token_loss)

    def _policy_sequences(self, batch: PolicyBatch, groups: Sequence[ObjectRef]) -> dict[int, Any]:
        from rlflow.actors.policy_sequences import policy_sequence

        mine = {i for step in batch.plan.steps for micro in step.ranks[self._rank] for i in micro.sequences}
        needed = sorted({batch.samples[i].group for i in mine})
        fetched = dict(zip(needed, ray.get([groups[g] for g in needed]), strict=True))
        return {i: policy_sequence(fetched[batch.samples[i].group], batch.samples[i]) for i in mine}

    # ---- distillation

    def answer_samples(self, batch: PolicyBatch, groups: Sequence[ObjectRef]) -> TeacherAnswers:
        """What this rank's teacher says of its part of sampled completions (collective)."""
        (step,) = batch.plan.steps
        return self._answers(step, self._policy_sequences(batch, groups))

    def answer_conversations(self, step: StepPlan, rows: Sequence[int]) -> TeacherAnswers:
        """The same of rows of the training file; sequence i of the plan is row `rows[i]` (collective)."""
        return self._answers(step, self._conversations(step, rows, file=0))

    def _answers(self, step: StepPlan, sequences: dict[int, Any]) -> TeacherAnswers:
        from rlflow.learner.distillation import ask

        lesson = ask(self._learner, step, sequences)
        if lesson.head is not None and self._head is None:
            self._head = ray.put(lesson.head)
        own = self._learner.own_sequences([step])
        answers = {i: ray.put({name: values[i] for name, values in lesson.known.items()}) for i in own}
        return TeacherAnswers(answers, self._head)

    def distill_samples(
        self,
        batch: PolicyBatch,
        groups: Sequence[ObjectRef],
        objective: Any,
        learning_rate: float,
        answers: TeacherAnswers | None,
    ) -> dict[str, float]:
        """One optimiser step on sampled completions (collective). `answers`: of a teacher that is not on this device."""
        (step,) = batch.plan.steps
        return self._distill(step, self._policy_sequences(batch, groups), objective, learning_rate, answers)

    def distill_conversations(
        self, step: StepPlan, rows: Sequence[int], objective: Any, learning_rate: float, answers: TeacherAnswers | None
    ) -> dict[str, float]:
        """The same on rows of the training file; sequence i of the plan is row `rows[i]` (collective)."""
        return self._distill(step, self._conversations(step, rows, file=0), objective, learning_rate, answers)

    def _distill(
        self, step: StepPlan, sequences: dict[int, Any], objective: Any, learning_rate: float, answers: TeacherAnswers | None
    ) -> dict[str, float]:
        from rlflow.learner.distillation import distill, learn

        if answers is None:
            return distill(self._roles, step, sequences, objective, learning_rate)
        return learn(self._learner, step, sequences, objective, learning_rate, self._lesson(answers, list(sequences)))

    def _lesson(self, answers: TeacherAnswers, numbers: list[int]) -> Any:
        from rlflow.learner.distillation import Lesson

        said = dict(zip(numbers, ray.get([answers.of_sequences[i] for i in numbers]), strict=True))
        if answers.head is not None and self._head is None:  # it does not change
            self._head = ray.get(answers.head)
        names = next(iter(said.values())) if said else ()
        return Lesson({name: {i: values[name] for i, values in said.items()} for name in names}, self._head)

    # ---- supervised training

    def train_conversations(self, step: StepPlan, rows: Sequence[int], token_loss: Any, learning_rate: float) -> dict[str, float]:
        """One optimiser step on rows of the training file; sequence i of the plan is row `rows[i]` (collective)."""
        sequences = self._conversations(step, rows, file=0)
        return self._learner.train_step(step, sequences, token_loss, learning_rate=learning_rate)

    def evaluate_conversations(self, step: StepPlan, rows: Sequence[int]) -> dict[str, float]:
        """Loss and accuracies on rows of the held-out file, at temperature 1 (collective)."""
        from rlflow.algorithms.losses import held_out_loss

        return self._learner.evaluate(step, self._conversations(step, rows, file=1), held_out_loss, temperature=1.0)

    def _conversations(self, step: StepPlan, rows: Sequence[int], *, file: int) -> dict[int, Any]:
        from rlflow.learner.sequences import TrainSequence

        mine = {i for micro in step.ranks[self._rank] for i in micro.sequences}
        data = self._files[file]
        return {i: TrainSequence(*data[rows[i]], label=data.label(rows[i])) for i in mine}

    # ---- preferences

    def train_preferences(self, planned: Any, mismatched: Any, objective: Any, learning_rate: float) -> dict[str, float]:
        """One optimiser step on rows of the training file (collective)."""
        objective = self._with_kl(objective, mismatched, file=0)
        sequences, known = self._with_reference(planned, objective, file=0)
        return self._learner.train_step(planned.step, sequences, objective, learning_rate=learning_rate, known=known)

    def evaluate_preferences(self, planned: Any, mismatched: Any, objective: Any) -> dict[str, float]:
        """The same metrics on rows of the held-out file, without training (collective)."""
        objective = self._with_kl(objective, mismatched, file=1)
        sequences, known = self._with_reference(planned, objective, file=1)
        return self._learner.evaluate(planned.step, sequences, objective, known=known)

    def store_reference(self, passes: Sequence[Any], file: int) -> None:
        """Score a whole file with the present weights, and write the log-probabilities beside it (collective)."""
        from rlflow.learner.stored_logprobs import store_logprobs

        def scores() -> Any:
            for planned in passes:
                found = self._learner.score(planned.step, self._conversations(planned.step, planned.rows, file=file))
                yield {planned.rows[i]: logprobs for i, logprobs in found.items()}

        store_logprobs(Path(self._references[file]), scores())

    def _with_kl(self, objective: Any, mismatched: Any, *, file: int) -> Any:
        """KTO's objective with its divergence, estimated over the whole step on all ranks."""
        if mismatched is None:
            return objective
        from rlflow.algorithms.kto_loss import mismatched_kl

        sequences, known = self._with_reference(mismatched, objective, file=file)
        kl = self._learner.evaluate(mismatched.step, sequences, mismatched_kl, known=known)["kl"]
        return replace(objective, kl=max(0.0, kl))

    def _with_reference(self, planned: Any, objective: Any, *, file: int) -> tuple[dict[int, Any], dict[str, Any]]:
        """This rank's sequences, and the reference's log-probabilities of them if the objective needs those."""
        sequences = self._conversations(planned.step, planned.rows, file=file)
        if not objective.needs_reference:
            return sequences, {}
        if not self._references:
            return sequences, {"reference_logprobs": self._learner.score(planned.step, sequences, reference=True)}
        from rlflow.learner.stored_logprobs import StoredLogprobs

        stored = StoredLogprobs(Path(self._references[file]))
        return sequences, {"reference_logprobs": {i: stored[planned.rows[i]] for i in sequences}}

    # ---- weights, memory, checkpoints

    def write_bucket(self, index: int) -> Any:
        """Gather a bucket and return its handle (collective)."""
        return self._learner.exporter.write_bucket(index)

    def release_buffer(self) -> None:
        """Free the send buffer."""
        self._learner.exporter.release()

    def move(self, residency: str) -> None:
        """Bring the states to `offloaded`, `weights` or `full`."""
        self._learner.move(residency)

    def memory_gib(self) -> float:
        """Memory in use on this rank's device by all processes, in GiB; 0 on CPU."""
        from rlflow.weights.buffers import device_memory_gib

        return device_memory_gib()

    def save(self, state: str, model: str, client_state: dict[str, Any]) -> None:
        """Write the training state and the model directory (collective)."""
        from transformers import AutoTokenizer

        self._roles.save(Path(state), client_state)
        self._learner.save_model(Path(model), AutoTokenizer.from_pretrained(self._tokenizer_path))

    def load(self, state: str) -> dict[str, Any]:
        """Restore the training state (collective)."""
        return self._roles.load(Path(state))

    def close(self) -> None:
        """Free the engines."""
        self._roles.close()


def _open_conversations(path: str) -> Any:
    from rlflow.data.tokenized import ConversationSet
    from rlflow.data.windows import Windows

    return Windows(path) if os.path.isdir(path) else ConversationSet(path)
