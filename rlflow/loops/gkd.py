"""On-policy distillation: train towards a teacher on the student's own completions, or on the rows' answers."""

import random
from dataclasses import dataclass, replace

from rlflow.algorithms.distillation import DistillationObjective, LikeliestTokensJsd, WholeVocabularyJsd
from rlflow.algorithms.policy_batch import plan_unrewarded_batch
from rlflow.cluster.handles import DistillationLearner, Teacher
from rlflow.data.order import RowOrder
from rlflow.loops.batch_metrics import sampling_metrics
from rlflow.loops.conversations import ConversationLengths, plan_conversations
from rlflow.loops.sampling import SamplingLoop, StepResult, sampled_tokens, token_mean_settings
from rlflow.loops.schedule import learning_rate
from rlflow.observe.clock import StepClock
from rlflow.spec.jobs import GkdJob


@dataclass(slots=True)
class GkdLoop(SamplingLoop):
    """A GKD run."""

    spec: GkdJob
    learner: DistillationLearner
    conversations: ConversationLengths | None
    """The rows' answers; None if every step is on-policy."""
    teacher: Teacher | None = None
    """On devices of its own; None if the learner has it."""

    async def take_step(self, step: int, rows: list[int], clock: StepClock) -> StepResult:
        """Train on completions of the student, or on answers of rows."""
        gkd = self.spec.gkd
        objective: DistillationObjective = WholeVocabularyJsd(gkd.beta) if gkd.top_k is None else LikeliestTokensJsd(gkd.beta)
        rate = learning_rate(self.spec.learner, step - 1, self.total_steps)
        if not is_on_policy(self.spec, step):
            return await self._learn_from_answers(objective, rate, clock)
        sampled = await self.sample(step, rows, clock)
        scored, arrays = [group.scored() for group in sampled.groups], [group.arrays for group in sampled.groups]
        settings, answers = token_mean_settings(self.spec), None
        if self.teacher is not None:
            there = self.spec.teacher_learner
            settings_there = replace(settings, num_ranks=there.num_ranks, sequence_parallel=there.sequence_parallel)
            with clock.phase("teacher"):
                answers = await self.teacher.answer_samples(plan_unrewarded_batch(scored, settings_there), arrays)
        batch = plan_unrewarded_batch(scored, settings)
        metrics = await self.learn(clock, lambda: self.learner.distill_samples(batch, arrays, objective, rate, answers))
        metrics |= sampling_metrics(sampled.groups, batch) | {"on_policy": 1}
        return StepResult(metrics, sampled_tokens(sampled), sampled, batch)

    async def _learn_from_answers(self, objective: DistillationObjective, rate: float, clock: StepClock) -> StepResult:
        """Answers have an order of their own: rows may be too long as conversations, but not as prompts."""
        assert self.conversations is not None, "rows without answers"
        lengths = self.conversations
        order = RowOrder(len(lengths.tokens), self.spec.data.seed, self.spec.data.shuffle)
        rows = order.rows(self.state.cursor, self.spec.prompts_per_step)
        plan, said = plan_conversations(lengths, rows, self.spec.learner), None
        if self.teacher is not None:
            there = plan_conversations(lengths, rows, self.spec.teacher_learner)
            with clock.phase("teacher"):
                said = await self.teacher.answer_conversations(there, rows)
        metrics = await self.learn(clock, lambda: self.learner.distill_conversations(plan, rows, objective, rate, said))
        return StepResult(metrics | {"on_policy": 0}, sum(lengths.tokens[row] for row in rows))


def is_on_policy(spec: GkdJob, step: int) -> bool:
    """Whether the student samples for this step: a draw that depends on the run's seed and the step alone."""
    return random.Random(f"{spec.run.seed}/{step}").random() < spec.gkd.on_policy_fraction
