"""The prompts of a step as requests to the samplers."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from rlflow.rollout.completions import GroupRequest
from rlflow.spec.jobs import RolloutJob

LOGPROBS_EVERY = 8
"""With `sampler_logprobs: sample`, one group in so many reports log-probabilities."""
_EVALUATION_STEP = -1


def training_requests(
    spec: RolloutJob, step: int, rows: Sequence[int], prompt_ids: Callable[[int], np.ndarray], first_slot: int = 0
) -> list[GroupRequest]:
    """One group for each row, in slots from `first_slot`. Seeds only in deterministic runs: seeded requests are slower."""
    mode = spec.logprob_mode
    return [
        GroupRequest(
            slot=slot,
            prompt_id=row,
            prompt_ids=prompt_ids(row),
            num_completions=spec.rollout.num_generations,
            seed=request_seed(spec.run.seed, step, row, slot) if spec.run.deterministic else None,
            with_logprobs=mode == "all" or (mode == "sample" and slot % LOGPROBS_EVERY == 0),
        )
        for slot, row in enumerate(rows, start=first_slot)
    ]


def evaluation_requests(spec: RolloutJob, rows: Sequence[int], prompt_ids: Callable[[int], np.ndarray]) -> list[GroupRequest]:
    """Completions of each held-out row, always with the same seeds, so that evaluations compare models and not luck."""
    temperature = spec.rollout.temperature if spec.evaluate.temperature is None else spec.evaluate.temperature
    return [
        GroupRequest(
            slot=slot,
            prompt_id=row,
            prompt_ids=prompt_ids(row),
            num_completions=spec.evaluate.num_samples,
            seed=request_seed(spec.run.seed, _EVALUATION_STEP, row, slot),
            temperature=temperature,
            top_p=spec.evaluate.top_p,
            max_tokens=spec.evaluate.max_completion_tokens,
        )
        for slot, row in enumerate(rows)
    ]


def request_seed(run_seed: int, step: int, prompt_id: int, slot: int) -> int:
    """A seed for a group, far from all others: completion i of a group uses seed + i."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2
