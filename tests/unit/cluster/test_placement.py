import pytest

from rlflow.cluster.devices import plan_devices
from rlflow.cluster.placement import actor_environment


@pytest.mark.parametrize(
    ("device", "learners", "engines", "own", "expected"),
    [
        ("cpu", 1, 1, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("cpu", 1, 0, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("cpu", 0, 2, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("cpu", 0, 1, {}, {}),
        ("cpu", 1, 1, {"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ("gpu", 1, 1, {}, {}),
    ],
)
def test_threads_wait_asleep_where_cpus_are_shared(device, learners, engines, own, expected):
    plan = plan_devices(device=device, learner_ranks=learners, rollout_workers=engines, tensor_parallel_size=1, reward_workers=1)
    assert actor_environment(plan, own) == expected
