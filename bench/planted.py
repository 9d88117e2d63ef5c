"""Plant known causes of slowness, run them through diag, and compare what it reports.

    python bench/planted.py [--seed N] [--only WORD] [--steps N] [--markdown FILE]
                            [--traceml PROGRAM]

Values, ranks and seeds are drawn afresh at each run and printed. Every case must name the right
term, ranks and phase within max(5%, 2 ms), with a residual of at most 1% of the step; a clean run
must yield no warning and no critical finding. Exits 1 if a case fails. On a virtual machine a run
in which the host took more than 2% of the cores' time is thrown away and made anew, up to three
times; the last column says what was stolen from the run that stands. Needs no GPU: devices
are sleeps (bench/jobs/planted_job.py), so ranks may outnumber the cores.

With --traceml (the `traceml` program of an environment that holds traceml-ai) the same scripts
are also run under TraceML, and what it says stands beside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import Stolen, describe_machine
from planted_cases import Case, Expected, all_cases

JOB = Path(__file__).resolve().parent / "jobs" / "planted_job.py"
DIAG = (sys.executable, "-m", "diag")
LOUD = ("warning", "critical")
TOLERANCE_MS, TOLERANCE, RESIDUAL = 2.0, 0.05, 0.01
MOST_STOLEN, ATTEMPTS = 0.02, 3


@dataclass
class Outcome:
    case: Case
    planted: str
    reported: str
    problems: list[str] = field(default_factory=list)
    residual: float = 0.0
    verdict: str = ""
    stolen: float = 0.0
    traceml: str = ""


# -- running ----------------------------------------------------------------------------


@contextmanager
def throttled(link_mbit: int | None) -> Iterator[tuple[str, ...]]:
    """A prefix that runs a command where the loopback device has this rate. Needs root."""
    if link_mbit is None:
        yield ()
        return
    space = f"diag-planted-{os.getpid()}"
    rate = f"qdisc add dev lo root tbf rate {link_mbit}mbit burst 256kb latency 400ms"
    subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
        subprocess.run(["tc", "-n", space, *rate.split()], check=True)
        yield ("ip", "netns", "exec", space)
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True)


def diag_run(
    where: Path, name: str, ranks: int, arguments: list[str], causes: str,
    prefix: tuple[str, ...] = (),
) -> str:  # fmt: skip
    command = [
        *prefix, *DIAG, "run", "--gpus", str(ranks), "--device", "cpu", "--name", name,
        str(JOB), *arguments,
    ]  # fmt: skip
    environment = os.environ | {"PLANTED": causes}
    done = subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def report(where: Path, name: str, baseline: str) -> dict[str, Any]:
    command = [*DIAG, "scaling-report", name, "--baseline", baseline, "--json"]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return dict(json.loads(done.stdout))


class Bench:
    """Runs cases in one folder; baselines are shared by cases with the same work."""

    def __init__(self, where: Path, steps: int, seed: int, traceml: Path | None) -> None:
        self.where, self.steps, self.seed, self.traceml = where, steps, seed, traceml
        self.baselines: dict[tuple[str, ...], str] = {}
        self.recorded = 0  # baselines

    def arguments(self, case: Case) -> list[str]:
        common = ["--model", case.model, "--steps", str(self.steps), "--seed", str(self.seed)]
        return [*common, *case.arguments]

    def baseline(self, case: Case) -> str:
        key = tuple(self.arguments(case))
        if key not in self.baselines:
            self.recorded += 1
            name = f"base-{self.recorded}"
            diag_run(self.where, name, 1, list(key), "[]")
            self.baselines[key] = name
        return self.baselines[key]

    def run(self, number: int, case: Case) -> Outcome:
        for attempt in range(1, ATTEMPTS + 1):
            stolen = Stolen()
            outcome = self.attempt(f"case-{number:02d}-{attempt}", case)
            outcome.stolen = stolen.share()
            if outcome.stolen <= MOST_STOLEN:
                break
            # The baseline may have been robbed as well.
            self.baselines.pop(tuple(self.arguments(case)), None)
        if self.traceml is not None:
            outcome.traceml = self.ask_traceml(f"case-{number:02d}", case)
        return outcome

    def attempt(self, name: str, case: Case) -> Outcome:
        baseline = self.baseline(case)
        with throttled(case.link_mbit) as prefix:
            printed = diag_run(
                self.where, name, case.ranks, self.arguments(case), json.dumps(case.causes), prefix
            )
        said = report(self.where, name, baseline)
        if case.control:
            diag_run(self.where, f"{name}-control", case.ranks, self.arguments(case), "[]")
            said = without(said, report(self.where, f"{name}-control", baseline))
        return judge(case, said, measured_truth(printed))

    def ask_traceml(self, name: str, case: Case) -> str:
        """TraceML's primary diagnosis of the same script, in one line."""
        assert self.traceml is not None
        logs = self.where / "traceml"
        command = [
            str(self.traceml), "run", "--mode", "summary", "--nproc-per-node", str(case.ranks),
            "--logs-dir", str(logs), "--run-name", name, str(JOB),
            "--args", *self.arguments(case),
        ]  # fmt: skip
        planted = {"PLANTED": json.dumps(case.causes), "MARK_STEPS_FOR_TRACEML": "1"}
        subprocess.run(
            command, cwd=self.where, env=os.environ | planted, capture_output=True, timeout=300
        )
        summary = logs / name / "final_summary.json"
        if not summary.exists():
            return "no summary"
        said = json.loads(summary.read_text())["primary_diagnosis"]
        return f"{said['status']}: {said['summary']}".replace("|", "/")


def measured_truth(printed: str) -> float | None:
    found = re.search(r"TRUTH exposed_ms ([-\d.]+)", printed)
    return float(found[1]) if found else None


