"""A penalty for saying the same again (Yeo et al. 2025, "Demystifying Long CoT", as in ms-swift)."""

from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import RepetitionSpec


class RepetitionReward:
    """`max_penalty` (1 - different n-grams / n-grams) of the lower-cased words between white space.

    0 for a completion of fewer than n words.
    """

    def __init__(self, spec: RepetitionSpec) -> None:
        self._ngram, self._max_penalty = spec.ngram, spec.max_penalty

    def __call__(self, sample: RewardSample) -> float:
        words = sample.completion.lower().split()
        ngrams = [tuple(words[i : i + self._ngram]) for i in range(len(words) - self._ngram + 1)]
        if not ngrams:
            return 0.0
        return self._max_penalty * (1.0 - len(set(ngrams)) / len(ngrams))
