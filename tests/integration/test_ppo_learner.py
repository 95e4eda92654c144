"""Critic and policy of PPO train like plain PyTorch, however the batch is cut up, and whoever holds the device."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.learner.ppo import train_ppo
from rlflow.learner.roles import Roles
from rlflow.spec.algorithm import PpoSpec
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import LoraSpec, ModelSpec
from tests.integration.engines import save_tiny_model
from tests.integration.learner_rank import Rank
from tests.integration.plain_training import TEMPERATURE, load_plain, plain_adamw, plain_logprobs
from tests.integration.stored_batch import StoredBatch, stored_batch

pytestmark = pytest.mark.integration

RATE, CRITIC_RATE = 3e-3, 2e-3
PPO = PpoSpec(gamma=0.97, gae_lambda=0.9, kl_coefficient=0.5, value_clip_range=0.05, epsilon=0.1)
SETTINGS = {"default": PPO, "k3, whitened": PPO.model_copy(update={"kl_estimator": "k3", "whiten_rewards": True})}
ROUNDS, STEPS, EPOCHS = 2, 2, 2


@dataclass(frozen=True)
class Case:
    """One way to train twice on the stored batch."""

    model: str
    ranks: int = 1
    micro_batch_tokens: int = 512
    packing: bool = True
    zero_stage: Any = 1
    takes_turns: bool = False
    lora: LoraSpec | None = None
    settings: str = "default"
    critic: str | None = None
    """A reward model that the critic starts from; None: the policy's model."""

    @property
    def ppo(self) -> PpoSpec:
        return SETTINGS[self.settings]

    @property
    def learner(self) -> LearnerSpec:
        return LearnerSpec(
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            gradient_checkpointing="none",
            max_grad_norm=0.5,
            optimizer=OptimizerSpec(learning_rate=RATE, epsilon=1e-5),
            timeout_s=60.0,
        )

    @property
    def batch(self) -> StoredBatch:
        return stored_batch(
            loss_type="bnpo",
            scale_rewards="none",
            optimizer_steps=STEPS,
            epochs=EPOCHS,
            num_ranks=self.ranks,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


@pytest.fixture(scope="module")
def reward_model(model, tmp_path_factory) -> str:
    """With a head that is not zero, as `kind: rm` writes it."""
    from transformers import AutoModelForSequenceClassification

    directory = str(tmp_path_factory.mktemp("model") / "reward")
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def expected(model) -> Any:
    """Plain training by settings and reward model, each once."""
    return cache(lambda settings, critic: plain_ppo(Case(model, settings=settings, critic=critic)))


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"micro_batch_tokens": 4096, "packing": False},
        {"zero_stage": 3, "takes_turns": True},
        {"ranks": 2},
        {"ranks": 2, "micro_batch_tokens": 4096, "packing": False, "zero_stage": 2, "takes_turns": True},
        {"ranks": 2, "zero_stage": 3},
        {"ranks": 2, "settings": "k3, whitened"},
    ],
    ids=str,
)
def test_equal_to_plain_training(model, groups, expected, cut):
    check(Case(model, **cut), groups, expected)