def without(said: dict[str, Any], control: dict[str, Any]) -> dict[str, Any]:
    """`said`, each term less what it is with nothing planted."""
    own = {t["term"]: t["ms"] or 0.0 for t in control["terms"]}
    terms = [t | {"ms": (t["ms"] or 0.0) - own[t["term"]]} for t in said["terms"]]
    return said | {"terms": terms}


# -- judging ----------------------------------------------------------------------------


def near(reported: float | None, planted: float) -> bool:
    allowed = max(TOLERANCE * abs(planted), TOLERANCE_MS)
    return reported is not None and abs(reported - planted) <= allowed


def judge(case: Case, said: dict[str, Any], truth: float | None) -> Outcome:
    terms = {t["term"]: t for t in said["terms"]}
    step = said["step_ms"]["measured"]
    if step is None or terms["residual"]["ms"] is None:
        return Outcome(case, "", "", problems=[f"no accounting: {said['verdict']}"])
    residual = terms["residual"]["ms"] / step
    outcome = Outcome(case, "nothing", "", residual=residual, verdict=said["verdict"])
    if abs(residual) > RESIDUAL:
        outcome.problems.append(f"residual {residual:.1%}")
    expected = [
        Expected(e.term, truth if e.ms is None else e.ms, e.ranks, e.phase, e.would_save)
        for e in case.expected
    ]
    if expected:
        check_terms(outcome, expected, terms)
    if case.finding and case.finding not in {f["code"] for f in said["findings"]}:
        outcome.problems.append(f"no {case.finding}")
    if case.checkpoint_s is not None:
        check_checkpoint(outcome, case.checkpoint_s, said)
    if not case.causes and not expected:
        loud = [f"{f['code']} ({f['severity']})" for f in said["findings"] if f["severity"] in LOUD]
        outcome.problems += loud
        outcome.reported = f"T {step:.1f} ms, {said['efficiency']['value']:.0%}"
    return outcome


def check_terms(outcome: Outcome, expected: list[Expected], terms: dict[str, Any]) -> None:
    planted, reported = [], []
    for e in expected:
        assert e.ms is not None
        term = terms[e.term]
        planted.append(f"{e.term} {e.ms:.1f}")
        reported.append(f"{e.term} {term['ms']:.1f}")
        if not near(term["ms"], e.ms):
            outcome.problems.append(f"{e.term}: {term['ms']:.1f} for {e.ms:.1f} ms")
        if e.ranks is not None and sorted(term["ranks"]) != sorted(e.ranks):
            outcome.problems.append(f"ranks {term['ranks']} for {list(e.ranks)}")
        if e.phase is not None and term["phase"] != e.phase:
            outcome.problems.append(f"phase {term['phase']} for {e.phase}")
        if e.would_save is not None and not near(term["would_save_ms"], e.would_save):
            outcome.problems.append(f"saves {term['would_save_ms']:.1f} for {e.would_save:.1f} ms")
    leader = max((t for t in terms.values() if t["ms"] is not None), key=lambda t: t["ms"])
    close = [e.term for e in expected if abs((e.ms or 0) - (expected[0].ms or 0)) < TOLERANCE_MS]
    if leader["term"] not in close:
        outcome.problems.append(f"{leader['term']} leads ({leader['ms']:.1f} ms)")
    outcome.planted, outcome.reported = ", ".join(planted), ", ".join(reported)


def check_checkpoint(outcome: Outcome, seconds: float, said: dict[str, Any]) -> None:
    wall = said["wall"]
    outcome.planted = f"checkpoint {seconds:.2f} s"
    outcome.reported = f"checkpoint {wall['checkpoint_s']:.2f} s"
    if abs(wall["checkpoint_s"] - seconds) > max(TOLERANCE * seconds, 0.1):
        outcome.problems.append("checkpoint seconds")
    straggler = next(t for t in said["terms"] if t["term"] == "straggler")
    if straggler["ranks"]:
        outcome.problems.append(f"straggler {straggler['ranks']}: checkpoint in the steady state")


# -- output -----------------------------------------------------------------------------


def row(outcome: Outcome, traceml: bool) -> list[str]:
    case = outcome.case
    ok = "ok" if not outcome.problems else "; ".join(outcome.problems)
    cells = [
        case.name, str(case.ranks), outcome.planted, outcome.reported,
        f"{outcome.residual:+.2%}", f"{outcome.stolen:.1%}", ok,
    ]  # fmt: skip
    return [*cells, outcome.traceml] if traceml else cells


def markdown(outcomes: list[Outcome], seed: int, traceml: bool) -> str:
    titles = ["case", "ranks", "planted (ms/step)", "reported", "residual", "stolen", "result"]
    titles += ["TraceML says"] if traceml else []
    lines = [
        f"{describe_machine()}, seed {seed}",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(row(o, traceml)) + " |" for o in outcomes),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: temporary)")
    parser.add_argument("--traceml", type=Path, help="the `traceml` program, to ask it too")
    options = parser.parse_args()
    beside = options.traceml is not None
    print(f"seed {options.seed}")
    cases = [c for c in all_cases(options.seed, options.steps) if options.only in c.name]
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        where = (options.keep or Path(temporary)).resolve()
        where.mkdir(parents=True, exist_ok=True)
        bench = Bench(where, options.steps, options.seed, options.traceml)
        for number, case in enumerate(cases):
            outcome = bench.run(number, case)
            outcomes.append(outcome)
            print(" | ".join(row(outcome, beside)), flush=True)
            if options.markdown:  # after each case: what stands, stands
                options.markdown.write_text(markdown(outcomes, options.seed, beside))
    failed = sum(bool(o.problems) for o in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} cases right")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
