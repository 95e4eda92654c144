import pytest

from rlflow.cluster.devices import plan_devices
from rlflow.cluster.placement import actor_environment


@pytest.mark.parametrize(
    ("device", "own", "expected"),
    [
        ("cpu", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("cpu", {"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ("gpu", {}, {}),
    ],
)
def test_threads_wait_asleep_where_cpus_are_shared(device, own, expected):
    plan = plan_devices(device=device, learner_ranks=1, rollout_workers=1, tensor_parallel_size=1, reward_workers=1)
    assert actor_environment(plan, own) == expected