def check(case, groups, expected):
    results = groups[case.ranks].run(train, case)
    assert all(result == results[0] for result in results), "ranks disagree"
    plain = expected(case.settings, case.critic)
    assert len(results[0]) == len(plain) == ROUNDS * STEPS * EPOCHS
    for step, plain_step in zip(results[0], plain, strict=True):
        # a mean of whitened advantages nearly cancels; what it is made of has the size of 1
        assert {name: step[name] for name in plain_step} == pytest.approx(plain_step, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_a_critic_starts_as_the_reward_model_it_comes_from(model, reward_model, groups, expected, ranks, stage):
    """Its values are that model's scores of what has been said so far, and it trains on from there."""
    case = Case(model, ranks, zero_stage=stage, critic=reward_model)
    values = {i: found for rank in groups[ranks].run(first_values, case) for i, found in rank.items()}
    assert values.keys() == set(case.batch.sequences)
    scorer = load_critic(case)
    scorer.config.pad_token_id = None  # which the batch holds like any other token
    for i in range(0, len(values), 8):
        sequence = case.batch.sequences[i]
        with torch.no_grad():
            scores = [scorer(input_ids=torch.from_numpy(sequence.token_ids[None, :t])).logits.item() for t in sequence.trained]
        assert np.abs(scores).max() > 0.1
        np.testing.assert_allclose(values[i], scores, rtol=1e-4, atol=1e-5)
    check(case, groups, expected)


def test_adapters_of_policy_and_critic_train_however_the_batch_is_cut_up(model, groups):
    """The reference of adapters is the policy without them; the critic's head is trained whole."""
    plain = Case(model, lora=LoraSpec(rank=4))
    one, turns, two = (
        groups[case.ranks].run(train, case)[0]
        for case in (plain, replace(plain, zero_stage=3, takes_turns=True), replace(plain, ranks=2, packing=False))
    )
    for other in (turns, two):
        for step, same in zip(one, other, strict=True):
            smooth = {name: value for name, value in step.items() if not name.endswith("_clipped_fraction")}
            assert {name: same[name] for name in smooth} == pytest.approx(smooth, rel=1e-4, abs=1e-5)
    assert all(step["grad_norm"] > 0 and step["value_grad_norm"] > 0 for step in one)


def test_the_critic_learns_and_its_warm_up_leaves_the_policy_alone(model, groups):
    before, after, metrics = groups[1].run(warm_up, Case(model), 12)[0]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not any("loss" in step for step in metrics)
    losses = [step["value_loss"] for step in metrics]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("ranks", "takes_turns", "lora"), [(1, True, None), (2, False, LoraSpec(rank=4))])
def test_a_checkpoint_holds_both(model, groups, tmp_path, ranks, takes_turns, lora):
    case = Case(model, ranks, takes_turns=takes_turns, lora=lora)
    going_on = groups[ranks].run(train_save_train, case, tmp_path)[0]
    # tensors that torch reads from a file into host memory cannot leave it, hence no turns afterwards on CPU
    assert groups[ranks].run(load_train, replace(case, takes_turns=False), tmp_path)[0] == going_on


# ---- in the processes of the ranks


def build(rank: Rank, case: Case) -> Roles:
    from rlflow.learner.learner import Learner

    spec, info = ModelSpec(path=case.model, dtype="float32", lora=case.lora), rank.info
    critic = case.learner.model_copy(update={"optimizer": OptimizerSpec(learning_rate=CRITIC_RATE, epsilon=1e-5)})
    roles = Roles(takes_turns=case.takes_turns)
    roles.build("policy", lambda: rank.build(spec, case.learner, temperature=TEMPERATURE, keep_reference=True))
    roles.build("critic", partial(Learner, case.critic or case.model, spec, critic, info, role="value"))
    roles.hold("policy")
    return roles


def step_on(roles: Roles, case: Case, *, warms_up: bool = False) -> list[dict[str, float]]:
    batch = case.batch
    steps = batch.plan.plan.steps
    mine = {i for step in steps for micro in step.ranks[roles["policy"]._info.rank] for i in micro.sequences}
    sequences = {i: batch.sequences[i] for i in mine}
    rewards = {i: batch.plan.samples[i].advantage for i in mine}
    rates = [] if warms_up else [RATE] * len(steps)
    return train_ppo(roles, steps, sequences, rewards, case.ppo, rates, [CRITIC_RATE] * len(steps))


def train(rank: Rank, case: Case) -> list[dict[str, float]]:
    roles = build(rank, case)
    return [metrics for _ in range(ROUNDS) for metrics in step_on(roles, case)]


def first_values(rank: Rank, case: Case) -> dict[int, np.ndarray]:
    critic, batch = build(rank, case)["critic"], case.batch
    return {i: values.numpy() for i, values in critic.score_all(batch.plan.plan.steps, batch.sequences).items()}


def warm_up(rank: Rank, case: Case, rounds: int) -> tuple[Any, ...]:
    roles = build(rank, case)
    before = rank.weights()
    metrics = [metrics for _ in range(rounds) for metrics in step_on(roles, case, warms_up=True)]
    return before, rank.weights(), metrics


def train_save_train(rank: Rank, case: Case, directory: Any) -> list[dict[str, float]]:
    roles = build(rank, case)
    step_on(roles, case)
    roles.save(directory, {"step": 1})
    return step_on(roles, case)


def load_train(rank: Rank, case: Case, directory: Any) -> list[dict[str, float]]:
    roles = build(rank, case)
    assert roles.load(directory) == {"step": 1}
    return step_on(roles, case)


# ---- the same with transformers and torch alone, formulas spelled out


