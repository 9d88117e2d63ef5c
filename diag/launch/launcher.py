"""`diag run` from options to exit code: the baseline if wanted, the run, the record's completion."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diag.errors import DiagError, ExitCode
from diag.launch import net
from diag.launch.environ import WorkerConfig, is_switched_off
from diag.launch.failure import not_distributed, port_in_use
from diag.launch.hardware import Hardware, collect
from diag.launch.options import RunOptions
from diag.launch.outcome import Outcome, RankFailure, first_failure, read_outcomes
from diag.launch.plan import LaunchPlan, make_plan
from diag.launch.runfacts import Role, command_line, facts_at_end, facts_at_start
from diag.launch.signals import Interrupted, ignore_signals, interruptible
from diag.launch.target import Target, find_target
from diag.record.store import RunDir, create_run

if TYPE_CHECKING:
    from diag.launch.elastic import ElasticResult

Say = Callable[[str], None]
_WORKER = ("-u", "-P", "-m", "diag.launch.worker")


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        launch_ns: monotonic, when the ranks were started.
        failure: the first rank that failed by itself, if one did.
        stopped_after: the optimizer steps after which --max-steps ended the ranks; None where
            they ended by themselves.
    """

    run: RunDir
    plan: LaunchPlan
    role: Role
    probes: bool
    ended_by: str
    exit_code: int
    launch_ns: int | None = None
    failure: RankFailure | None = None
    stopped_after: int | None = None

    @property
    def recorded(self) -> bool:
        """Did any rank record anything? A script that never imports torch does not."""
        return any(self.run.ranks.glob("*"))


def launch(options: RunOptions, say: Say) -> RunResult:
    """Run what `options` ask for; the baseline's result if that failed.

    Args:
        say: called with each line for the user, before and between the runs.

    Raises:
        DiagError: bad input (nothing has been started then), or a failure of diag itself.
    """
    started_ns = time.monotonic_ns()
    target = find_target(options.target, options.module)
    hardware = collect()
    plan = make_plan(options, hardware, os.environ)
    if plan.endpoint and plan.node_rank == 0 and net.is_port_taken(plan.endpoint.port):
        raise port_in_use(plan.endpoint)
    for note in plan.notes:
        say(note)
    if options.baseline_steps and plan.node_rank == 0:
        baseline = _baseline(options, plan, hardware, target, say, started_ns)
        if baseline is not None and baseline.exit_code != 0:
            return baseline
        started_ns = time.monotonic_ns()
    return _Recording(options, plan, target, "run", say).execute(started_ns)


def _baseline(
    options: RunOptions,
    plan: LaunchPlan,
    hardware: Hardware,
    target: Target,
    say: Say,
    started_ns: int,
) -> RunResult | None:
    """The run on 1 rank that `plan` will be compared with; None where it is that run itself."""
    if plan.world_size == 1:
        say("one rank is its own baseline: --with-baseline adds nothing")
        return None
    alone = baseline_options(options)
    say(f"baseline first: {alone.max_steps} steps on 1 rank")
    alone_plan = make_plan(alone, hardware, os.environ)
    result = _Recording(alone, alone_plan, target, "baseline", say).execute(started_ns)
    if result.exit_code == 0:
        say(f"baseline recorded in {result.run.path}; now the run on {plan.world_size} ranks")
    return result


def baseline_options(options: RunOptions) -> RunOptions:
    """The same script on one rank of this node, for a few steps."""
    return replace(
        options,
        gpus=1,
        nnodes=1,
        node_rank=None,
        rdzv_endpoint=None,
        rdzv_id=None,
        name=f"{options.name}-baseline" if options.name else None,
        max_steps=options.baseline_steps,
    )


