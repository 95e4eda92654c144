"""Training on preferences equals plain PyTorch, however the batch is cut up; the reference stays what it was."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.actors.learner import LearnerSetup
from rlflow.algorithms.kto_loss import KtoLoss
from rlflow.algorithms.pair_losses import Cpo, Orpo, PairObjective, Plugin, Sft, Sigmoid, Simpo
from rlflow.algorithms.reward_model_loss import RewardModelLoss
from rlflow.data.arrow_file import write_arrow
from rlflow.data.characters import build_character_tokenizer
from rlflow.data.tokenized import CONVERSATION_SCHEMA, EncodedConversation, conversation_batch
from rlflow.learner.sequences import TrainSequence
from rlflow.loops.preference import plan_scoring, plan_sequences
from rlflow.spec.learner import LearnerSpec, OptimizerSpec
from rlflow.spec.model import LoraSpec, ModelSpec
from tests.integration.engines import save_tiny_model
from tests.integration.learner_rank import Rank

pytestmark = pytest.mark.integration

RELATIVE = 1e-5
LEARNING_RATE = 3e-3
BETA, ALPHA, CENTER = 0.3, 0.5, 0.1
ROWS = 10
OBJECTIVES = {
    "dpo": PairObjective(((Sigmoid(BETA), 1.0), (Sft(), ALPHA))),
    "kto": KtoLoss(BETA, 1.2, 0.8),
    "rm": RewardModelLoss(CENTER),
}
DPO_PLUGIN = PairObjective(((Plugin(f"{__name__}:dpo_of_pairs", {"beta": BETA, "alpha": ALPHA}), 1.0),))
"""That of dpo, as a user would write it."""
STEPS = 2
"""On the same batch: the second has a policy that differs from the reference."""


def sequences() -> list[TrainSequence]:
    """Twenty: ten pairs, or ten labelled answers each followed by a mismatched one."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(ROWS):
        prompt, label = random.integers(3, 60, random.integers(3, 10)), float(random.integers(0, 2))
        for _ in range(2):
            answer = random.integers(3, 60, random.integers(2, 30))
            weights = np.repeat(np.array([0, 1], np.float32), [len(prompt), len(answer)])
            found.append(TrainSequence(np.concatenate([prompt, answer]), weights, label=label))
    return found


DATA = sequences()
TOKENS = [len(sequence.token_ids) for sequence in DATA]


@dataclass(frozen=True)
class Case:
    """One way to train on the batch."""

    kind: str
    model: str
    ranks: int = 1
    micro_batch_tokens: int = 128
    packing: bool = True
    lora: LoraSpec | None = None
    objective: Any = None
    """None: that of the kind."""
    rows: tuple[int, ...] = tuple(range(ROWS))
    """Of the data, in the order of the step."""
    stores_reference: bool = False
    zero_stage: Any = 3
    sequence_parallel: int = 1
    expert_parallel: int = 1

    @property
    def start(self) -> ModelSpec:
        return ModelSpec(path=self.model, dtype="float32", lora=self.lora)

    @property
    def learner(self) -> LearnerSpec:
        return LearnerSpec(
            num_ranks=self.ranks,
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            sequence_parallel=self.sequence_parallel,
            expert_parallel=self.expert_parallel,
            gradient_checkpointing="none",
            max_grad_norm=1e6,
            optimizer=OptimizerSpec(learning_rate=LEARNING_RATE, epsilon=1e-5, weight_decay=0.0),
            timeout_s=60.0,
        )

    @property
    def setup(self) -> LearnerSetup:
        """As the job's."""
        folder = Path(self.model).parent
        needs_reference = (self.objective or OBJECTIVES[self.kind]).needs_reference
        return LearnerSetup(
            model_path=self.model,
            tokenizer_path="",
            model=self.start,
            learner=self.learner,
            temperature=1.0,
            seed=0,
            keep_reference=needs_reference and not self.stores_reference,
            num_threads=None,
            conversations=(str(folder / "rows.arrow"),),
            references=(str(folder / f"{self.kind}-{self.ranks}.reference.arrow"),) if self.stores_reference else (),
            options={"role": "value"} if self.kind == "rm" else {},
        )


