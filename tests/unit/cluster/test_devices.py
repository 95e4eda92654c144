import pytest

from rlflow.cluster.devices import plan_devices, whole_engines


def plan(**changes):
    settings = {
        "device": "gpu",
        "learner_ranks": 2,
        "rollout_workers": 2,
        "tensor_parallel_size": 1,
        "reward_workers": 1,
    }
    return plan_devices(**{**settings, **changes})


def places(seats):
    return [(seat.index, seat.bundle, seat.devices, seat.share) for seat in seats]


def test_learners_and_engines_share_devices_by_turns():
    devices = plan()
    assert devices.num_devices == 2
    assert devices.bundles == ({"GPU": 1.0, "CPU": 2.0}, {"GPU": 1.0, "CPU": 2.0}, {"CPU": 0.5})
    assert places(devices.seats_of("learner")) == [(0, 0, (0,), 0.5), (1, 1, (1,), 0.5)]
    assert places(devices.seats_of("rollout")) == [(0, 0, (0,), 0.5), (1, 1, (1,), 0.5)]
    assert places(devices.seats_of("reward")) == [(0, 2, (), 0.0)]


def test_an_engine_over_several_devices_sits_on_neighbours():
    devices = plan(learner_ranks=8, rollout_workers=2, tensor_parallel_size=4)
    assert [seat.devices for seat in devices.seats_of("rollout")] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [seat.bundle for seat in devices.seats_of("rollout")] == [0, 4]
    assert devices.num_devices == 8


def test_devices_without_a_second_role_are_booked_whole():
    more_engines = plan(learner_ranks=1, rollout_workers=3)
    assert [seat.share for seat in more_engines.seats_of("learner")] == [0.5]
    assert [seat.share for seat in more_engines.seats_of("rollout")] == [0.5, 1.0, 1.0]
    more_learners = plan(learner_ranks=3, rollout_workers=1)
    assert [seat.share for seat in more_learners.seats_of("learner")] == [0.5, 1.0, 1.0]


def test_supervised_training_has_learners_alone():
    devices = plan(rollout_workers=0, reward_workers=0)
    assert {seat.role for seat in devices.seats} == {"learner"}
    assert [seat.share for seat in devices.seats] == [1.0, 1.0]
    assert len(devices.bundles) == 2


def test_without_gpus_workers_take_turns_on_the_cores():
    devices = plan(device="cpu", learner_ranks=1, rollout_workers=1)
    assert devices.bundles == ({"CPU": 0.5}, {"CPU": 0.5})
    spread = plan(device="cpu", learner_ranks=1, rollout_workers=1, tensor_parallel_size=2)
    assert spread.bundles == ({"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.5})
    assert spread.seats_of("rollout")[0].devices == (0, 1)


@pytest.mark.parametrize(
    ("size", "nodes", "expected"),
    [
        (1, "abab", [0, 2, 1, 3]),
        (2, "aabb", [0, 1, 2, 3]),
        (2, "abab", [0, 2, 1, 3]),
        (2, "abbaa", [0, 3, 1, 2, 4]),
        (2, "abbb", [1, 2, 0, 3]),
        (4, "aaabbbb", [3, 4, 5, 6, 0, 1, 2]),
    ],
)
def test_engines_over_several_devices_are_kept_on_one_node(size, nodes, expected):
    devices = plan(learner_ranks=len(nodes), rollout_workers=len(nodes) // size, tensor_parallel_size=size, judges=[1])
    others = len(devices.bundles) - len(nodes)
    assert others == 2
    kept = [len(nodes) + i for i in range(others)]
    assert whole_engines(devices, nodes + "c" * others) == [*expected, *kept]


@pytest.mark.parametrize("learner_ranks", [1, 2, 5])
@pytest.mark.parametrize("rollout_workers", [0, 1, 2, 4])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("reward_workers", [0, 4])
def test_no_device_is_booked_more_than_whole(learner_ranks, rollout_workers, tensor_parallel_size, reward_workers):
    devices = plan(
        learner_ranks=learner_ranks,
        rollout_workers=rollout_workers,
        tensor_parallel_size=tensor_parallel_size,
        reward_workers=reward_workers,
        rewards_on_devices=True,
    )
    booked = [0.0] * devices.num_devices
    for seat in devices.seats:
        for device in seat.devices:
            booked[device] += seat.share
    assert max(booked) <= 1.0
    assert min(booked) > 0, "a device nobody uses"


def test_reward_workers_with_models_sit_beside_learners_and_engines():
    devices = plan(reward_workers=3, rewards_on_devices=True)
    assert len(devices.bundles) == devices.num_devices == 2
    assert places(devices.seats_of("reward")) == [(0, 0, (0,), 0.25), (1, 1, (1,), 0.3333), (2, 0, (0,), 0.25)]
    assert places(devices.seats_of("learner")) == [(0, 0, (0,), 0.25), (1, 1, (1,), 0.3333)]


def test_judges_have_devices_of_their_own():
    devices = plan(judges=[2, 1])
    assert devices.num_devices == 5
    assert devices.bundles[-2:] == ({"GPU": 2.0, "CPU": 4.0}, {"GPU": 1.0, "CPU": 2.0})
    assert places(devices.seats_of("judge")) == [(0, 3, (2, 3), 1.0), (1, 4, (4,), 1.0)]
    assert places(devices.seats_of("reward")) == [(0, 2, (), 0.0)]


def test_a_teacher_has_devices_of_its_own_before_judges():
    devices = plan(teacher_ranks=2, judges=[1])
    assert devices.num_devices == 5
    assert places(devices.seats_of("teacher")) == [(0, 3, (2,), 1.0), (1, 4, (3,), 1.0)]
    assert places(devices.seats_of("judge")) == [(0, 5, (4,), 1.0)]
