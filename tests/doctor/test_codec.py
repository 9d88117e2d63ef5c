"""Facts to JSON and back; files that are cut off, changed or of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diag.doctor import codec
from diag.errors import DiagError
from helpers.machines import FOLDER, NAMES, healthy, machine, timed_out


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(codec.dumps(machine(name)))
    assert codec.load(tmp_path / "facts.json") == machine(name)


def test_missing_sources_survive(tmp_path: Path) -> None:
    facts = healthy(nvml=timed_out(), clock=timed_out())
    (tmp_path / "facts.json").write_text(codec.dumps(facts))
    assert codec.load(tmp_path / "facts.json") == facts


def test_cut_off_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    whole = (FOLDER / "no-gpu.json").read_text()
    path = tmp_path / "facts.json"
    for length in range(0, len(whole.rstrip()), 7):
        path.write_text(whole[:length])
        with pytest.raises(DiagError) as caught:
            codec.load(path)
        assert caught.value.slug == "facts-unreadable"
        assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", "diag.doctor-facts/2", "diag.doctor-facts/2"),
        ("schema", None, "None"),
        ("cpu", {"count": "two", "affinity": 2, "quota": None}, "Facts.cpu.count"),
        ("cpu", {"count": True, "affinity": 2, "quota": None}, "Facts.cpu.count"),
        ("cpu", {"count": 2}, "affinity"),
        ("cpu", None, "Facts.cpu"),
        ("nvml", {"missing": "perhaps", "why": ""}, "missing"),
        ("taken", 5, "Facts.taken"),
    ],
)
def test_what_does_not_fit_is_named(key: str, value: object, words: str, tmp_path: Path) -> None:
    document = json.loads((FOLDER / "no-gpu.json").read_text()) | {key: value}
    (tmp_path / "facts.json").write_text(json.dumps(document))
    with pytest.raises(DiagError, match="cannot be read") as caught:
        codec.load(tmp_path / "facts.json")
    assert words in caught.value.what


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="cannot be read"):
        codec.load(tmp_path / "none.json")


def test_keys_of_a_newer_minor_are_ignored(tmp_path: Path) -> None:
    document = json.loads((FOLDER / "no-gpu.json").read_text()) | {"weather": "fine"}
    (tmp_path / "facts.json").write_text(json.dumps(document))
    assert codec.load(tmp_path / "facts.json") == machine("no-gpu")
