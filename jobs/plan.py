"""`rlflow plan`: where everything will run, and every problem that can be found before it does."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlflow.cluster.devices import DevicePlan
from rlflow.errors import SpecError, UserError
from rlflow.jobs.kinds import KINDS
from rlflow.jobs.memory import MemoryEstimate, estimate_memory
from rlflow.jobs.model_facts import ModelFacts, model_facts
from rlflow.jobs.remedies import remedies
from rlflow.jobs.rewards import judges
from rlflow.jobs.settle import settle
from rlflow.jobs.static_checks import all_models, static_problems
from rlflow.learner.load_model import expert_adapter_problem
from rlflow.spec.jobs import InferJob, Job, RolloutJob, TrainingJob
from rlflow.spec.load import load_job, resolved
from rlflow.spec.model import ModelSpec
from rlflow.spec.rewards import JudgeSpec

_PROCESSES = {
    "learner_states": ("learner", "ranks"),
    "learner_peak": ("learner", "ranks"),
    "rollout": ("rollout", "engines"),
    "rewards": ("reward", "workers"),
    "judges": ("judge", "engines"),
    "teacher": ("teacher", "ranks"),
}
"""Role and name of the processes that a line of the memory table counts."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices a plan is made for."""

    device: Literal["gpu", "cpu"]
    count: int
    """GPUs; on a machine without GPU, CPUs."""
    memory_gib: float
    """Of each GPU; on a machine without GPU, of the machine."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job will do, before it does anything."""

    job: Job
    """With what the spec leaves to `auto` decided."""
    devices: Devices
    placement: DevicePlan | None
    facts: ModelFacts | None
    memory: MemoryEstimate | None
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return {
            "spec": resolved(self.job),
            "devices": asdict(self.devices),
            "placement": None if self.placement is None else asdict(self.placement),
            "model": "unknown" if self.facts is None else asdict(self.facts),
            "memory_gib": "unknown" if self.memory is None else asdict(self.memory),
            "problems": self.problems,
        }

    def render(self) -> RenderableType:
        """The resolved spec, the placement table and memory, for a terminal."""
        spec = Text(json.dumps(resolved(self.job), indent=2, ensure_ascii=False))
        return Group(spec, self._placement_table(), self._memory_table())

    def _placement_table(self) -> Table:
        table = Table("role", "actor", "bundle", "devices", "share of each", title=f"placement on {self.devices.device}")
        for seat in self.placement.seats if self.placement else ():
            devices = ", ".join(f"{self.devices.device} {d}" for d in seat.devices) or "–"
            share = f"{seat.share:g}" if seat.devices else "–"
            table.add_row(seat.role, f"{self.job.run.name}/{seat.role}-{seat.index}", str(seat.bundle), devices, share)
        return table

    def _memory_table(self) -> RenderableType:
        if self.memory is None:
            return Text("memory: unknown, because the model's configuration is neither here nor among the packaged shapes")
        where = "per GPU" if self.devices.device == "gpu" else "of the machine"
        table = Table("memory", f"GiB {where}", title=f"expected memory ({self.devices.memory_gib:.0f} GiB {where})")
        for name, value in asdict(self.memory).items():
            table.add_row(name.replace("_", " ") + self._summed(name), f"{value:.2f}")
        return table

    def _summed(self, name: str) -> str:
        """Of how many processes a line of the memory table is the sum: without GPUs all of them share the machine's memory."""
        if self.placement is None or self.devices.device == "gpu" or name not in _PROCESSES:
            return ""
        role, processes = _PROCESSES[name]
        count = len(self.placement.seats_of(role))
        return f", sum of {count} {processes}" if count > 1 else ""


def plan(path: str, overrides: Sequence[str], assume_gpus: str | None) -> Plan:
    """Plan a spec file for this machine, or for devices given as `8x80` (8 GPUs of 80 GiB). Raises `SpecError`."""
    return plan_job(load_job(path, overrides), parse_devices(assume_gpus) if assume_gpus else local_devices())


def plan_job(job: Job, devices: Devices, earlier_runs: Sequence[str] = ()) -> Plan:
    """Check a job and plan it; `earlier_runs` are those that will have run before it."""
    placed = place_job(job, devices, earlier_runs)
    return replace(placed, problems=list(dict.fromkeys([*static_problems(job, earlier_runs), *placed.problems])))


