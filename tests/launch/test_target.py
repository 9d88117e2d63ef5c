"""What is to be run, looked at before any rank is started."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from diag.errors import UsageError
from diag.launch.target import find_target


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(name: str, module: bool = False) -> UsageError:
    with pytest.raises(UsageError) as caught:
        find_target(name, module)
    assert caught.value.exit_code == 2
    return caught.value


def test_script(here: Path) -> None:
    (here / "train.py").write_text("x = 1")
    target = find_target("./train.py", module=False)
    assert target.path == Path("train.py")
    assert target.name == "./train.py"
    assert target.sha256 == hashlib.sha256(b"x = 1").hexdigest()


def test_no_such_script(here: Path) -> None:
    (here / "train.py").touch()
    error = refusal("trian.py")
    assert (error.slug, error.what) == ("no-such-script", "no such script: trian.py")
    assert error.hint == "did you mean train.py"
    assert refusal("nowhere/at/all.py").hint == ""


def test_directory(here: Path) -> None:
    (here / "src").mkdir()
    (here / "src" / "train.py").touch()
    error = refusal("src")
    assert error.slug == "script-is-directory"
    assert error.hint == "it holds train.py"


def test_unreadable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The suite may run as root, whom no mode keeps out.
    (here / "train.py").touch()

    def refuse(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal("train.py").what == "cannot read train.py: Permission denied"


def test_syntax_error_has_line_and_caret(here: Path) -> None:
    (here / "train.py").write_text("import os\nif True:\n    x = = 3\n")
    error = refusal("train.py")
    assert error.slug == "syntax-error"
    assert error.what.splitlines() == [
        "train.py:3: invalid syntax",
        "    x = = 3",
        "        ^",
    ]


def test_unfinished_source(here: Path) -> None:
    (here / "train.py").write_text("print((1, 2)\n")
    assert refusal("train.py").what.splitlines()[0] == "train.py:1: '(' was never closed"


def test_not_text(here: Path) -> None:
    (here / "model.bin").write_bytes(b"\x00\x01")
    assert refusal("model.bin").slug in ("not-python", "syntax-error")


def test_declared_encoding_is_honoured(here: Path) -> None:
    (here / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    assert find_target("latin.py", module=False).sha256


def test_module_is_found_without_running_anything(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "pkg/__init__.py").write_text("raise SystemExit('must not run')")
    (here / "pkg/train.py").write_text("x = 1")
    (here / "pkg/__main__.py").write_text("x = 2")
    found = find_target("pkg.train", module=True).path
    assert found is not None
    assert found.resolve() == (here / "pkg/train.py").resolve()
    package = find_target("pkg", module=True).path
    assert package is not None
    assert package.name == "__main__.py"


def test_installed_module() -> None:
    assert find_target("json.tool", module=True).path is not None


def test_no_such_module(here: Path) -> None:
    (here / "train.py").touch()
    assert refusal("nothing_here", module=True).slug == "no-such-module"
    assert refusal("json.nothing", module=True).slug == "no-such-module"
    assert refusal("train.py", module=True).hint == (
        "to run a file, leave -m out: diag run train.py"
    )


def test_package_without_main(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "pkg/__init__.py").touch()
    assert refusal("pkg", module=True).slug == "no-main-module"
