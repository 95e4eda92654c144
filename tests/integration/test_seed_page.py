"""Commands of the Qwen3 page of ms-swift, converted and run on tiny models as `tests.benchmarks.seed_page` runs all of them."""

import pytest

from tests.benchmarks.seed_page import Page, run_step
from tests.benchmarks.seed_page_scale import write_all
from tests.integration.job_runs import metrics

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def page(tmp_path_factory, ray_head) -> Page:
    folder = tmp_path_factory.mktemp("page")
    write_all(folder)
    return Page(folder, cluster=ray_head.driver_env)


def test_adapters_learn_who_they_are(page):
    assert run_step(page, "self_awareness")["exit code"] == 0
    assert [row["step"] for row in metrics(page.folder / "output/self_awareness")] == [1, 2]
    assert (page.folder / page.adapter / "adapter_model.safetensors").is_file()


def test_grpo_is_rewarded(page):
    assert run_step(page, "grpo")["exit code"] == 0
    rows = metrics(page.folder / "output/grpo")
    assert rows[-1]["step"] == 5 and all(row["reward_letters_mean"] > 0 and row["grad_norm"] > 0 for row in rows)
