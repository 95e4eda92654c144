"""The `rlflow` command. A verb is a few lines that import what it needs and call the library.

Exit codes: 0 done, 1 a job or the cluster failed, 2 a mistake of the user (one line each, no traceback),
130 interrupted.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.errors import RlflowError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from rlflow.client import JobInfo

app = typer.Typer(
    help="Post-training with vLLM rollouts, reward workers and DeepSpeed learners, orchestrated by Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SpecsAndOverrides = Annotated[
    list[str],
    typer.Argument(
        metavar="SPEC… [KEY=VALUE…]",
        show_default=False,
        help="Spec files, and values that replace those of every spec given, such as run.seed=1.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="The id that submit printed.")]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        show_default=False,
        help="The cluster. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265.",
    ),
]


@app.command()
def run(arguments: SpecsAndOverrides) -> None:
    """Run one or more specs in order, here; starts Ray if there is none."""
    specs, overrides = split_arguments(arguments)
    from rlflow.jobs.run import run_specs

    raise typer.Exit(run_specs(specs, overrides))


@app.command()
def submit(
    arguments: SpecsAndOverrides,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="Sent to the cluster, less what .gitignore names; must hold the specs.")
    ] = Path("."),
    submission_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", show_default=False, help="The job's id; default: random."),
    ] = None,
) -> None:
    """Submit specs to a cluster as one job; prints the job's id."""
    from rlflow import client

    specs, overrides = split_arguments(arguments)
    job_id = client.submit(specs, address=address, working_dir=working_dir, overrides=overrides, submission_id=submission_id)
    print(job_id)


@app.command()
def status(job_id: JobId, address: Address = None) -> None:
    """Show what became of a submitted job."""
    from rlflow import client

    job = client.status(job_id, address)
    print(f"{job.id}: {job.status}")
    for name, value in (("run", job.run), ("algorithm", job.algorithm), ("model", job.model)):
        if value:
            print(f"{name}: {value}")
    if job.message:
        print(job.message)


@app.command()
def logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print the output of a submitted job."""
    from rlflow import client

    for piece in client.logs(job_id, address, follow):
        print(piece, end="", flush=True)


@app.command()
def stop(job_id: JobId, address: Address = None) -> None:
    """Stop a submitted job; submitting its spec again resumes from the last complete checkpoint."""
    from rlflow import client

    print(f"{job_id}: {'stopping' if client.stop(job_id, address) else 'had ended already'}")


@app.command("list")
def list_(address: Address = None) -> None:
    """List the jobs submitted to a cluster, newest first."""
    from rich.console import Console

    from rlflow import client

    Console().print(job_table(client.list_jobs(address), now=time.time()))


@app.command()
def plan(
    arguments: SpecsAndOverrides,
    assume_gpus: Annotated[
        str | None,
        typer.Option(metavar="NxGIB", show_default=False, help="Plan for GPUs that are not here, such as 8x80."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a spec without training or download: resolved spec, placement, memory, every problem."""
    from rich.console import Console

    from rlflow.jobs.plan import plan as make_plan

    specs, overrides = split_arguments(arguments)
    if len(specs) != 1:
        raise UserError(f"plan takes one spec, got {len(specs)}")
    planned = make_plan(specs[0], overrides, assume_gpus)
    if as_json:
        print(json.dumps(planned.as_dict(), indent=2))
    else:
        Console().print(planned.render())
    for problem in planned.problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(2 if planned.problems else 0)


