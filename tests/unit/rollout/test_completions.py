import numpy as np

from rlflow.rollout.completions import Completion, CompletionGroup, GroupSummary


def test_a_summary_holds_the_scalars():
    completions = (
        Completion(np.arange(3, dtype=np.int32), None, "stop"),
        Completion(np.arange(8, dtype=np.int32), None, "length"),
    )
    group = CompletionGroup(4, 17, 1, 5, np.arange(6, dtype=np.int32), completions)
    assert group.summary() == GroupSummary(
        slot=4,
        prompt_id=17,
        attempt=1,
        weight_version=5,
        prompt_tokens=6,
        completion_tokens=(3, 8),
        finish_reasons=("stop", "length"),
    )
