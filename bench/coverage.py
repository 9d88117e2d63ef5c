"""Do the intervals hold the truth, and how often is noise called a cause?

Draws synthetic runs with known truth (tests/helpers/synthetic.py: 2 to 8 ranks, 60 to 400
steps, correlated lognormal noise shared and own, stragglers and rotation of size zero and more,
inner synchronizations, a one-rank baseline), accounts for them as `diag scaling-report` would,
and counts how often each 95% interval covers the population value; then the same worlds with
every cause removed, and counts findings.

    python bench/coverage.py [--records 600] [--seed N]

Prints the seed. Exits with 1 if a coverage lies outside 92-98% or a false-alarm rate above 1%.
With 200 records a coverage is known to ±3 points, with 600 to ±1.7.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from diag.reports.account import Accounting, account
from diag.reports.panel import Panel
from diag.reports.steady import steady
from helpers.synthetic import draw_world, noise_only, simulate, truth

LOW, HIGH, FALSE_ALARMS = 0.92, 0.98, 0.01
_ROUNDING_MS = 1e-6  # a nanosecond


@dataclass(frozen=True)
class Trial:
    """One interval against the truth."""

    below: bool  # the truth lies below the interval
    above: bool
    zero: bool  # the truth is zero
    width: float  # of the interval, as a share of the step (of the value, for ratios)


def main() -> int:
    options = _options()
    print(f"seed {options.seed}, {options.records} records")
    rng = np.random.default_rng(options.seed)
    started = time.perf_counter()
    covered = _print_coverage(_trials(rng, options.records))
    quiet = _print_false_alarms(rng, options.noise)
    print(f"\n{time.perf_counter() - started:.0f} s")
    return 0 if covered and quiet else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--noise", type=int, default=1000, help="records of pure noise")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    return parser.parse_args()


def _accounted(run: Panel, baseline: Panel) -> Accounting:
    return account(run, baseline, used=steady(run).used, baseline_used=steady(baseline).used)


def _trials(rng: np.random.Generator, records: int) -> dict[str, list[Trial]]:
    trials: dict[str, list[Trial]] = defaultdict(list)
    for _ in range(records):
        world = draw_world(rng)
        known = truth(world, rng, draws=20_000)
        result = _accounted(*simulate(world, rng))
        for term in result.terms:
            trials[term.term].append(_trial(known[term.term], term.low, term.high, known["step"]))
        for name, estimate in (("speedup", result.speedup), ("efficiency", result.efficiency)):
            trials[name].append(_trial(known[name], estimate.low, estimate.high, known[name]))
    return trials


def _trial(known: float, low: float | None, high: float | None, whole: float) -> Trial:
    assert low is not None
    assert high is not None
    slack = _ROUNDING_MS
    zero = abs(known) <= slack
    return Trial(known < low - slack, known > high + slack, zero, (high - low) / whole)


def _print_coverage(trials: dict[str, list[Trial]]) -> bool:
    print("\nterm           covered  ±95%   truth below  above   of zeros (n)    width")
    fine = True
    for name, each in trials.items():
        share = np.mean([not (t.below or t.above) for t in each])
        zeros = [not (t.below or t.above) for t in each if t.zero]
        of_zeros = f"{np.mean(zeros):6.1%} ({len(zeros)})" if zeros else "-"
        inside = LOW <= share <= HIGH
        fine &= bool(inside)
        print(
            f"{name:14} {share:7.1%} {_margin(float(share), len(each)):6.1%}"
            f" {np.mean([t.below for t in each]):12.1%} {np.mean([t.above for t in each]):6.1%}"
            f"   {of_zeros:>12} {np.median([t.width for t in each]):8.2%}"
            f"{'' if inside else '   OUTSIDE 92-98%'}"
        )
    return fine


def _margin(share: float, number: int) -> float:
    return 1.96 * sqrt(share * (1 - share) / number)


def _print_false_alarms(rng: np.random.Generator, records: int) -> bool:
    alarms: dict[str, int] = {"slow-rank": 0, "jitter": 0}
    for _ in range(records):
        result = _accounted(*simulate(noise_only(draw_world(rng)), rng))
        alarms["slow-rank"] += result.slow_rank
        alarms["jitter"] += result.rotating
    print(f"\nfalse alarms in {records} records of pure noise")
    for name, number in alarms.items():
        share = number / records
        verdict = "" if share <= FALSE_ALARMS else "   MORE THAN 1%"
        print(f"{name:14} {share:7.1%}  ({number}){verdict}")
    return all(number <= FALSE_ALARMS * records for number in alarms.values())


if __name__ == "__main__":
    sys.exit(main())