def place_job(job: Job, devices: Devices, earlier_runs: Sequence[str] = ()) -> Plan:
    """Plan a job that `static_problems` has checked."""
    problems = _device_problems(job, devices)
    placement, facts, others = None, None, {}
    try:
        placement = KINDS[job.kind].devices(job, devices.device)
        problems += _count_problems(placement, devices)
    except UserError as error:
        problems += str(error).splitlines()
    try:
        if job.model.from_run not in earlier_runs:
            facts = model_facts(job.model, Path(job.run.dir))
        others = _other_facts(job, earlier_runs)
    except UserError as error:
        problems += str(error).splitlines()
    on_gpu = devices.device == "gpu"
    settled = settle(job, facts, others, on_gpu=on_gpu, device_gib=devices.memory_gib)
    memory = None
    if facts is not None:
        problems += _shape_problems(job, facts)
        problems += _learner_problems(settled, facts) if isinstance(settled, TrainingJob) else []
        memory = estimate_memory(settled, facts, others, on_gpu=on_gpu, device_gib=devices.memory_gib)
        problems += _memory_problems(memory, devices)
        if memory.peak > devices.memory_gib:
            changes = remedies(job, memory.peak, facts, others, on_gpu=on_gpu, device_gib=devices.memory_gib)
            problems.append(_too_large(memory, devices, changes))
    return Plan(settled, devices, placement, facts, memory, list(dict.fromkeys(problems)))


def parse_devices(text: str) -> Devices:
    """`8x80`: 8 GPUs of 80 GiB each."""
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text)
    if not match or int(match[1]) == 0:
        raise SpecError(f"--assume-gpus {text}: write COUNTxGIB, such as 8x80")
    return Devices("gpu", int(match[1]), float(match[2]))


