"""What is installed is what is in the tree, and nothing at the top level but `diag`."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import diag

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
# The suite also runs from outside a checkout, against the installed wheel (.ci/run).
in_checkout = pytest.mark.skipif(
    not (ROOT / "diag" / "__init__.py").exists(), reason="not in a checkout"
)


def packages_in_tree() -> set[str]:
    found = set()
    for folder in ("diag", "probes", "reports"):
        for init in (ROOT / folder).rglob("__init__.py"):
            # rglob does not follow diag/probes and diag/reports, which are links.
            name = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(name if folder == "diag" else f"diag.{name}")
    return found


@in_checkout
def test_every_package_is_listed() -> None:
    listed = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages_in_tree())


@in_checkout
def test_the_links_are_relative_links() -> None:
    for name in ("probes", "reports"):
        assert (ROOT / "diag" / name).is_symlink()
        assert os.readlink(ROOT / "diag" / name) == f"../{name}"


def test_nothing_else_is_importable_at_the_top() -> None:
    # A training repository's own `reports` must be found, so ours must not be.
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('probes', 'reports')])"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout == "[None, None]\n"


@pytest.mark.skipif((ROOT / "diag").exists(), reason="installed from a checkout, not a wheel")
def test_the_wheel_holds_every_package_and_diag_alone() -> None:
    files = metadata.files("diag") or []
    modules = {file.parts[0] for file in files if file.suffix == ".py"}
    assert modules == {"diag"}
    for package in ("diag/probes", "diag/reports/findings", "diag/reports/render", "diag/launch"):
        assert any(str(file).startswith(f"{package}/__init__.py") for file in files), package


def test_version_and_entry_point_agree() -> None:
    assert metadata.version("diag") == diag.__version__
    scripts = metadata.entry_points(group="console_scripts", name="diag")
    assert [script.value for script in scripts] == ["diag.cli.main:main"]


def test_typed_marker_is_installed() -> None:
    assert (Path(diag.__file__).parent / "py.typed").exists()