@app.command()
def data(
    arguments: SpecsAndOverrides,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Rows to show of each source.")] = 2,
) -> None:
    """Show what a spec trains on: rows with their trained tokens, lengths, padding, every bad row."""
    from rlflow.jobs.preview import preview_specs

    raise typer.Exit(preview_specs(*split_arguments(arguments), rows=rows))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A run, a directory or a hub id.")],
    hub: Annotated[str, typer.Option(help="Where MODEL is an id: huggingface or modelscope.")] = "huggingface",
    adapter: Annotated[str | None, typer.Option(metavar="RUN|PATH", help="Adapters to merge first.")] = None,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="Have the chat template switch thinking off.")] = False,
    response_prefix: Annotated[str, typer.Option(metavar="TEXT", help=r"Begins every answer; \n is a line break.")] = "",
    system: Annotated[str | None, typer.Option(metavar="TEXT|FILE.txt", help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: greedy. Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Among the k likeliest tokens. Default: the model's own.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: less repetition. Default: the model's own.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 2048,
    max_model_tokens: Annotated[
        int | None, typer.Option(help="Longest conversation, in tokens; default: 8192, or what the model can.", min=1)
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="For base models: a packaged template, or a .jinja file.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: as stored.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Devices the model is spread over.")] = 1,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of the GPU's memory to use.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Talk to a model; through a pipe, every line of stdin is a message and stdout holds only the answers."""
    flags = dict(locals())
    from rlflow.jobs.chat import chat as talk
    from rlflow.jobs.flags import chat_options

    talk(chat_options(flags))


@app.command()
def infer(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC…|MODEL [KEY=VALUE…]",
            show_default=False,
            help="Spec files; or a model (a run, a directory or a hub id) to ask with the flags below. KEY=VALUE as in run.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SOURCE", help="Rows to answer: a file or data set, such as a.jsonl#500."),
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Where the answers go (.jsonl).")] = None,
    hub: Annotated[str | None, typer.Option(help="Where MODEL is an id: huggingface or modelscope.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens (2048).")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Longest prompt, in tokens (1024).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: greedy. Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Among the k likeliest tokens. Default: the model's own.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Answers a row (1).")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Engines (1).")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Devices of an engine (1).")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="RUN|PATH", help="Adapters to merge first.")] = None,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="Have the chat template switch thinking off.")] = False,
    response_prefix: Annotated[str | None, typer.Option(metavar="TEXT", help=r"Begins every answer; \n is a line break.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT|FILE.txt", help="System prompt of rows that have none.")] = None,
    drop_truncated: Annotated[bool, typer.Option("--drop-truncated", help="Leave out answers that were cut.")] = False,
    drop_unbalanced_thinking: Annotated[
        bool, typer.Option("--drop-unbalanced-thinking", help="Leave out answers whose thinking is not closed.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32. Default: as stored.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; from the output's name by default.")] = None,
    runs: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Answer the rows of data sets, as JSON lines to train on; the same command goes on after a stop."""
    flags = {flag: value for flag, value in locals().items() if flag != "arguments"}
    from rlflow.jobs.flags import in_flags, infer_document, read_text, refuse_flags
    from rlflow.jobs.run import run_document, run_specs

    models, overrides = split_arguments(arguments)
    if all(Path(model).suffix in (".yaml", ".yml") for model in models):
        refuse_flags(flags)
        raise typer.Exit(run_specs(models, overrides, kind="infer"))
    if len(models) > 1 or not data:
        raise UserError("infer takes spec files, or one model and --data SOURCE")
    flags |= {"system": read_text(system), "response_prefix": read_text(response_prefix)}
    with in_flags():
        raise typer.Exit(run_document(infer_document(models[0], flags), overrides))


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|PATH", show_default=False, help="A run, a model or adapter directory, or a hub id.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="A new directory. Without it PATH is pushed as it is.")
    ] = None,
    source_hub: Annotated[str, typer.Option(help="Where RUN|PATH is an id: huggingface or modelscope.")] = "huggingface",
    adapter: Annotated[str | None, typer.Option(metavar="RUN|PATH", help="Adapters to merge into the model.")] = None,
    merge: Annotated[
        bool | None, typer.Option("--merge/--no-merge", help="Merge adapters into their base, or write them alone.")
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Upload to this repository too.")] = None,
    hub: Annotated[str, typer.Option(help="Where to push: huggingface or modelscope.")] = "huggingface",
    token: Annotated[
        str | None, typer.Option(show_default=False, show_envvar=False, help="Of the hub; default: HF_TOKEN, or as logged in.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: as stored.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Of a file of weights, such as 5GB.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Write a run's or another model as a directory (adapters merged), and upload it."""
    from rlflow.jobs.adapters import check_hub
    from rlflow.jobs.export import check_as_it_is, check_options
    from rlflow.jobs.export import export as write_model
    from rlflow.jobs.push import push as upload
    from rlflow.jobs.push import push_written

    check_options(push, hub, token, private, dtype)
    changes = {"adapter": adapter, "merge": merge, "dtype": dtype, "max_shard_size": max_shard_size}
    if output is None:
        check_as_it_is(source, push, **changes)
    else:
        for line in write_model(source, output, source_hub=check_hub(source_hub, "--source-hub"), runs=runs, **changes):
            print(line)
    if push is not None:
        directory, send = (Path(source).expanduser(), upload) if output is None else (output, push_written)
        print(f"pushed: {send(directory, push, hub=hub, token=token, private=private)}")


@app.command()
def convert(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND|FILE|-", show_default=False, help="A quoted ms-swift command, a script with one, or - (stdin)."
        ),
    ],
    swift_version: Annotated[
        str | None,
        typer.Option(metavar="3.6|4", show_default=False, help="Whose defaults count. Default: as its flag names say, else 3.6."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default=False, help="GPUs of all nodes, where the command does not say it."),
    ] = None,
) -> None:
    """Turn an ms-swift command into a spec (or an rlflow command) on stdout; notes on stderr."""
    from rlflow.convert.convert import convert as convert_command
    from rlflow.convert.convert import read_version

    text = sys.stdin.read() if command == "-" else read_text(command)
    converted = convert_command(text, read_version(swift_version), gpus)
    print(converted, end="")
    for note in converted.notes:
        print(note, file=sys.stderr)


@app.command()
def schema() -> None:
    """Print the JSON Schema of specs, for editors."""
    from rlflow.spec.jobs import job_schema

    print(json.dumps(job_schema(), indent=2))


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Spec files and overrides: an override holds `=` and is no file that exists."""
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    specs = [argument for argument in arguments if argument not in overrides]
    if not specs:
        raise UserError("no spec file was given, only overrides")
    return specs, overrides


def read_text(argument: str) -> str:
    """The file of this name, or the argument itself."""
    path = Path(argument)
    is_name = " " not in argument and "\n" not in argument
    if not is_name:
        return argument
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{argument}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def job_table(jobs: list["JobInfo"], now: float) -> "Table":
    """The table of `rlflow list`; `now` is in seconds since 1970."""
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "run", "algorithm", "model", "status", "age")
    for job in jobs:
        cells = (job.id, job.run, job.algorithm, job.model, job.status, age(job.start_time, now))
        table.add_row(*(Text(cell or "–", overflow="fold") for cell in cells))
    return table


def age(start_time: float | None, now: float) -> str | None:
    """How long ago, in the largest unit that fits (`45 s`, `12 min`, `3 h`, `2 d`); None if not begun."""
    if start_time is None:
        return None
    elapsed_s = max(0.0, now - start_time)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(((size, unit) for size, unit in units if elapsed_s >= size), (1, "s"))
    return f"{int(elapsed_s // size)} {unit}"


def main() -> None:
    """The command's entry point: errors become lines on stderr and an exit code."""
    try:
        app(prog_name="rlflow")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except RlflowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
