"""From a sampled completion to the sequence the learner trains on."""

import numpy as np

from rlflow.algorithms.policy_batch import PolicySample
from rlflow.learner.sequences import TrainSequence
from rlflow.rollout.completions import CompletionGroup


def policy_sequence(group: CompletionGroup, sample: PolicySample) -> TrainSequence:
    """Prompt and completion as one sequence; the completion is what is trained."""
    completion = group.completions[sample.completion]
    prompt_tokens = len(group.prompt_ids)
    untrained = np.zeros(prompt_tokens, np.float32)
    logprobs = None
    if completion.logprobs is not None:
        logprobs = np.concatenate([np.full(prompt_tokens, np.nan, np.float32), completion.logprobs])
    return TrainSequence(
        token_ids=np.concatenate([group.prompt_ids, completion.token_ids]),
        loss_weights=np.concatenate([untrained, np.ones(len(completion.token_ids), np.float32)]),
        advantage=sample.advantage,
        sampler_logprobs=logprobs,
    )
