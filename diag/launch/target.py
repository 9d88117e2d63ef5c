"""The script or module to run: found, read and parsed before any rank is started."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from diag.errors import UsageError


@dataclass(frozen=True)
class Target:
    """What every rank will run as __main__.

    Attributes:
        name: as the user typed it; becomes sys.argv[0] (a script) or the module's name.
        path: the source file; None for a module without one.
        sha256: of the source, "" without one.
    """

    name: str
    module: bool
    path: Path | None
    sha256: str


def find_target(name: str, module: bool) -> Target:
    """Locate and parse what is to be run.

    Raises:
        UsageError: it does not exist, is a directory, cannot be read, or is not valid Python.
    """
    path = _find_module(name) if module else _find_script(name)
    if path is None or path.suffix == ".pyc":
        return Target(name, module, path, "")
    source = _read(path)
    check_syntax(source, str(path) if module else name)
    return Target(name, module, path, hashlib.sha256(source).hexdigest())


def _find_script(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise UsageError(
            "script-is-directory",
            f"{name} is a directory, not a script",
            _among(sorted(p.name for p in path.glob("*.py")), "it holds"),
        )
    if not path.exists():
        raise UsageError("no-such-script", f"no such script: {name}", _near(path))
    return path


def _near(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.glob("*.py"))
    except OSError:
        return ""
    return _among(get_close_matches(path.name, names), "did you mean")


def _among(names: list[str], lead: str) -> str:
    shown = ", ".join(names[:5])
    return f"{lead} {shown}{' …' if len(names) > 5 else ''}" if names else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            "script-unreadable", f"cannot read {path}: {error.strerror or error}"
        ) from error


def check_syntax(source: bytes, name: str) -> None:
    """Compile `source` without running it.

    Raises:
        UsageError: `syntax-error`, with file:line, the line itself and a caret below the place.
    """
    try:
        compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UsageError("syntax-error", describe_syntax_error(error, name)) from error
    except ValueError as error:  # null bytes: not text at all
        raise UsageError("not-python", f"{name} is not a Python source file: {error}") from error


def describe_syntax_error(error: SyntaxError, name: str) -> str:
    """`name:line: message`, then the source line with a caret, as Python itself shows it."""
    head = f"{name}:{error.lineno}: {error.msg}" if error.lineno else f"{name}: {error.msg}"
    if not error.text:
        return head
    line = error.text.rstrip("\n").expandtabs(1)
    body = line.lstrip()
    caret = max(0, (error.offset or 1) - 1 - (len(line) - len(body)))
    return f"{head}\n    {body}\n    {' ' * caret}^"


def _find_module(name: str) -> Path | None:
    """The source file `python -m name` would run; nothing is imported, so no code of it runs."""
    parts = name.split(".")
    spec = _spec(parts[0], None)
    for depth in range(2, len(parts) + 1):
        search = spec.submodule_search_locations if spec is not None else None
        spec = _spec(".".join(parts[:depth]), search) if search is not None else None
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec(f"{name}.__main__", spec.submodule_search_locations)
        if spec is None:
            raise UsageError("no-main-module", f"{name} is a package without a __main__ module")
    if spec is None:
        raise UsageError(
            "no-such-module",
            f"no module named {name}",
            f"to run a file, leave -m out: diag run {name}" if Path(name).is_file() else "",
        )
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _spec(name: str, search: Iterable[str] | None) -> importlib.machinery.ModuleSpec | None:
    # At the top, the current directory comes first, as it does for `python -m`.
    paths = ["", *sys.path] if search is None else list(search)
    found = importlib.machinery.PathFinder.find_spec(name, paths)
    if found is not None:
        return found
    for finder in sys.meta_path:  # editable installs bring finders of their own
        try:
            found = finder.find_spec(name, search if search is None else paths)
        except (ImportError, AttributeError):
            continue
        if found is not None:
            return found
    return None
