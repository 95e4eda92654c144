"""Every variant of the GRPO family improves the reward: the job's own loop on one engine and one learner rank, without Ray."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlflow.actors.policy_sequences import policy_sequence
from rlflow.actors.reward_samples import PromptRow, reward_samples
from rlflow.algorithms.policy_batch import PolicyBatch
from rlflow.cluster.sampler import SampledBatch, SampledGroup
from rlflow.data.order import RowOrder
from rlflow.jobs.prepare import PreparedModel, load_rows, prepare_model, prepare_rows
from rlflow.learner.grpo import sequence_kl, train_policy
from rlflow.loops.grpo import GrpoLoop
from rlflow.loops.state import LoopState
from rlflow.observe.clock import StepClock
from rlflow.observe.run_dir import RunDirectory
from rlflow.rewards.scorer import RewardScorer
from rlflow.rollout.completions import CompletionGroup, GroupRequest
from rlflow.rollout.engine import RolloutEngine
from rlflow.spec.jobs import GrpoJob
from rlflow.spec.load import parse_job
from rlflow.spec.model import ModelSpec
from rlflow.spec.rewards import on_processor
from tests.integration.engines import RankGroup, Worker, rollout_engine
from tests.integration.job_runs import LEARNER, grpo_spec
from tests.integration.learner_rank import Rank

pytestmark = pytest.mark.integration

STEPS = 6
GAIN = 0.25
"""Of `eval_format`, a share of 128 completions: 0.06 at the start."""
TWO_STEPS = {"optimizer_steps_per_batch": 2}
"""So that there is a ratio to bound."""
GSPO = {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, **TWO_STEPS}
VARIANTS = {
    "rloo": {"advantage_estimator": "rloo", "kl_coefficient": 0.01, "kl_in": "reward", "kl_estimator": "k1"},
    "reinforce_plus_plus": {"advantage_estimator": "reinforce_plus_plus"},
    "reinforce_plus_plus_baseline": {"advantage_estimator": "reinforce_plus_plus_baseline"},
    "gdpo": {"advantage_estimator": "gdpo"},
    "gspo": {"importance_sampling": "sequence", **GSPO},
    "gspo_token": {"importance_sampling": "sequence_token", **GSPO},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.05, **TWO_STEPS},
    "sapo": {"loss_type": "sapo", **TWO_STEPS},
    "dual_clip": {"dual_clip": 1.2, **TWO_STEPS},
    "entropy": {"top_entropy_quantile": 0.5, "entropy_coefficient": 0.005, **TWO_STEPS},
}
TRACES = {
    "rloo": "kl_mean",
    **dict.fromkeys(("gspo", "gspo_token", "cispo", "dual_clip"), "ratio_clipped_fraction"),
    "entropy": "entropy_masked_fraction",
}
"""A metric that shows the variant at work."""


def job(grpo: dict[str, Any]) -> GrpoJob:
    """A spec as a user writes it: answer in digits, and briefly."""
    document = grpo_spec(
        grpo=grpo,
        rollout={"num_generations": 8, "max_completion_tokens": 4},
        rewards=[{"type": "format", "pattern": "[0-9]+"}, {"type": "soft_overlong", "cache_tokens": 3, "weight": 0.5}],
        prompts_per_step=16,
        steps=STEPS,
        learner={**LEARNER, "optimizer": {"learning_rate": 0.006}},
        evaluate={"num_samples": 8},
    )
    spec = parse_job(document)
    assert isinstance(spec, GrpoJob)
    return spec


@dataclass(frozen=True)
class Stage:
    """What all variants share."""

    model: PreparedModel
    engine: Worker
    ranks: RankGroup
    rewards: RewardScorer
    prompts: Any
    held_out: Any


@pytest.fixture(scope="module")
def stage(tmp_path_factory, groups) -> Iterator[Stage]:
    spec, run = job({}), RunDirectory(tmp_path_factory.mktemp("run"))
    model = prepare_model(spec, run)
    prompts, held_out = (prepare_rows(rows, model.tokenizer, spec, run) for rows in load_rows(spec, run))
    with (
        RewardScorer(on_processor(spec.rewards), max_completion_tokens=spec.rollout.max_completion_tokens) as rewards,
        rollout_engine(model.path, spec.rollout, max_model_tokens=64) as engine,
    ):
        yield Stage(model, engine, groups[1], rewards, prompts, held_out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reward_rises(stage, variant):
    spec = job(VARIANTS[variant])
    rows = train(stage, spec)
    start, end, steps = rows[0], rows[-1], rows[1:]
    assert end["eval_format"] > start["eval_format"] + GAIN
    assert end["eval_soft_overlong"] > start["eval_soft_overlong"]
    assert variant not in TRACES or any(row[TRACES[variant]] > 0 for row in steps)
    assert all(row["sampler_logprob_abs_diff_mean"] < 1e-4 for row in steps), "the engine samples with the learner's weights"


def train(stage: Stage, spec: GrpoJob) -> list[dict[str, Any]]:
    """The spec's whole run, from the model's first weights. Its rows of metrics."""
    model = ModelSpec(path=stage.model.path, dtype=spec.model.dtype)
    stage.ranks.run(build, model, spec)
    journal = Journal()
    loop = GrpoLoop(
        spec=spec,
        total_steps=STEPS,
        learner=Learner(stage.ranks),
        sampler=Sampler(stage),
        hand_over=HandOver(stage.engine, stage.ranks),
        prompts=stage.prompts,
        held_out=stage.held_out,
        order=RowOrder(len(stage.prompts), spec.data.seed, spec.data.shuffle),
        checkpoints=NoCheckpoints(),
        journal=journal,
        state=LoopState(),
    )
    asyncio.run(loop.run())
    return journal.rows


# ---- what the loop asks of the cluster


@dataclass(frozen=True)
class Sampler:
    """One engine, and the rewards beside it. A reference to a group's arrays is the group itself."""

    stage: Stage

    async def sample(self, requests: Sequence[GroupRequest], row_of: Any, recover: Any) -> SampledBatch:
        groups = self.stage.engine.run(generate, requests)
        return SampledBatch([self._score(group, row_of(group.prompt_id)) for group in groups], 0.0, 0.0)

    def _score(self, group: CompletionGroup, row: PromptRow) -> SampledGroup:
        arrays: Any = group
        decode = self.stage.model.tokenizer.backend_tokenizer.decode_batch  # as reward workers do
        texts: Any = decode([list(completion.token_ids) for completion in group.completions])
        return SampledGroup(group.summary(), self.stage.rewards.score(reward_samples(row, group, texts)), arrays, texts)

    async def texts(self, groups: Sequence[Any]) -> list[list[str]]:
        return [group.texts for group in groups]


