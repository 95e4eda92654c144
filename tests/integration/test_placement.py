"""GPUs as Ray gives them to actors. Ray is real, its nodes and their GPUs are only said to be there."""

import asyncio
import os

import pytest
import ray
from ray.cluster_utils import Cluster

from rlflow.cluster.devices import plan_devices
from rlflow.cluster.placement import Placement
from rlflow.errors import RolloutError

pytestmark = pytest.mark.integration


class Actor:
    def __init__(self, label):
        self.label = label

    def place(self):
        return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(scope="module", autouse=True)
def nodes():
    """One of three GPUs, one of a single one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 3, "include_dashboard": False})
        cluster.add_node(num_cpus=8, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
        ray.shutdown()
        cluster.shutdown()


def placed(engines, size):
    plan = plan_devices(device="gpu", learner_ranks=4, rollout_workers=engines, tensor_parallel_size=size, reward_workers=0)
    return plan, Placement("placed", plan)


def told(placement, seat):
    return asyncio.run(placement.gpus_of(seat))


def test_an_engine_over_two_gpus_is_told_those_of_the_ranks_that_share_them():
    plan, placement = placed(1, 2)
    try:
        (seat,) = plan.seats_of("rollout")
        gpus = told(placement, seat)
        ranks = [placement.start(Actor, rank) for rank in plan.seats_of("learner")]
        engine = placement.start(Actor, seat)
        (node, first), (other, second), *_ = ray.get([rank.place.remote() for rank in ranks])
        assert ray.get(engine.place.remote()) == (node, first)
        assert gpus == f"{first},{second}" and first != second and node == other
        assert told(placement, plan.seats_of("learner")[0]) is None
    finally:
        placement.remove()


def test_an_engine_whose_gpus_no_node_has_is_refused():
    plan, placement = placed(2, 2)
    try:
        first, second = plan.seats_of("rollout")
        assert told(placement, first)
        with pytest.raises(RolloutError, match="tensor_parallel_size: 2: Ray found no 2 free GPUs on one node for rollout-1"):
            told(placement, second)
    finally:
        placement.remove()
