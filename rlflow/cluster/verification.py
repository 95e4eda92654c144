"""Proof that weights arrived: new engines are compared with the learner on completions they sample."""

import asyncio
from collections.abc import Sequence

import numpy as np
from ray import ObjectRef

from rlflow.algorithms.losses import PolicyLoss
from rlflow.algorithms.policy_batch import PolicyBatchSettings, ScoredGroup, plan_scoring
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.residency import Residency
from rlflow.cluster.rollout_group import RolloutGroup, RolloutWorker
from rlflow.errors import WeightSyncError
from rlflow.rollout.completions import GroupRequest, GroupSummary

TOLERANCE = {"float32": 0.01, "bfloat16": 0.2}
"""Largest mean |log-probability difference| that is rounding. Lost weights give 0.6 to 14."""
PROBE_PROMPTS = 4
"""Prompts that an engine samples from to be compared."""
_METRIC = "sampler_logprob_abs_diff_mean"


class EngineVerification:
    """After its first sync, an engine samples a few completions from its full distribution, and the learner scores them.

    That all names were reported as loaded proves nothing.
    """

    def __init__(
        self,
        learner: LearnerGroup,
        rollouts: RolloutGroup,
        residency: Residency,
        settings: PolicyBatchSettings,
        *,
        dtype: str,
    ) -> None:
        self._learner, self._rollouts, self._residency = learner, rollouts, residency
        self._settings = settings
        self._tolerance = TOLERANCE[dtype]

    async def verify_new(self, prompts: Sequence[np.ndarray]) -> float | None:
        """Compare engines that have not been compared yet; returns the largest difference. Raises `WeightSyncError`."""
        worst = None
        for worker in [w for w in self._rollouts.workers if not w.is_verified]:
            difference = await self._difference(worker, prompts)
            if not difference <= self._tolerance:
                raise WeightSyncError(
                    f"{worker.name}: after its first weight sync, sampler and learner log-probabilities differ by "
                    f"{difference:.3g} on average (up to {self._tolerance:g} is rounding): the weights did not arrive as sent"
                )
            worker.is_verified = True
            worst = difference if worst is None else max(worst, difference)
        return worst

    async def _difference(self, worker: RolloutWorker, prompts: Sequence[np.ndarray]) -> float:
        requests = [
            GroupRequest(slot, slot, ids, num_completions=2, with_logprobs=True, full_distribution=True)
            for slot, ids in enumerate(prompts)
        ]
        references = [worker.generate(request) for request in requests]
        summaries: list[GroupSummary] = list(await asyncio.gather(*(summary for summary, _ in references)))
        arrays: list[ObjectRef] = [group for _, group in references]
        groups = [ScoredGroup(s.prompt_id, s.prompt_tokens, s.completion_tokens, (False,) * 2, (0.0, 1.0)) for s in summaries]
        batch = plan_scoring(groups, self._settings)
        await self._residency.to_learning()
        metrics = await self._learner.sampler_mismatch(batch, arrays, PolicyLoss())
        await self._residency.to_sampling()
        return metrics[_METRIC]
