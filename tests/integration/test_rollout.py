"""What a real vLLM engine returns for a group request."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlflow.data.characters import build_character_tokenizer
from rlflow.errors import EngineDied, RolloutError
from rlflow.learner.export import WeightExporter
from rlflow.rollout.completions import CompletionGroup, GroupRequest
from rlflow.rollout.engine import RolloutEngine
from rlflow.spec.rollout import RolloutSpec
from tests.integration.engines import RemoteError, Worker, rollout_engine, save_tiny_model

pytestmark = pytest.mark.integration

MAX_TOKENS, MAX_MODEL_TOKENS = 16, 1024
STOP_TOKENS = (7, 9)
END_TOKEN = 2
"""Of the tokenizer; vLLM always stops there."""
PROMPT = np.arange(4, 12, dtype=np.int32)
REQUEST = GroupRequest(0, 0, PROMPT, 8, seed=1000)
LONG_REQUEST = replace(REQUEST, num_completions=1024)
"""Takes this model more than half a second."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = build_character_tokenizer("0123456789+=")
    save_tiny_model(directory, tied=True, vocabulary=len(tokenizer))
    tokenizer.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": STOP_TOKENS}))
    return str(directory)


@pytest.fixture(scope="module")
def worker(model) -> Iterator[Worker]:
    """An engine with the model's weights, which has refused to sample without them.

    Started for a temperature that is not 1, so that its log-probabilities are those after scaling; at 1, the weight sync's tests
    compare them.
    """
    spec = RolloutSpec(max_completion_tokens=MAX_TOKENS, temperature=0.7)
    with rollout_engine(model, spec, max_model_tokens=MAX_MODEL_TOKENS) as worker:
        assert "before its first weight sync" in worker.run(failure, REQUEST)
        worker.run(send_weights, model)
        yield worker


def test_an_engine_that_does_not_start_says_why_in_one_line(model):
    with (
        pytest.raises(RemoteError, match=r"RolloutError: vLLM did not start: ValidationError: .*heads.* divisible by .*\(3\)"),
        rollout_engine(model, RolloutSpec(tensor_parallel_size=3), max_model_tokens=64),
    ):
        pass


def test_completions_of_a_group_are_distinct(worker):
    group = worker.run(generate, [REQUEST])[0]
    assert len({c.token_ids.tobytes() for c in group.completions}) == 8
    assert (group.prompt_ids == PROMPT).all()
    assert all(c.token_ids.dtype == np.int32 for c in group.completions)
    assert group.weight_version == 1


def test_a_seed_gives_the_same_completions_in_any_company(worker):
    requests = [replace(REQUEST, slot=i, prompt_id=i, prompt_ids=PROMPT[: 3 + i], seed=100 * i) for i in range(5)]
    together = worker.run(generate, requests)
    backwards = worker.run(generate, requests[::-1])[::-1]
    alone = [worker.run(generate, [request])[0] for request in requests]
    assert _tokens(together) == _tokens(backwards) == _tokens(alone)
    other = worker.run(generate, [replace(REQUEST, seed=5000)])
    assert _tokens(other) != _tokens(worker.run(generate, [REQUEST]))


def test_completion_i_uses_seed_plus_i(worker):
    group, second = worker.run(generate, [REQUEST, replace(REQUEST, num_completions=1, seed=1001)])
    assert (group.completions[1].token_ids == second.completions[0].token_ids).all()


def test_completions_end_at_stop_tokens_or_at_the_limit(worker):
    requests = [replace(REQUEST, slot=i, seed=100 * i) for i in range(8)]
    completions = [c for group in worker.run(generate, requests) for c in group.completions]
    ends = {*STOP_TOKENS, END_TOKEN}
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert {c.token_ids[-1] for c in completions if c.finish_reason == "stop"} == ends
    for completion in completions:
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == MAX_TOKENS
            assert completion.token_ids[-1] not in ends
        assert not ends & set(completion.token_ids[:-1].tolist())


def test_stop_strings_end_completions_and_stay_in_them(worker, model):
    character = build_character_tokenizer("0123456789+=").convert_tokens_to_ids("5")
    requests = [replace(REQUEST, slot=i, seed=100 * i) for i in range(8)]
    spec = RolloutSpec(max_completion_tokens=MAX_TOKENS, stop=("5",))
    completions = [c for group in worker.run(generate, requests, spec) for c in group.completions]
    assert any(c.token_ids[-1] == character and c.finish_reason == "stop" for c in completions)
    assert not any(character in c.token_ids[:-1] for c in completions)
    assert any(character in c.token_ids[:-1] for g in worker.run(generate, requests) for c in g.completions)


def test_temperature_0_is_greedy(worker, model):
    request = replace(REQUEST, num_completions=1, temperature=0.0)
    sampled = worker.run(generate, [request])[0].completions[0].token_ids
    ids = _as_ids(np.concatenate([PROMPT, sampled]))
    likeliest = _load(model)(ids[None]).logits[0].argmax(-1)
    assert (likeliest[len(PROMPT) - 1 : -1].numpy() == sampled).all()