@dataclass
class _Recording:
    """One run directory, from its creation to its last word."""

    options: RunOptions
    plan: LaunchPlan
    target: Target
    role: Role
    say: Say

    def execute(self, started_ns: int) -> RunResult:
        with interruptible():
            if self.plan.node_rank > 0:
                return self._checked(self._join())
            run = self._create(started_ns)
            try:
                ended = self._run(run)
            except BaseException as error:
                code = error.exit_code if isinstance(error, DiagError) else ExitCode.DIAG_FAILED
                self._complete(run, facts_at_end("diag", int(code), None, ()))
                raise
            outcomes = read_outcomes(run.logs)
            self._complete(
                run, facts_at_end(ended.ended_by, ended.exit_code, ended.launch_ns, outcomes)
            )
            return self._checked(ended)

    def _complete(self, run: RunDir, facts: Mapping[str, object]) -> None:
        ignore_signals()
        try:
            run.update_run_json(**facts)
        except OSError as error:  # a full disk must not turn a good run into a bad one
            self.say(f"cannot complete {run.run_json}: {error.strerror or error}")

    def _run(self, run: RunDir) -> RunResult:
        """Start the ranks of node 0 and wait for them."""
        try:
            if self.plan.endpoint is None:
                return self._run_elastic(run)
            from diag.launch import elastic

            # The store must live until the ranks have ended: it serves the rendezvous too.
            _, store = elastic.agree_on_run_name(self.plan, run.name, elastic.RENDEZVOUS_TIMEOUT_S)
            try:
                return self._run_elastic(run)
            finally:
                del store
        except Interrupted as stop:
            return self._result(run, "signal", 128 + stop.number)

    def _create(self, started_ns: int) -> RunDir:
        suffix = "-baseline" if self.role == "baseline" else ""
        stem = self.target.path.stem if self.target.path else self.target.name
        wanted = self.options.name
        run = create_run(self.options.runs_dir, wanted, Path(f"{stem}{suffix}.py"))
        if wanted is not None and run.name != wanted:
            self.say(f"there is a run {wanted} already, so this one is {run.name}")
        facts = facts_at_start(
            self.options,
            self.plan,
            self.target,
            name=run.name,
            role=self.role,
            argv=command_line(),
            environ=os.environ,
            started_ns=started_ns,
        )
        try:
            run.write_run_json(facts)
        except OSError as error:
            raise _not_writable(run.path, error) from error
        return run

    def _join(self) -> RunResult:
        """On every node but the first, which names the run and writes run.json."""
        from diag.launch import elastic

        wait = elastic.RENDEZVOUS_TIMEOUT_S * (4 if self.options.baseline_steps else 1)
        run = RunDir(self.options.runs_dir)
        try:
            name, _ = elastic.agree_on_run_name(self.plan, None, wait)
            run = RunDir(self.options.runs_dir / name)
            for folder in (run.path, run.ranks, run.logs):  # there already on a shared file system
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._run_elastic(run)
        except Interrupted as stop:
            return self._result(run, "signal", 128 + stop.number)
        except OSError as error:
            raise _not_writable(self.options.runs_dir, error) from error

    def _run_elastic(self, run: RunDir) -> RunResult:
        from diag.launch import elastic
        from diag.launch.logs import RankLogs
        from diag.launch.tee import Tee

        plan = replace(self.plan, env={**self.plan.env, **self._worker_config(run).to_env()})
        with Tee() as tee:
            logs = RankLogs(run.logs.resolve(), tee, self.options.tee)
            log = run.logs / f"launcher-{plan.node_rank}.log"
            result = elastic.run_ranks(plan, worker_command(self.target, self.options), logs, log)
        return replace(self._judge(run, result), launch_ns=logs.started_ns)

    def _worker_config(self, run: RunDir) -> WorkerConfig:
        off = is_switched_off(os.environ)
        return WorkerConfig(
            launcher_pid=os.getpid(),
            run_dir=str(run.path.resolve()),
            device=self.plan.device,
            module=self.target.module,
            probes=self.options.probes and not off,
            guard=not off,
            max_steps=self.options.max_steps,
            samples_per_step=self.options.samples_per_step,
        )

    def _judge(self, run: RunDir, result: ElasticResult) -> RunResult:
        outcomes = read_outcomes(run.logs)
        if result.signal is not None:
            return self._result(run, "signal", 128 + result.signal)
        failure = first_failure(_failures(result, outcomes)) if result.failed else None
        if failure is None:
            limited = any(outcome.ended == "max-steps" for outcome in outcomes)
            return self._result(run, "max-steps" if limited else "script", 0)
        return replace(self._result(run, ended_by(failure), failure.shell_code), failure=failure)

    def _result(self, run: RunDir, ended_by: str, exit_code: int) -> RunResult:
        return RunResult(
            run=run,
            plan=self.plan,
            role=self.role,
            probes=self.options.probes and not is_switched_off(os.environ),
            ended_by=ended_by,
            exit_code=exit_code,
            stopped_after=self.options.max_steps if ended_by == "max-steps" else None,
        )

    def _checked(self, ended: RunResult) -> RunResult:
        """Raises DiagError where the script was stopped because it distributes nothing."""
        outcome = ended.failure.outcome if ended.failure else None
        if outcome is not None and outcome.ended == "not-distributed":
            raise not_distributed(self.target.name, self.plan.world_size, outcome.error)
        return ended


def _not_writable(path: Path, error: OSError) -> DiagError:
    return DiagError(
        "runs-dir-not-writable",
        f"cannot write to {path}: {error.strerror or error}",
        "choose another directory with --runs-dir, or set DIAG_RUNS_DIR",
    )


def worker_command(target: Target, options: RunOptions) -> list[str]:
    """Python's arguments for each rank. Elastic expands `$` in them, so it is doubled."""
    return [*_WORKER, *(word.replace("$", "$$") for word in (target.name, *options.args))]


def ended_by(failure: RankFailure) -> str:
    """run.json's word for a run that ended with `failure`."""
    if failure.outcome is not None and failure.outcome.ended == "not-distributed":
        return "diag"
    return "signal" if failure.exit_code < 0 else "script"


def _failures(result: ElasticResult, outcomes: Iterable[Outcome]) -> tuple[RankFailure, ...]:
    """What elastic saw on this node, and what other nodes' ranks said, if their files are here."""
    said = {outcome.rank: outcome for outcome in outcomes}
    here = {exited.rank for exited in result.failed}
    own = [
        RankFailure(
            exited.rank,
            exited.exit_code,
            said[exited.rank].time_ns if exited.rank in said else exited.time_ns,
            said.get(exited.rank),
        )
        for exited in result.failed
    ]
    others = [
        RankFailure(outcome.rank, outcome.exit_code, outcome.time_ns, outcome)
        for outcome in said.values()
        if outcome.rank not in here and outcome.exit_code != 0
    ]
    return (*own, *others)
