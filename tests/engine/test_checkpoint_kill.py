"""`kill -9` at any moment of a save: the previous checkpoint loads, or the new one whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.launching import clean_environ

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.checkpoint_kill", str(folder)],
        cwd=Path(__file__).resolve().parents[1],
        env=clean_environ(OMP_NUM_THREADS="1"),
        timeout=110,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("way", ["over", "new"])
def test_killed_before_every_single_change(told: Any, way: str) -> None:
    kills = told[way]
    assert len(kills) > 15, "a save makes more changes to the file system than that"
    assert [kill["code"] for kill in kills] == [-9] * (len(kills) - 1) + [0]
    values = [kill["after"] for kill in kills]
    assert set(values) == {1.0, 2.0}
    assert values == sorted(values), "there is one instant at which the new one takes over"


def test_what_is_half_done_is_named_so(told: Any) -> None:
    for kill in told["new"]:
        if kill["after"] == 1.0:
            assert set(kill["names"]) <= {"checkpoint_0", "checkpoint_1.incomplete"}
        else:
            assert "checkpoint_1" in kill["names"]


@pytest.mark.parametrize("way", ["over", "new"])
def test_the_next_save_succeeds_and_clears_away(told: Any, way: str) -> None:
    for kill in told[way]:
        assert (kill["third"], kill["left"]) == (3.0, [])
        assert kill["kept"] == 2, "one checkpoint with one data folder"


def test_killed_while_a_file_grows(told: Any) -> None:
    kill = told["writing"]
    assert kill["code"] == -9
    assert 1 << 20 <= kill["written"] < 3000 * 3000 * 4
    assert kill["names"] == ["checkpoint_0", "checkpoint_1.incomplete"]
    assert (kill["found"], kill["value"]) == ("checkpoint_0", 1.0)


def test_a_full_disk_is_an_error_that_leaves_nothing(told: Any) -> None:
    full = told["full"]
    assert [slug for slug, _ in full["errors"]] == ["checkpoint-io"] * 2
    assert all("File too large" in what for _, what in full["errors"])
    assert (full["left"], full["value"]) == ([], 1.0)


def test_one_rank_of_two_is_killed(told: Any) -> None:
    # The other is told by gloo that its peer has gone; which words it uses is gloo's affair.
    assert told["two"]["codes"][1] == -9
    assert told["two"]["codes"][0] > 0
    assert told["two"]["value"] == 1.0