def test_logprobs_only_when_asked_for(worker):
    without, with_logprobs = worker.run(generate, [REQUEST, replace(REQUEST, with_logprobs=True)])
    assert all(c.logprobs is None for c in without.completions)
    for completion in with_logprobs.completions:
        assert completion.logprobs.dtype == np.float32
        assert completion.logprobs.shape == completion.token_ids.shape
    assert _tokens([without]) == _tokens([with_logprobs])


@pytest.mark.parametrize(("temperature", "top_p", "full"), [(1.0, 1.0, False), (0.7, 1.0, False), (0.7, 0.6, True)])
def test_logprobs_are_under_the_distribution_sampled_from(worker, model, temperature, top_p, full):
    request = replace(REQUEST, with_logprobs=True, full_distribution=full)
    spec = RolloutSpec(max_completion_tokens=MAX_TOKENS, temperature=temperature, top_p=top_p)
    group = worker.run(generate, [request], spec)[0]
    assert max(_difference(_load(model), group, temperature)) <= 1e-4


def test_top_p_renormalises_logprobs(worker, model):
    spec = RolloutSpec(max_completion_tokens=MAX_TOKENS, top_p=0.5)
    group = worker.run(generate, [replace(REQUEST, with_logprobs=True)], spec)[0]
    assert max(_difference(_load(model), group, 1.0)) > 0.3


def test_a_prompt_that_does_not_fit_is_an_error(worker):
    request = replace(REQUEST, prompt_id=17, prompt_ids=np.resize(PROMPT, MAX_MODEL_TOKENS + 1))
    message = worker.run(failure, request)
    assert "prompt 17 was refused" in message and str(MAX_MODEL_TOKENS) in message


def test_a_group_that_takes_too_long_is_given_up(worker, model):
    slow = RolloutSpec(max_completion_tokens=1000, generate_timeout_s=0.1)
    message = worker.run(failure, replace(LONG_REQUEST, prompt_id=18), slow)
    assert "prompt 18 took longer than rollout.generate_timeout_s = 0.1 s" in message
    # The sync refuses to end while requests run.
    worker.run(send_weights, model)


def test_an_engine_that_dies_says_so(worker):
    """Last: it ends the engine."""
    expected = "EngineDied: the engine died: RuntimeError: out of memory"
    assert worker.run(failures_around_death) == [expected, expected, expected]


# ---- in the engine's process


async def send_weights(engine: RolloutEngine, model_path: str) -> None:
    exporter = WeightExporter(_load(model_path))
    await engine.begin_update()
    for index, bucket in enumerate(exporter.buckets):
        handle = exporter.write_bucket(index)
        await engine.load_bucket({handle.device: handle}, bucket)
    await engine.finish_update(1)
    exporter.release()


async def generate(
    engine: RolloutEngine, requests: Sequence[GroupRequest], spec: RolloutSpec | None = None
) -> list[CompletionGroup]:
    """All requests at once, with these sampling settings."""
    engine = _with_settings(engine, spec or RolloutSpec(max_completion_tokens=MAX_TOKENS))
    return list(await asyncio.gather(*(engine.generate(request) for request in requests)))


async def failure(engine: RolloutEngine, request: GroupRequest, spec: RolloutSpec | None = None) -> str:
    """The error that the request ends with."""
    with pytest.raises(RolloutError) as caught:
        await generate(engine, [request], spec)
    return f"{type(caught.value).__name__}: {caught.value}"


async def failures_around_death(engine: RolloutEngine) -> list[str]:
    """Errors of a request that is running when a step fails, of one that comes just then, and of a check."""
    long = RolloutSpec(max_completion_tokens=1000)
    running = asyncio.create_task(failure(engine, LONG_REQUEST, long))
    await asyncio.sleep(0.2)
    assert not running.done()

    def break_it(vllm: Any) -> None:
        def fail() -> None:
            raise RuntimeError("out of memory")

        vllm.engine_core.get_output = fail

    await engine.check()
    await engine._engine.call(break_it)
    found = await asyncio.gather(running, failure(engine, replace(REQUEST, prompt_id=1), long))
    try:
        await engine.check()
    except EngineDied as error:
        found.append(f"EngineDied: {error}")
    return found


def _with_settings(engine: RolloutEngine, spec: RolloutSpec) -> RolloutEngine:
    """Another face of the same vLLM engine."""
    other = RolloutEngine(engine._engine, spec, engine._stop_token_ids)
    other.weight_version = engine.weight_version
    return other


def _load(model_path: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def _as_ids(token_ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(token_ids.astype(np.int64))


def _tokens(groups: Sequence[CompletionGroup]) -> list[list[list[int]]]:
    return [[c.token_ids.tolist() for c in group.completions] for group in groups]


def _difference(model: Any, group: CompletionGroup, temperature: float) -> list[float]:
    """Largest log-probability difference of each completion."""
    differences = []
    for completion in group.completions:
        ids = _as_ids(np.concatenate([group.prompt_ids, completion.token_ids]))
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(PROMPT) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(-1, ids[len(PROMPT) :, None])[:, 0].numpy()
        differences.append(float(np.abs(expected - completion.logprobs).max()))
    return differences
