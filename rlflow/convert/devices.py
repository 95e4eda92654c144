"""How many processes a command starts, and on how many GPUs."""

from dataclasses import dataclass

from rlflow.convert.command import Command
from rlflow.convert.draft import Draft
from rlflow.errors import UserError


@dataclass(frozen=True, slots=True)
class Devices:
    """Of all nodes together."""

    gpus: int
    ranks: int
    """Data-parallel processes of ms-swift: what its batch sizes are multiplied by."""


def devices_of(command: Command, draft: Draft, gpus: int | None, fewest: int = 1) -> Devices:
    """From NPROC_PER_NODE, NNODES and CUDA_VISIBLE_DEVICES; `gpus` (of all nodes) says it where they do not.

    Args:
        fewest: what the command cannot do without, taken where nothing says how many there are.
    """
    visible = len([d for d in command.variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()])
    processes, nodes = _number(command, "NPROC_PER_NODE", draft, gpus), _number(command, "NNODES", draft, gpus)
    if gpus is not None:
        return Devices(gpus, gpus)
    if processes is None and nodes is None and command.words[0] != "megatron":
        if visible > 1:
            draft.note(
                "warning",
                "CUDA_VISIBLE_DEVICES",
                f"without NPROC_PER_NODE ms-swift spreads one copy of the model over {visible} GPUs, and batch sizes count one "
                f"process; here {visible} ranks share the same batch",
            )
        return Devices(max(1, visible), 1)
    found = (processes or visible or 1) * (nodes or 1)
    if found < fewest:
        draft.note(
            "warning",
            "number of GPUs",
            f"the command does not say it; {fewest} are assumed, the fewest that it can run on; give --gpus N for another number",
        )
    return Devices(max(found, fewest), max(found, fewest))


def _number(command: Command, name: str, draft: Draft, gpus: int | None) -> int | None:
    value = command.variables.get(name)
    if value is None:
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    if gpus is None and not value.startswith("$"):
        raise UserError(f"convert: {name}={value}: is not a number of processes")
    if gpus is None:
        draft.note(
            "warning", f"{name}={value}", "the value is known where the command runs, not here; give --gpus N, of all nodes"
        )
    return None
