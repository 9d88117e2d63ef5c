"""A verdict as text of 80 columns, and as the JSON contract diag.hang/1."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diag.record.evidence import Failure
from diag.reports.format import display_width
from diag.reports.hang.verdict import judge
from diag.reports.render.hang_json import render_verdict_json, verdict_json
from diag.reports.render.hang_text import one_line, render_verdict
from helpers.hang_cases import ALL, Case, ahead, behind
from helpers.hangs import TRAIN, evidence, gone, group, main, rank, waiting

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/hang-1.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def case(name: str) -> Case:
    return next(one for one in ALL if one.name == name)


def test_the_text_is_as_agreed() -> None:
    given = replace(case("loader worker deadlocked").evidence, run="charlm", missing=("GPU: none",))
    assert render_verdict(judge(given)) == (
        "charlm: hang-missing-rank, suspected: A rank does not come, it is busy elsewhere\n"
        "\n"
        "  Rank 1 waits for its loader at train.py:40 in train: worker 9 is at data.py:12\n"
        "  in __getitem__; ranks 0 and 2 wait in all_reduce number 5 (4.00 KiB of\n"
        "  float32) at train.py:41 in train.\n"
        "\n"
        "  culprit     rank 1\n"
        "  where       /home/me/data.py:12 in __getitem__\n"
        "  waiting     ranks 0 and 2\n"
        "  collective  all_reduce number 5 (4.00 KiB of float32), group 0\n"
        "  after       5.0 s without progress of any rank\n"
        "\n"
        "Evidence\n"
        "  - rank 1: waits for its loader at train.py:40 in train: worker 9 is at\n"
        "    data.py:12 in __getitem__; 5 steps done\n"
        "  - ranks 0 and 2: in all_reduce number 5 (4.00 KiB of float32) at train.py:41\n"
        "    in train, for rank 1; 5 steps done\n"
        "  - no rank got on for 4.0 s before the first reading (3.0 s count as too long)\n"
        "  - two readings, 1.0 s apart: they are the same\n"
        "\n"
        "Could not be read\n"
        "  - GPU: none\n"
        "\n"
        "  > Look at the loader's worker: a lock or handle inherited over fork, a file\n"
        "    system that does not answer; try num_workers=0.\n"
        "    see docs/codes/hang-missing-rank.md\n"
    )


def test_a_pause_is_called_a_pause() -> None:
    text = render_verdict(judge(case("checkpoint on rank 0").evidence))
    assert text.startswith("run: no hang, but a pause (checkpoint)\n\n  Rank 0 is at a checkpoint")
    assert "  busy        rank 0\n" in text
    assert "culprit" not in text


def test_how_to_let_a_stopped_rank_go_on() -> None:
    text = render_verdict(judge(case("SIGSTOP before the collective").evidence))
    assert "`kill -CONT 101`" in text


def test_a_live_line_says_who_waits_for_whom() -> None:
    assert one_line(judge(case("sleeps in user code").evidence)) == (
        "hang-missing-rank (suspected): rank 1 sleeps at train.py:88 in slow; ranks 0 and 2 wait "
        "in all_reduce number 5 (4.00 KiB of float32) at train.py:41 in train"
    )


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_no_line_passes_80_columns(case: Case) -> None:
    text = render_verdict(judge(case.evidence))
    assert max(map(display_width, text.splitlines())) <= 80
    assert text.endswith("\n")


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_every_verdict_keeps_the_contract(case: Case) -> None:
    contents = json.loads(render_verdict_json(judge(case.evidence)))
    VALIDATOR.validate(contents)
    assert set(contents) <= set(SCHEMA["properties"])
    assert contents["code"] == case.code
    assert contents["culprits"] == list(case.culprits)


def test_the_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_both_call_sites_are_in_the_json() -> None:
    contents = verdict_json(judge(case("with two ranks both are named").evidence))
    sites = [(s["ranks"], s["location"]["line"]) for s in contents["sites"]]
    assert sorted(sites) == [([0], 43), ([1], 50)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", "hang-ghost"), ("culprits", ["1"]), ("location", {"file": "a"}), ("proven", None)],
)
def test_what_breaks_the_contract_is_refused(key: str, value: Any) -> None:
    contents = verdict_json(judge(case("SIGKILL").evidence))
    assert not VALIDATOR.is_valid(contents | {key: value})


def test_what_is_not_finite_becomes_null() -> None:
    verdict = replace(judge(case("SIGKILL").evidence), seconds_to_verdict=math.nan)
    assert verdict_json(verdict)["seconds_to_verdict"] is None


def test_what_a_script_wrote_cannot_command_the_terminal() -> None:
    failure = Failure("Bad\x1b[2J", "a\x1b]0;x\x07b\u202e" + "y" * 500, 1, "/t\x1b[31m.py", 3, "f")
    given = evidence(ahead(0), gone(1, group(("all_reduce", 41)), exit_code=1, failure=failure))
    verdict = judge(replace(given, run="r\x1b[5m"))
    text = render_verdict(verdict) + one_line(verdict)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(display_width, render_verdict(verdict).splitlines())) <= 80


def test_a_thousand_ranks_fit_on_a_page() -> None:
    late = [behind(r, threads=main((TRAIN, 1000 + r, "f"))) for r in range(40)]
    given = evidence(*late, *(waiting(r, group(*[("all_reduce", 41)] * 6, inside=True))
                              for r in range(40, 200)))  # fmt: skip
    lines = render_verdict(judge(given)).splitlines()
    assert len(lines) < 120
    assert any("see evidence.json" in line for line in lines)


def test_colour_is_added_after_layout() -> None:
    verdict = judge(case("SIGKILL").evidence)
    plain, coloured = render_verdict(verdict), render_verdict(verdict, colour=True)
    assert coloured.startswith("\x1b[1;31m")
    assert coloured.replace("\x1b[1;31m", "").replace("\x1b[0m", "") == plain


def test_rank_alone_has_no_groups() -> None:
    assert "no hang is seen" in render_verdict(judge(evidence(rank(0))))
