"""Every check has a code, a page with all its parts, and no page lacks its check."""

from __future__ import annotations

from pathlib import Path

import pytest

from diag.codes import CATALOGUE
from diag.doctor.catalogue import ALL

ROOT = Path(__file__).parents[2]
CODES = [c.code for c in ALL]
PARTS = ("What it means", "How it is seen", "Known limits", "Remedy", "How to silence it")


def test_codes_are_unique_and_in_the_catalogue() -> None:
    assert len(set(CODES)) == len(CODES)
    assert {c.code for c in CATALOGUE.values() if c.kind == "check"} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_check_has_its_page(code: str) -> None:
    page = (ROOT / CATALOGUE[code].docs).read_text(encoding="utf-8")
    assert page.startswith(f"# {code}\n")
    assert CATALOGUE[code].title in page
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == list(PARTS)
    assert f"--ignore {code}" in page
