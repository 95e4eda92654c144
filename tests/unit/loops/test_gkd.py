from rlflow.loops.gkd import is_on_policy
from rlflow.spec.jobs import GkdJob


def job(fraction, seed=0):
    fields = {
        "kind": "gkd",
        "run": {"name": "try", "seed": seed},
        "model": {"path": "m"},
        "teacher": {"path": "t"},
        "data": {"sources": ["a.csv"]},
        "gkd": {"on_policy_fraction": fraction},
        "steps": 1,
    }
    return GkdJob.model_validate(fields)


def test_the_share_of_on_policy_steps():
    def share(fraction, seed=0):
        return sum(is_on_policy(job(fraction, seed), step) for step in range(1, 1001)) / 1000

    assert share(0.0) == 0 and share(1.0) == 1
    assert abs(share(0.3) - 0.3) < 0.05


def test_a_resumed_run_draws_the_same_and_another_seed_others():
    def draws(seed):
        return [is_on_policy(job(0.5, seed), step) for step in range(1, 65)]

    assert draws(0) == draws(0) != draws(1)