def write_rows(folder: Path) -> None:
    """The data, beside a model in `folder`."""
    rows = [EncodedConversation("", sequence.token_ids.tolist(), sequence.loss_weights) for sequence in DATA]
    batch = conversation_batch(rows, [sequence.label for sequence in DATA])
    write_arrow(folder / "rows.arrow", CONVERSATION_SCHEMA, [batch], len(rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Language models, and a reward model whose head is not zero; the data beside them."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("models")
    write_rows(folder)
    policy = save_tiny_model(folder / "policy", tied=True)
    experts = save_tiny_model(folder / "experts", tied=False, experts=4)
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).save_pretrained(folder / "reward")
    return {"dpo": policy, "kto": policy, "rm": str(folder / "reward"), "experts": experts}


@pytest.fixture(scope="module")
def expected(models) -> Any:
    """Plain training by kind and model, each once."""
    return cache(plain_training)


@pytest.mark.parametrize(("ranks", "budget", "packing"), list(product((1, 2), (128, 4096), (True, False))))
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_cutting_the_batch_changes_nothing(models, groups, expected, kind, ranks, budget, packing):
    check(Case(kind, models[kind], ranks, budget, packing), groups, expected)


def check(case, groups, expected):
    if case.stores_reference:
        groups[case.ranks].run(store_reference, case)
    results = groups[case.ranks].run(train, case)
    plain_metrics, plain_weights = expected(case.kind, case.model)
    for metrics, _ in results:
        for ours, plain in zip(metrics, plain_metrics, strict=True):
            assert {name: ours[name] for name in plain} == pytest.approx(plain, rel=RELATIVE, abs=RELATIVE)
    check_weights(results[0][1], plain_weights)


def check_weights(weights, plain_weights):
    for name, weight in plain_weights.items():
        np.testing.assert_allclose(weights[name], weight, rtol=RELATIVE, atol=2 * RELATIVE, err_msg=name)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_stored_reference_changes_nothing(models, groups, expected, kind, ranks):
    check(Case(kind, models[kind], ranks, stores_reference=True), groups, expected)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_ranks_that_share_sequences_train_as_one(models, groups, expected, kind):
    check(Case(kind, models[kind], 2, sequence_parallel=2), groups, expected)
    check(Case(kind, models["experts"], 2, sequence_parallel=2, stores_reference=True, zero_stage=1), groups, expected)


@pytest.mark.parametrize(("kind", "stage"), [("dpo", 3), ("kto", 1)])
def test_experts_spread_over_ranks_train_as_one(models, groups, expected, kind, stage):
    check(Case(kind, models["experts"], 2, expert_parallel=2, zero_stage=stage), groups, expected)


def test_losses_without_reference_do_not_depend_on_the_ranks(models, groups):
    objective = PairObjective(((Simpo(), 1.0), (Orpo(), 0.7), (Cpo(), 0.4)))
    (one, weights), (two, other_weights) = (
        groups[ranks].run(train, Case("dpo", models["dpo"], ranks, objective=objective))[0] for ranks in (1, 2)
    )
    for step, other in zip(one, two, strict=True):
        assert other == pytest.approx(step, rel=RELATIVE, abs=RELATIVE)
    check_weights(other_weights, weights)


def dpo_of_pairs(pairs, beta, alpha):
    margins = pairs.chosen_P - pairs.reference_chosen_P - (pairs.rejected_P - pairs.reference_rejected_P)
    return torch.log1p(torch.exp(-beta * margins)) - alpha * pairs.chosen_P / pairs.chosen_tokens_P


def test_a_plugin_trains_on_what_the_losses_here_do(models, groups, expected):
    metrics, weights = groups[1].run(train, Case("dpo", models["dpo"], objective=DPO_PLUGIN))[0]
    plain_metrics, plain_weights = expected("dpo", models["dpo"])
    for ours, plain in zip(metrics, plain_metrics, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((plain["loss"], plain["grad_norm"]), rel=RELATIVE)
        # its rewards are log-ratios
        assert BETA * ours["reward_margin_mean"] == pytest.approx(plain["reward_margin_mean"], rel=RELATIVE, abs=RELATIVE)
    check_weights(weights, plain_weights)


def test_the_order_of_a_step_means_nothing_to_kto(models, groups):
    shuffled = tuple(np.random.default_rng(2).permutation(ROWS).tolist())
    case = Case("kto", models["kto"], ranks=2)
    (metrics, weights), (others, other_weights) = (
        groups[2].run(train, replace(case, rows=rows))[0] for rows in (case.rows, shuffled)
    )
    for step, other in zip(metrics, others, strict=True):
        assert other == pytest.approx(step, rel=RELATIVE, abs=RELATIVE)
    check_weights(other_weights, weights)


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 1)])
def test_a_reward_model_with_adapters_is_saved_whole(models, groups, tmp_path, ranks, stage):
    from transformers import AutoModelForSequenceClassification

    case = Case("rm", models["dpo"], ranks, zero_stage=stage, lora=LoraSpec(rank=4))  # a language model: the head is new
    directory = tmp_path / "model"
    before, after = groups[ranks].run(train_and_save, case, directory)[0]
    assert before["rewards_chosen_mean"] == 0 and abs(after["rewards_chosen_mean"]) > 1e-3
    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        _, metrics = plain_rm(model, None)
        chosen = [model(input_ids=torch.from_numpy(s.token_ids)[None]).logits.item() for s in DATA[::2]]
    assert after["preference_accuracy"] == pytest.approx(metrics["preference_accuracy"])
    assert after["rewards_chosen_mean"] == pytest.approx(np.mean(chosen), rel=1e-4)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


