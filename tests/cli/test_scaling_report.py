"""`diag scaling-report`: which runs it takes, what it prints, how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diag.cli.scaling_report import Options, scaling_report
from diag.errors import DiagError, UsageError
from diag.record.atomic import read_json_object, write_json_atomic
from diag.record.store import RunDir
from helpers.cases import local_ms, phase
from helpers.records import released_together, write_run

CREATED = "2026-01-{:02d}T00:00:00+00:00"


def record(runs_dir: Path, name: str, local: np.ndarray, day: int, **facts: Any) -> Path:
    phases = released_together((local * 1e6).astype(np.int64), 200_000 if len(local) > 1 else 0)
    facts = {"created": CREATED.format(day), **facts}
    return write_run(runs_dir, phases, name=name, samples=128 // len(local), run_facts=facts)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An old run, a baseline, and the newest run, in which rank 2 is slow."""
    runs_dir = tmp_path / "runs"
    record(runs_dir, "old", local_ms(4, 60), 1)
    record(runs_dir, "base", 4 * local_ms(1, 60), 2)
    local = local_ms(4, 80)
    local[2, :, phase("backward")] += 18.0
    record(runs_dir, "new", local, 3)
    return runs_dir


def printed(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    assert scaling_report(Options(**options)) == 0
    return capsys.readouterr().out


def test_the_newest_run_and_its_baseline_are_explained(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, runs_dir=store)
    assert text.startswith("3.1x on 4 CPU ranks (77% efficient): rank 2 is slow in backward")
    assert "new: 4 CPU ranks" in text
    assert "base: 1 rank, measured" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_newer_run_that_failed_is_passed_over_in_one_line(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, "boom", local_ms(4, 9), 4, exit_code=1)
    assert scaling_report(Options(runs_dir=store)) == 0
    printed = capsys.readouterr()
    assert "new: 4 CPU ranks" in printed.out
    assert "boom" not in printed.out
    assert printed.err == (
        "diag: newer run boom failed (exit 1); explain it with: "
        f"diag scaling-report boom --runs-dir {store}\n"
    )
    assert scaling_report(Options(runs_dir=store, run="boom")) == 0
    printed = capsys.readouterr()
    assert "boom: 4 CPU ranks" in printed.out
    assert printed.err == ""


def test_a_run_may_be_named_or_given_by_its_path(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "old: 4 CPU ranks" in printed(capsys, run="old", runs_dir=store)
    text = printed(capsys, run=str(store / "old"), runs_dir=tmp_path / "elsewhere")
    assert "base: 1 rank, measured" in text  # its neighbours came with it


def test_json_is_one_document(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = json.loads(printed(capsys, runs_dir=store, as_json=True))
    assert contents["schema"] == "diag.scaling-report/1"
    assert contents["run"]["name"] == "new"
    assert contents["findings"][0]["code"] == "slow-rank"


def test_markdown_is_printed_on_request(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, runs_dir=store, as_markdown=True).startswith("**3.1x on 4 CPU ranks")


def test_a_page_is_written_beside_the_text(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert printed(capsys, runs_dir=store, html=page).startswith("3.1x")
    html = page.read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert html.count("<svg") == 4


def test_findings_can_be_ignored(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = json.loads(printed(capsys, runs_dir=store, as_json=True, ignore=("slow-rank",)))
    assert contents["findings"] == []


def test_without_a_baseline_the_command_is_shown(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(store / "base")
    run.update_run_json(threads=4)
    text = printed(capsys, runs_dir=store)
    assert text.startswith("No baseline: at most 3.1x")
    words = " ".join(text.replace("\\\n", " ").split())
    assert "diag run --gpus 1 --device cpu --threads 1 --max-steps 60 --name new-baseline" in words
    assert "base is no baseline: 1 thread against 4" in words


def test_an_incomparable_baseline_is_refused_unless_forced(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDir(store / "base").update_run_json(threads=4, script_args=["--big"])
    with pytest.raises(DiagError) as error:
        scaling_report(Options(runs_dir=store, baseline="base"))
    assert error.value.slug == "not-comparable"
    assert "other arguments: none against --big; 1 thread against 4" in error.value.what
    text = " ".join(printed(capsys, runs_dir=store, baseline="base", force=True).split())
    assert text.startswith("3.1x")
    assert "new and base are compared by force: other arguments" in text


def test_repeats_are_taken_together(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in (4, 5):
        record(store, f"base{day}", 4 * local_ms(1, 60, seed=day), day)
        record(store, f"new{day}", local_ms(4, 60, seed=day), day)
    contents = json.loads(printed(capsys, runs_dir=store, as_json=True, repeats=True))
    assert contents["intervals"]["kind"] == "between-runs"
    assert contents["baseline"]["runs"] == 3
    alone = json.loads(printed(capsys, runs_dir=store, as_json=True))
    assert alone["intervals"]["kind"] == "within-run"
    assert alone["baseline"] == {**alone["baseline"], "runs": 1, "name": "base5"}


# -- refusals -----------------------------------------------------------------------------


def refused(**options: Any) -> DiagError:
    with pytest.raises(DiagError) as error:
        scaling_report(Options(**options))
    assert error.value.hint
    return error.value


def test_no_such_run(store: Path) -> None:
    error = refused(runs_dir=store, run="nwe")
    assert (error.slug, error.exit_code) == ("no-such-run", 3)
    assert "new" in error.hint


def test_no_such_baseline(store: Path) -> None:
    assert refused(runs_dir=store, baseline="bsae").slug == "no-such-run"


def test_an_empty_store(tmp_path: Path) -> None:
    assert refused(runs_dir=tmp_path).slug == "no-runs"


def test_a_single_rank(store: Path) -> None:
    assert refused(runs_dir=store, run="base").slug == "one-rank-run"


def test_a_baseline_as_large_as_the_run(store: Path) -> None:
    assert refused(runs_dir=store, baseline="old").slug == "baseline-not-smaller"


def test_an_empty_directory(store: Path) -> None:
    (store / "hollow").mkdir()
    error = refused(runs_dir=store, run="hollow")
    assert (error.slug, error.exit_code) == ("empty-run", 3)


def test_a_newer_schema(store: Path) -> None:
    path = store / "new" / "run.json"
    write_json_atomic(path, {**read_json_object(path), "schema": {"major": 9, "minor": 0}})
    error = refused(runs_dir=store, run="new")
    assert error.slug == "newer-record"
    assert "9.0" in error.what


def test_a_page_that_cannot_be_written(store: Path, tmp_path: Path) -> None:
    error = refused(runs_dir=store, html=tmp_path / "no" / "such" / "report.html")
    assert error.slug == "cannot-write"


def test_wrong_usage(store: Path) -> None:
    for options in ({"as_json": True, "as_markdown": True}, {"ignore": ("slow-rnak",)}):
        with pytest.raises(UsageError) as error:
            scaling_report(Options(runs_dir=store, **options))
        assert error.value.exit_code == 2


# -- as a process -------------------------------------------------------------------------


def diag(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diag.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **environ},
        check=False,
    )


def test_exit_codes_and_streams_of_the_command(store: Path) -> None:
    well = diag("scaling-report", "--runs-dir", str(store))
    assert (well.returncode, well.stderr) == (0, "")
    missing = diag("scaling-report", "nope", "--runs-dir", str(store))
    assert missing.returncode == 3
    assert missing.stdout == ""
    assert missing.stderr.startswith("error[no-such-run]: ")
    assert "Traceback" not in missing.stderr
    assert diag("scaling-report", "--ignore", "nope", "--runs-dir", str(store)).returncode == 2


def test_a_name_the_terminal_cannot_show_does_not_end_it(store: Path) -> None:
    (store / "new").rename(store / "новый")
    shown = diag("scaling-report", "--runs-dir", str(store), PYTHONIOENCODING="ascii")
    assert shown.returncode == 0
    assert "?????: 4 CPU ranks" in shown.stdout


def test_no_heavy_import_on_the_text_path(store: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from diag.cli.scaling_report import Options, scaling_report\n"
        "scaling_report(Options(runs_dir=Path(sys.argv[1])))\n"
        "print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(store)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ran.stderr.strip() == "set()"
