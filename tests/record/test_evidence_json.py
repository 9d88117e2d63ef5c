"""Evidence of a hang survives the way through a file, and what is damaged costs only itself."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diag.errors import RecordError
from diag.record.evidence import (
    ChildProcess,
    Collective,
    Failure,
    Frame,
    GroupProgress,
    HangEvidence,
    RankEvidence,
    Reading,
    Thread,
)
from diag.record.evidence_json import (
    decode_evidence,
    encode_evidence,
    read_evidence,
    write_evidence,
)

STACK = Thread("MainThread", (Frame("train.py", 12, "main"),), main=True, owns_gil=True)
FULL = RankEvidence(
    rank=1,
    node=0,
    host="a",
    pid=7,
    state="gone",
    exit_code=-9,
    ended="exception",
    failure=Failure("ValueError", "no", 5, "train.py", 3, "main", "Traceback"),
    step=4,
    phase="forward",
    beat_age_s=1.5,
    groups=(
        GroupProgress(
            "0", (0, 1), 2, 1, (Collective(1, "all_reduce", 4, "float32", 0, "t:1", ((2, 3), ())),)
        ),
    ),
    threads=(STACK,),
    children=(ChildProcess(9, "sleeping", "python", (STACK,)),),
    cpu_s=0.25,
    oom_killed=True,
    loader_ended=False,
    missing=("gpu: none",),
)
EVIDENCE = HangEvidence(
    "run", 2, "gloo", 4.0, 3.0, None, (Reading(11, (FULL,)),), {0: "checkpoint", 1: "compile"}
)


def through_json(contents: Any) -> HangEvidence:
    return decode_evidence(json.loads(json.dumps(contents, allow_nan=False)))


def rank_of(contents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = contents["readings"][0]["ranks"][0]
    return found


def test_nothing_is_lost_on_the_way() -> None:
    assert through_json(encode_evidence(EVIDENCE)) == EVIDENCE


def test_a_file_is_private_and_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    write_evidence(path, EVIDENCE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_evidence(path) == EVIDENCE


def test_unknown_fields_are_ignored() -> None:
    contents = encode_evidence(EVIDENCE)
    contents["later"] = 1
    rank_of(contents)["later"] = {"a": []}
    assert through_json(contents) == EVIDENCE


def test_what_is_missing_takes_its_default() -> None:
    contents = {"schema": "diag.hang-evidence/1", "readings": [{"ranks": [{"rank": 3}]}]}
    evidence = through_json(contents)
    assert (evidence.run, evidence.world_size, evidence.limit_s) == ("", 0, None)
    assert evidence.readings[0].ranks == (RankEvidence(3, 0, "", 0, "unknown"),)


@pytest.mark.parametrize(
    ("field", "wrong", "expected"),
    [
        ("step", "many", -1),
        ("step", True, -1),
        ("state", "dancing", "unknown"),
        ("groups", {"0": 1}, ()),
        ("failure", [1], None),
        ("beat_age_s", 2, 2.0),
        ("cpu_s", "1", None),
        ("threads", [17, None], ()),
    ],
)
def test_what_misfits_takes_its_default(field: str, wrong: Any, expected: Any) -> None:
    contents = encode_evidence(EVIDENCE)
    rank_of(contents)[field] = wrong
    rank = through_json(contents).readings[0].ranks[0]
    assert getattr(rank, field) == expected
    assert replace(rank, **{field: getattr(FULL, field)}) == FULL


def test_one_damaged_item_does_not_cost_the_others() -> None:
    contents = encode_evidence(EVIDENCE)
    contents["readings"][0]["ranks"].insert(0, "torn")
    contents["flagged"] = {"0": "checkpoint", "x": "compile", "1": 5}
    evidence = through_json(contents)
    assert evidence.readings == EVIDENCE.readings
    assert evidence.flagged == {0: "checkpoint"}


def test_what_is_not_finite_is_unknown() -> None:
    odd = replace(EVIDENCE, readings=(Reading(1, (replace(FULL, beat_age_s=math.nan),)),))
    assert through_json(encode_evidence(odd)).readings[0].ranks[0].beat_age_s is None


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("{}", "bad-evidence"),
        ('{"schema": "diag.hang/1"}', "bad-evidence"),
        ('{"schema": "diag.hang-evidence/1", "readings": [', "bad-evidence"),
        ("[]", "bad-evidence"),
        ("\xff", "bad-evidence"),
        ('{"schema": "diag.hang-evidence/2"}', "newer-evidence"),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path: Path, text: str, slug: str) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RecordError) as caught:
        read_evidence(path)
    assert caught.value.slug == slug