def local_devices() -> Devices:
    """This machine's GPUs, or its processor and memory."""
    import torch

    if torch.cuda.is_available():
        return Devices("gpu", torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory / 2**30)
    return Devices("cpu", os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _other_facts(job: Job, earlier_runs: Sequence[str]) -> dict[str, ModelFacts]:
    """Facts of the models beside the job's own, as far as they are known, by field."""
    others = {field: model for field, model in all_models(job).items() if field != "model"}
    found = {
        field: model_facts(model, Path(job.run.dir), field)
        for field, model in others.items()
        if model.from_run not in earlier_runs or model.from_run is None
    }
    if isinstance(job, RolloutJob | InferJob):
        found |= {field: _judge_facts(judge, Path(job.run.dir), field) for field, (judge, _) in judges(job).items()}
    return {field: facts for field, facts in found.items() if facts is not None}


def _judge_facts(judge: JudgeSpec, runs: Path, field: str) -> ModelFacts | None:
    """vLLM serves more models than can be counted here."""
    try:
        return model_facts(ModelSpec(path=judge.model), runs, field)
    except UserError:
        return None


def _count_problems(placement: DevicePlan, devices: Devices) -> list[str]:
    if devices.device == "gpu" and placement.num_devices > devices.count:
        ranks, engines = len(placement.seats_of("learner")), len(placement.seats_of("rollout"))
        judges = f" (and {len(found)} of judges)" if (found := placement.seats_of("judge")) else ""
        judges += f" and {len(found)} teacher ranks" if (found := placement.seats_of("teacher")) else ""
        needed = f"{engines} engines{judges} need {placement.num_devices} GPUs, there are {devices.count}"
        if not ranks:
            return [f"rollout.num_workers x rollout.tensor_parallel_size: {needed}"]
        return [f"learner.num_ranks, rollout.num_workers: {ranks} ranks and {needed}"]
    engines = {d for seat in placement.seats_of("rollout") for d in seat.devices}
    if devices.device == "gpu" and len(engines) > len(placement.seats_of("learner")) > 0:
        return [
            f"rollout.num_workers x rollout.tensor_parallel_size: engines use {len(engines)} GPUs, but weights reach only those "
            f"of the {len(placement.seats_of('learner'))} learner ranks; raise learner.num_ranks"
        ]
    needed = sum(bundle["CPU"] for bundle in placement.bundles)
    if devices.device == "cpu" and needed > devices.count:
        return [
            f"learner.num_ranks, rollout.num_workers x rollout.tensor_parallel_size, reward_pool.num_workers: they need "
            f"{needed:g} CPUs, there are {devices.count}"
        ]
    return []


def model_problems(job: Job, earlier_runs: Sequence[str] = ()) -> list[str]:
    """What the model cannot do of what the job asks for, on whatever devices."""
    if job.model.from_run in earlier_runs:
        return []
    try:
        facts = model_facts(job.model, Path(job.run.dir))
    except UserError as error:
        return str(error).splitlines()
    return [] if facts is None else _shape_problems(job, facts)


def _shape_problems(job: Job, facts: ModelFacts) -> list[str]:
    problems = []
    longest = job.data.max_tokens
    field = "data.max_tokens"
    if isinstance(job, RolloutJob | InferJob):
        completion = job.rollout.max_completion_tokens if isinstance(job, InferJob) else job.longest_completion
        longest = job.data.max_prompt_tokens + completion
        longer = "rollout" if completion == job.rollout.max_completion_tokens else "evaluate"
        field = f"data.max_prompt_tokens + {longer}.max_completion_tokens"
        if facts.num_attention_heads % job.rollout.tensor_parallel_size:
            problems.append(
                f"rollout.tensor_parallel_size: {facts.num_attention_heads} attention heads cannot be divided by "
                f"{job.rollout.tensor_parallel_size}"
            )
    if facts.max_position_embeddings is not None and longest > facts.max_position_embeddings:
        problems.append(f"{field}: {longest} tokens are more than the model's {facts.max_position_embeddings} positions")
    return problems


def _device_problems(job: Job, devices: Devices) -> list[str]:
    """What is asked for and these devices cannot do."""
    if isinstance(job, TrainingJob) and job.learner.liger_kernel is True and devices.device == "cpu":
        return ["learner.liger_kernel: the kernels need a GPU; set it to auto"]
    return []


def _learner_problems(job: TrainingJob, facts: ModelFacts) -> list[str]:
    """What this model's layers cannot do in the learner."""
    problems: list[str] = []
    shared, spread = job.learner.sequence_parallel, job.learner.expert_parallel
    if facts.num_attention_heads % shared or (facts.num_key_value_heads % shared and shared % facts.num_key_value_heads):
        problems.append(
            f"learner.sequence_parallel: {facts.num_attention_heads} attention heads and {facts.num_key_value_heads} key heads "
            f"cannot be divided by {shared}"
        )
    if spread > 1 and (facts.num_experts == 0 or facts.num_experts % spread):
        problems.append(f"learner.expert_parallel: {facts.num_experts or 'no'} experts cannot be spread over {spread} ranks")
    if facts.num_experts and job.model.lora and (problem := expert_adapter_problem(job.model.lora, job.learner)):
        problems.append(problem)
    return problems


def _memory_problems(memory: MemoryEstimate, devices: Devices) -> list[str]:
    """Of what has GPUs of its own."""
    problems = []
    if devices.device == "gpu" and memory.judges > devices.memory_gib:
        needed = f"a judge needs about {memory.judges:.1f} GiB on each of its GPUs, there are {devices.memory_gib:.1f}"
        problems.append(f"rewards: {needed}; change its engine.tensor_parallel_size (more) or engine.max_model_tokens (fewer)")
    if devices.device == "gpu" and memory.teacher > devices.memory_gib:
        needed = f"it needs about {memory.teacher:.1f} GiB on each of its GPUs, there are {devices.memory_gib:.1f}"
        problems.append(f"teacher: {needed}; change teacher.num_ranks (more) or learner.micro_batch_tokens (fewer)")
    return problems


def _too_large(memory: MemoryEstimate, devices: Devices, changes: Sequence[str]) -> str:
    """The problem of a peak above the memory, under the name of what takes the most, with the changes that help."""
    where = "on each GPU" if devices.device == "gpu" else "in the machine's memory"
    role = "rollout" if memory.rollout > memory.learner_peak else "learner"
    needed = f"about {memory.peak:.1f} GiB are needed {where}, there are {devices.memory_gib:.1f}"
    advice = [f"change {', '.join(changes)}"] if changes else []
    return f"{role}: {needed}; {' or '.join([*advice, 'take a smaller model'])}"