# ---- in the processes of the ranks


def train_and_save(rank: Rank, case: Case, directory: Any) -> Any:
    """Held-out metrics of a reward model before and after two steps."""
    learner = rank.build(case.start, case.learner, role="value")
    count, data = len(DATA), dict(enumerate(DATA))
    step = plan_sequences(TOKENS, range(count), case.learner, 2 / count, in_pairs=True).step
    before = learner.evaluate(step, data, OBJECTIVES["rm"])
    for _ in range(2):
        learner.train_step(step, data, OBJECTIVES["rm"], learning_rate=0.02)
    learner.save_model(directory, build_character_tokenizer("0"))
    return before, learner.evaluate(step, data, OBJECTIVES["rm"])


def store_reference(rank: Rank, case: Case) -> None:
    """Before any rank trains, as in a job."""
    rank.act(case.setup).store_reference(plan_scoring(TOKENS, case.learner), 0)


def train(rank: Rank, case: Case) -> Any:
    """As a job does it. Metrics of each step, and the weights after the last."""
    actor, objective = rank.act(case.setup), case.objective or OBJECTIVES[case.kind]
    firsts, seconds = [2 * row for row in case.rows], [2 * row + 1 for row in case.rows]
    if case.kind == "kto":
        planned = plan_sequences(TOKENS, firsts, case.learner, 1 / ROWS)
        mismatched = plan_sequences(TOKENS, seconds, case.learner)
    else:
        both = [sequence for row in zip(firsts, seconds, strict=True) for sequence in row]
        planned, mismatched = plan_sequences(TOKENS, both, case.learner, 1 / ROWS, in_pairs=True), None
    metrics = [actor.train_preferences(planned, mismatched, objective, LEARNING_RATE) for _ in range(STEPS)]
    return metrics, rank.weights()


# ---- plain PyTorch, one sequence at a time


def plain_training(kind: str, path: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(1)
    factory: Any = AutoModelForSequenceClassification if kind == "rm" else AutoModelForCausalLM
    model = factory.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    reference = None if kind == "rm" else factory.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=OptimizerSpec().betas, eps=1e-5, weight_decay=0.0)
    metrics = []
    for _ in range(STEPS):
        losses, more = PLAIN[kind](model, reference)
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
        optimizer.zero_grad()
        metrics.append({"loss": loss.item(), "grad_norm": norm.item(), **more})
    return metrics, {name: p.detach().numpy() for name, p in model.named_parameters()}


def answer_logprob(model: Any, sequence: TrainSequence) -> Any:
    ids = torch.from_numpy(sequence.token_ids)
    logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return logprobs[torch.from_numpy(sequence.loss_weights[1:]) > 0].sum()


def log_ratios(model: Any, reference: Any) -> list[Any]:
    with torch.no_grad():
        references = [answer_logprob(reference, sequence) for sequence in DATA]
    return [answer_logprob(model, sequence) - logprob for sequence, logprob in zip(DATA, references, strict=True)]


def plain_dpo(model: Any, reference: Any) -> Any:
    ratios = log_ratios(model, reference)
    losses = []
    for index, (chosen, rejected) in enumerate(zip(ratios[::2], ratios[1::2], strict=True)):
        answer = DATA[2 * index]
        likelihood = answer_logprob(model, answer) / answer.loss_weights.sum()
        losses.append(torch.log1p(torch.exp(-BETA * (chosen - rejected))) - ALPHA * likelihood)
    margin = sum(c.item() - r.item() for c, r in zip(ratios[::2], ratios[1::2], strict=True)) * BETA / len(losses)
    return losses, {"reward_margin_mean": margin}


def plain_kto(model: Any, reference: Any) -> Any:
    ratios = log_ratios(model, reference)
    kl = max(0.0, sum(ratio.item() for ratio in ratios[1::2]) / len(ratios[1::2]))
    losses = []
    for sequence, ratio in zip(DATA[::2], ratios[::2], strict=True):
        sign, weight = (1, 1.2) if sequence.label else (-1, 0.8)
        losses.append(weight * (1 - torch.sigmoid(sign * BETA * (ratio - kl))))
    return losses, {"kto_kl": kl}


def plain_rm(model: Any, reference: Any) -> Any:
    scores = [model(input_ids=torch.from_numpy(sequence.token_ids)[None]).logits[0, 0] for sequence in DATA]
    losses = []
    for index, (chosen, rejected) in enumerate(zip(scores[::2], scores[1::2], strict=True)):
        margin = DATA[2 * index].label
        losses.append(torch.log1p(torch.exp(margin - chosen + rejected)) + CENTER * (chosen + rejected) ** 2)
    right = sum(c.item() > r.item() for c, r in zip(scores[::2], scores[1::2], strict=True))
    return losses, {"preference_accuracy": right / len(losses)}


PLAIN = {"dpo": plain_dpo, "kto": plain_kto, "rm": plain_rm}
