"""The store: names, collisions, what cannot be written, and finding a run again."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diag.errors import DiagError, ExitCode, UsageError
from diag.record.atomic import write_json_atomic
from diag.record.store import create_run, default_runs_dir, find_run, list_runs, newest_run


def refuse(*_args: object, **_kwargs: object) -> None:
    """In place of a system call: permissions do not stop root."""
    raise PermissionError(13, "Permission denied")


def test_a_run_is_private_and_ready_for_ranks_and_logs(tmp_path: Path) -> None:
    run = create_run(tmp_path / "store", "first", "train.py")
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert run.path == tmp_path / "store" / "first"
    assert run.ranks.is_dir()
    assert run.logs.is_dir()
    assert run.rank_dir(3, 1) == run.ranks / "00003-1"


def test_the_default_name_is_the_scripts_stem_and_a_time(tmp_path: Path) -> None:
    run = create_run(tmp_path, None, Path("some where/my train!.py"))
    stem, day, clock = run.name.rsplit("-", 2)
    assert stem == "my-train"
    assert (len(day), len(clock)) == (8, 6)


def test_a_taken_name_gets_a_suffix_and_is_never_overwritten(tmp_path: Path) -> None:
    names = [create_run(tmp_path, "a", "x.py").name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_launchers_at_the_same_moment_get_different_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: create_run(tmp_path, "same", "x.py"), range(64)))
    assert len({run.path for run in runs}) == 64


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/abs", ".hidden", "x" * 129, "a\nb", "a b", "-x"]
)
def test_a_name_that_is_no_directory_name_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_run(tmp_path, name, "x.py")
    assert caught.value.slug == "bad-run-name"
    assert caught.value.exit_code == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


def test_a_runs_dir_that_is_a_file_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiagError, match=r"cannot create a run in .*: File exists") as caught:
        create_run(tmp_path / "file", "a", "x.py")
    assert caught.value.slug == "runs-dir-not-writable"
    assert "--runs-dir" in caught.value.hint


def test_a_runs_dir_without_permission_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiagError, match="Permission denied") as caught:
        create_run(tmp_path / "locked", "a", "x.py")
    assert caught.value.exit_code == ExitCode.DIAG_FAILED


def test_run_json_is_replaced_whole_and_updated_by_field(tmp_path: Path) -> None:
    run = create_run(tmp_path, "a", "x.py")
    run.write_run_json({"name": "a", "ended_by": None})
    run.update_run_json(ended_by="script", exit_code=0)
    assert run.facts() == {"name": "a", "ended_by": "script", "exit_code": 0}
    assert stat.S_IMODE(run.run_json.stat().st_mode) == 0o600
    assert [p.name for p in run.path.iterdir() if p.is_file()] == ["run.json"]


def test_a_failed_replacement_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json_atomic(path, {"good": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == {"good": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_runs_are_listed_newest_first_by_their_own_clock(tmp_path: Path) -> None:
    for name, created in [("b", "2026-01-02"), ("c", "2026-01-03"), ("a", "2026-01-01")]:
        run = create_run(tmp_path, name, "x.py")
        run.write_run_json({"created": f"{created}T00:00:00+00:00", "world_size": len(name)})
    os.utime(tmp_path / "a")  # copied or touched since: its mtime is the newest
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "a-file").write_text("")
    assert [run.name for run in list_runs(tmp_path)] == ["c", "b", "a"]
    newest = newest_run(tmp_path, lambda run: run.name < "c")
    assert newest is not None
    assert newest.name == "b"
    assert newest_run(tmp_path, lambda _: False) is None


def test_no_store_is_an_empty_store(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == ()


def test_a_run_is_found_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    run = create_run(store, "a", "x.py")
    elsewhere = create_run(tmp_path / "other", "copied", "x.py")
    monkeypatch.chdir(tmp_path)
    assert find_run(store, "a").path == run.path
    assert find_run(store, "other/copied").path == elsewhere.path
    assert find_run(store, elsewhere.path).path == elsewhere.path
    monkeypatch.chdir(elsewhere.path)
    assert find_run(store, ".").path == elsewhere.path


def test_a_run_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path: Path) -> None:
    for name in ("demo", "demo-2", "other"):
        create_run(tmp_path, name, "x.py")
    with pytest.raises(DiagError, match="no run 'demo-3'") as caught:
        find_run(tmp_path, "demo-3")
    assert caught.value.slug == "no-such-run"
    assert caught.value.exit_code == 3
    assert caught.value.hint == "there are: demo-2, demo, and 1 more (`diag runs`)"


def test_an_empty_store_says_how_to_record_a_run(tmp_path: Path) -> None:
    with pytest.raises(DiagError) as caught:
        find_run(tmp_path / "none", "a")
    assert "diag run" in caught.value.hint


@pytest.mark.parametrize("name", ["", "x" * 5_000, "a\0b", "no/such/path"])
def test_what_can_be_no_name_at_all_is_not_found_either(tmp_path: Path, name: str) -> None:
    with pytest.raises(DiagError) as caught:
        find_run(tmp_path, name)
    assert caught.value.slug == "no-such-run"


def test_a_store_that_may_not_be_read_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DiagError, match=r"cannot list .*: Permission denied"):
        list_runs(tmp_path)


def test_the_store_may_be_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIAG_RUNS_DIR", raising=False)
    assert default_runs_dir() == Path("diag-runs")
    monkeypatch.setenv("DIAG_RUNS_DIR", "/somewhere")
    assert default_runs_dir() == Path("/somewhere")
