"""The Ray actor of one reward worker."""

from dataclasses import dataclass

import ray

from rlflow.actors.reward_samples import PromptRow, reward_samples
from rlflow.rewards.scorer import RewardScorer, SampleScore
from rlflow.rollout.completions import CompletionGroup
from rlflow.spec.rewards import RewardSpec, on_processor


@dataclass(frozen=True, slots=True)
class RewardSetup:
    """What a reward worker is started with."""

    rewards: tuple[RewardSpec, ...]
    tokenizer_path: str
    max_completion_tokens: int
    working_dir: str
    num_threads: int | None = None
    """CPU threads of a judge's engine; None leaves torch's default."""


class RewardActor:
    """Decodes completions, once, and delegates to `rlflow.rewards.RewardScorer`."""

    def __init__(self, label: str, setup: RewardSetup) -> None:
        from tokenizers import Tokenizer

        self._label = label
        # Not through transformers, whose import takes longer than all else that a worker with small rewards needs.
        self._tokenizer = Tokenizer.from_file(f"{setup.tokenizer_path}/tokenizer.json")
        rewards = setup.rewards if ray.get_gpu_ids() else on_processor(setup.rewards)
        self._scorer = RewardScorer(rewards, max_completion_tokens=setup.max_completion_tokens, cwd=setup.working_dir)

    def __repr__(self) -> str:
        return self._label

    def ready(self) -> None:
        """Returns once the worker is up."""

    @ray.method(num_returns=2)
    def score(self, row: PromptRow, group: CompletionGroup) -> tuple[list[SampleScore], list[str]]:
        """Score a group: scores for the controller, and the answers' texts."""
        sampled = self._tokenizer.decode_batch([list(c.token_ids) for c in group.completions])
        texts = [row.answer_start + text for text in sampled]
        return self._scorer.score(reward_samples(row, group, texts)), texts

    def close(self) -> None:
        """Stop the plugin processes."""
        self._scorer.close()