@dataclass(frozen=True)
class Learner:
    """One rank."""

    ranks: RankGroup

    async def train_policy(self, batch: Any, groups: Any, token_loss: Any, learning_rates: Any, *, on_policy: bool) -> Any:
        return self.ranks.run(take_steps, batch, groups, token_loss, learning_rates, on_policy)[0]

    async def sequence_kl(self, batch: Any, groups: Any, estimator: Any) -> Any:
        return self.ranks.run(score_kl, batch, groups, estimator)[0]

    async def refresh_reference(self) -> None:
        raise AssertionError("no variant refreshes its reference")


@dataclass
class HandOver:
    """Both always stay: only the weights are handed over."""

    engine: Worker
    ranks: RankGroup
    weight_version: int = 0

    async def to_learning(self) -> None:
        pass

    async def to_sampling(self) -> None:
        buckets = self.ranks.run(weight_buckets)[0]
        self.engine.run(RolloutEngine.begin_update)
        for index, bucket in enumerate(buckets):
            handle = self.ranks.run(write_bucket, index)[0]
            self.engine.run(RolloutEngine.load_bucket, {handle.device: handle}, bucket)
        self.weight_version += 1
        self.engine.run(RolloutEngine.finish_update, self.weight_version)

    def metrics(self) -> dict[str, float]:
        return {}

    async def recover(self) -> None:
        raise AssertionError("the engine has died")

    async def write(self, write: Any) -> None:
        raise AssertionError("there are no checkpoints")


class NoCheckpoints:
    """Never due."""

    def check_evaluation(self, metrics: Any) -> None:
        pass

    def is_due(self, step: int, metrics: Any, *, is_last: bool) -> bool:
        return False

    async def save(self, step: int, state: Any, metrics: Any) -> None:
        raise AssertionError("it is never due")


@dataclass
class Journal:
    """Keeps the metrics."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, total_steps: int) -> None:
        pass

    def clock(self) -> StepClock:
        return StepClock()

    def step(self, step: int, metrics: Any, clock: Any) -> None:
        self.rows.append({"step": step, **metrics})

    def completions(self, step: int, rows: Any) -> None:
        pass

    def ended(self, early: str | None) -> None:
        assert early is None

    def note(self, message: str) -> None:
        raise AssertionError(message)


# ---- in the engine's process


async def generate(engine: RolloutEngine, requests: Sequence[GroupRequest]) -> list[CompletionGroup]:
    return list(await asyncio.gather(*(engine.generate(request) for request in requests)))


# ---- in the process of the rank


def build(rank: Rank, model: ModelSpec, spec: GrpoJob) -> None:
    keep_reference = spec.grpo.kl_coefficient > 0
    rank.build(model, spec.learner, temperature=spec.rollout.temperature, seed=spec.run.seed, keep_reference=keep_reference)


def take_steps(rank: Rank, batch: PolicyBatch, groups: Any, loss: Any, rates: Any, on_policy: bool) -> list[dict[str, float]]:
    return train_policy(rank.learner, batch.plan.steps, sequences(batch, groups), loss, rates, on_policy=on_policy)


def score_kl(rank: Rank, batch: PolicyBatch, groups: Any, estimator: Any) -> dict[int, float]:
    return sequence_kl(rank.learner, batch.plan.steps, sequences(batch, groups), estimator)


def sequences(batch: PolicyBatch, groups: Sequence[CompletionGroup]) -> dict[int, Any]:
    return {number: policy_sequence(groups[sample.group], sample) for number, sample in enumerate(batch.samples)}


def weight_buckets(rank: Rank) -> Any:
    return rank.learner.exporter.buckets


def write_bucket(rank: Rank, index: int) -> Any:
    return rank.learner.exporter.write_bucket(index)