def load_critic(case: Case) -> Any:
    from transformers import AutoModelForSequenceClassification

    critic = AutoModelForSequenceClassification.from_pretrained(
        case.critic or case.model, dtype=torch.float32, attn_implementation="eager", num_labels=1
    )
    if case.critic is None:
        torch.nn.init.zeros_(critic.score.weight)
    return critic


def plain_ppo(case: Case) -> list[dict[str, float]]:
    path, batch, spec = case.model, case.batch, case.learner
    policy, reference, critic = load_plain(path), load_plain(path), load_critic(case)
    optimizers = [plain_adamw(policy, spec, RATE), plain_adamw(critic, spec, CRITIC_RATE)]
    metrics = []
    for _ in range(ROUNDS):
        with torch.no_grad():
            old = {i: plain_logprobs(policy, s) for i, s in batch.sequences.items()}
            ratios = {i: old[i] - plain_logprobs(reference, s) for i, s in batch.sequences.items()}
            kl = ratios if case.ppo.kl_estimator == "k1" else {i: ((-r).exp() + r - 1).clamp(max=10) for i, r in ratios.items()}
            values = {i: _values(critic, s) for i, s in batch.sequences.items()}
        rewards = {i: -PPO.kl_coefficient * kl[i] for i in kl}
        for i in rewards:
            rewards[i][-1] += batch.plan.samples[i].advantage
        if case.ppo.whiten_rewards:
            scale = torch.cat(list(rewards.values())).std()
            shift = torch.cat(list(rewards.values())).mean()
            rewards = {i: (r - shift) / scale + shift for i, r in rewards.items()}
        advantages = {i: _gae(rewards[i], values[i]) for i in rewards}
        returns = {i: advantages[i] + values[i] for i in advantages}
        flat, flat_returns = torch.cat(list(advantages.values())), torch.cat(list(returns.values()))
        whitened = {i: (a - flat.mean()) / (flat.var() + 1e-8).sqrt() for i, a in advantages.items()}
        common = {
            "kl_mean": torch.cat(list(kl.values())).mean().item(),
            "advantage_std": flat.std().item(),
            "returns_mean": flat_returns.mean().item(),
            "explained_variance": 1 - (flat_returns - torch.cat(list(values.values()))).var().item() / flat_returns.var().item(),
        }
        for step in batch.plan.plan.steps:
            members = sorted(step.token_weights)
            tokens = sum(len(old[i]) for i in members)
            value_loss = torch.tensor(0.0)
            policy_loss = torch.tensor(0.0)
            for i in members:
                new = _values(critic, batch.sequences[i])
                clipped = torch.clamp(new, values[i] - PPO.value_clip_range, values[i] + PPO.value_clip_range)
                value_loss = value_loss + 0.5 * torch.max((new - returns[i]) ** 2, (clipped - returns[i]) ** 2).sum() / tokens
                ratio = (plain_logprobs(policy, batch.sequences[i]) - old[i]).exp()
                gain = torch.min(ratio * whitened[i], ratio.clamp(0.9, 1.1) * whitened[i])
                policy_loss = policy_loss - gain.sum() / tokens
            value_norm = _step(value_loss, critic, optimizers[1], spec)
            norm = _step(policy_loss, policy, optimizers[0], spec)
            of_step = {
                "value_loss": value_loss.item(),
                "value_grad_norm": value_norm,
                "loss": policy_loss.item(),
                "grad_norm": norm,
            }
            metrics.append(common | of_step)
    return metrics


def _values(critic: Any, sequence: Any) -> torch.Tensor:
    hidden = critic.model(input_ids=torch.from_numpy(sequence.token_ids)[None]).last_hidden_state
    return critic.score(hidden)[0, sequence.trained - 1, 0]


def _gae(rewards: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    after = [*values.tolist()[1:], 0.0]
    advantages = []
    for t in range(len(rewards)):
        later = range(t, len(rewards))
        deltas = [float(rewards[u]) + PPO.gamma * after[u] - float(values[u]) for u in later]
        advantages.append(sum((PPO.gamma * PPO.gae_lambda) ** (u - t) * d for u, d in zip(later, deltas, strict=True)))
    return torch.tensor(advantages)


def _step(loss: torch.Tensor, model: Any, optimizer: torch.optim.Optimizer, spec: LearnerSpec) -> float:
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()
