"""The command line's arguments: per command a signature, which becomes that module's Options.

Apart from the modules that do the work, so that each of them is imported only when it is invoked,
and can be called with a plain Options in tests.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

DEFAULT_BASELINE_STEPS = 60


class Device(StrEnum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class OnOff(StrEnum):
    on = "on"
    off = "off"


class TeeChoice(StrEnum):
    rank0 = "0"
    all = "all"
    none = "none"


class RunCommand(TyperCommand):
    """`--with-baseline` takes a value only after `=`; a plain one must not eat the script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [name for p in self.params if getattr(p, "is_flag", False) for name in p.opts]
        parsed: list[str] = super().parse_args(ctx, give_default(args, flags))
        return parsed


def give_default(args: list[str], flags: Collection[str]) -> list[str]:
    """Turn a bare --with-baseline before the script into --with-baseline=60.

    Args:
        args: the command's words; those from the script on are the script's own.
        flags: the options that take no value.
    """
    result: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--with-baseline":
            result.append(f"--with-baseline={DEFAULT_BASELINE_STEPS}")
        elif word == "--" or not word.startswith("-"):
            return [*result, word, *words]
        else:
            result.append(word)
            takes_value = word not in flags and word != "--help" and "=" not in word
            if takes_value and (value := next(words, None)) is not None:
                result.append(value)
    return result


# What follows the script is the script's, whatever it looks like.
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"cls": RunCommand, "context_settings": {"allow_interspersed_args": False}},
}

RunsDir = Annotated[
    Path | None,
    typer.Option(help="Where runs are kept; default: $DIAG_RUNS_DIR or ./diag-runs."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", show_default=False)],
    args: Annotated[list[str] | None, typer.Argument(metavar="ARGS", show_default=False)] = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ranks on this node; default: one per GPU, or 1."),
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", "--module", help="SCRIPT is a module's name, as in python -m.")
    ] = False,
    device: Annotated[
        Device, typer.Option(help="cpu: rehearse on CPU ranks with gloo.")
    ] = Device.auto,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    runs_dir: RunsDir = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads per rank; default: 1.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(metavar="N", help="End all ranks after N optimizer steps.")
    ] = None,
    with_baseline: Annotated[
        int | None,
        typer.Option(
            metavar="[=STEPS]",
            help=f"First a run on 1 rank, of {DEFAULT_BASELINE_STEPS} steps unless said.",
        ),
    ] = None,
    probes: Annotated[OnOff, typer.Option(help="off: record nothing.")] = OnOff.on,
    samples_per_step: Annotated[
        int | None,
        typer.Option(metavar="N", help="Samples per step of all ranks, where not found."),
    ] = None,
    tee: Annotated[
        TeeChoice, typer.Option(help="Whose output is shown; every rank's is kept.")
    ] = TeeChoice.rank0,
    nnodes: Annotated[int, typer.Option(metavar="N", help="Number of nodes.")] = 1,
    node_rank: Annotated[
        int | None, typer.Option(metavar="K", help="This node's number, from 0.")
    ] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A free port of node 0.")
    ] = None,
    rdzv_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Name of the job, on all nodes.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(metavar="N", help="Restart all ranks up to N times.")
    ] = 0,
) -> int:
    from diag.cli import run as command
    from diag.launch.options import RunOptions
    from diag.record.store import default_runs_dir

    return command.run(
        RunOptions(
            target=script,
            args=tuple(args or ()),
            module=module,
            gpus=gpus,
            device=device.value,
            name=name,
            runs_dir=runs_dir or default_runs_dir(),
            threads=threads,
            max_steps=max_steps,
            baseline_steps=with_baseline,
            probes=probes is OnOff.on,
            samples_per_step=samples_per_step,
            tee=tee.value,
            nnodes=nnodes,
            node_rank=node_rank,
            rdzv_endpoint=rdzv_endpoint,
            rdzv_id=rdzv_id,
            max_restarts=max_restarts,
        )
    )


def scaling_report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run's name or path; default: the newest."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare with this run.")
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one self-contained page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare what is not comparable.")] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Leave this finding out; repeatable.")
    ] = None,
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Take comparable runs of the same size together.")
    ] = False,
) -> int:
    from diag.cli import scaling_report as command

    return command.scaling_report(
        command.Options(
            run=run,
            baseline=baseline,
            runs_dir=runs_dir,
            force=force,
            as_json=as_json,
            as_markdown=as_markdown,
            html=html,
            ignore=tuple(ignore or ()),
            repeats=repeats,
        )
    )


def runs(runs_dir: RunsDir = None, as_json: Json = False) -> int:
    from diag.cli import runs as command

    return command.runs(command.Options(runs_dir=runs_dir, as_json=as_json))


def doctor(
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="Ranks planned; default: one per GPU.")
    ] = None,
    nnodes: Annotated[int, typer.Option(metavar="N", help="Nodes planned.")] = 1,
    as_json: Json = False,
    problems: Annotated[
        bool, typer.Option("--problems", help="Show warnings and failures only.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Skip this check; repeatable.")
    ] = None,
    runs_dir: RunsDir = None,
) -> int:
    from diag.cli import doctor as command

    return command.doctor(
        command.Options(
            gpus=gpus,
            nnodes=nnodes,
            as_json=as_json,
            problems=problems,
            strict=strict,
            ignore=tuple(ignore or ()),
            runs_dir=runs_dir,
        )
    )


def hang(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A run's name or path; default: the newest with a hang."
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Option(metavar="N", help="This hang of the run; default: all.")
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> int:
    from diag.cli import hang as command

    return command.hang(command.Options(run=run, runs_dir=runs_dir, number=number, as_json=as_json))
