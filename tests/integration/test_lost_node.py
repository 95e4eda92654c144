"""A node of a cluster goes, and the groups that it held go with it. Ray is real; engines are small actors here."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from rlflow.actors.reward import RewardActor, RewardSetup
from rlflow.actors.reward_samples import PromptRow
from rlflow.cluster.failure import LearnerLost, unless_lost
from rlflow.cluster.learner_group import LearnerGroup
from rlflow.cluster.sampler import Sampler
from rlflow.data.characters import build_character_tokenizer
from rlflow.rollout.completions import Completion, CompletionGroup, GroupRequest
from rlflow.spec.rewards import SoftOverlongSpec

pytestmark = pytest.mark.integration
TOKENS = 40_000  # too many for Ray to keep them with their owner


@ray.remote(num_cpus=0)
class Engine:
    @ray.method(num_returns=2)
    def generate(self, request):
        tokens = np.full(TOKENS, 5, np.int32)
        completions = (Completion(tokens, None, "stop"),)
        group = CompletionGroup(request.slot, request.prompt_id, request.attempt, 0, request.prompt_ids, completions)
        return group.summary(), group


@ray.remote(num_cpus=0)
class Rank:
    def train(self, groups):
        return [len(group.completions) for group in ray.get(groups)]


class Worker:
    def __init__(self, name, place):
        self.name, self.actor = name, Engine.options(resources={place: 0.01}).remote()

    def generate(self, request):
        return self.actor.generate.remote(request)


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"here": 1}, "include_dashboard": False})
    far = cluster.add_node(num_cpus=1, resources={"there": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, far
    ray.shutdown()
    cluster.shutdown()


def test_groups_of_a_lost_node_are_sampled_again(tmp_path, cluster):
    cluster, far = cluster
    build_character_tokenizer("0123456789").save_pretrained(tmp_path)
    reward = SoftOverlongSpec(max_tokens=50_000, cache_tokens=20_000)
    setup = RewardSetup((reward,), str(tmp_path), 50_000, str(tmp_path))
    scorer = ray.remote(RewardActor).options(num_cpus=0, resources={"here": 0.01}).remote("reward", setup)
    lost = []

    class Rewards:
        async def score(self, row, arrays):
            if len(lost) < 3:
                lost.append(arrays)
                if len(lost) == 3:
                    await asyncio.to_thread(cluster.remove_node, far, allow_graceful=False)
                    gone.set()
                await gone.wait()
            scores, texts = scorer.score.remote(row, arrays)
            return await unless_lost(scores), texts

    async def main():
        rollouts = SimpleNamespace(workers=[Worker("far", "there")])
        rollouts.mark_dead = lambda worker, error: worker in rollouts.workers and rollouts.workers.remove(worker)

        async def recover():
            rollouts.workers = [Worker("near", "here")]

        sampler = Sampler(rollouts, Rewards(), groups_in_flight=3, deterministic=False)
        requests = [GroupRequest(slot, 10 + slot, np.zeros(3, np.int32), 1) for slot in range(3)]
        batch = await sampler.sample(requests, lambda prompt_id: PromptRow([], "", {}), recover)
        assert [group.summary.prompt_id for group in batch.groups] == [10, 11, 12]
        assert [group.summary.attempt for group in batch.groups] == [1] * 3
        assert [group.scores[0].total for group in batch.groups] == [-0.5] * 3
        assert [len(text) for (text,) in await sampler.texts(batch.groups)] == [TOKENS] * 3

        learner = LearnerGroup.__new__(LearnerGroup)
        learner._ranks = [Rank.options(resources={"here": 0.01}).remote()]
        assert await learner._all("train", [group.arrays for group in batch.groups]) == [[1, 1, 1]]
        with pytest.raises(LearnerLost, match="samples are gone with a node"):
            await learner._all("train", lost)

    gone = asyncio.Event()
    asyncio.run(main())
