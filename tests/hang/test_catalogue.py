"""Every hang code has its page, with all its parts, and its place in the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diag.codes import CATALOGUE, Code

ROOT = Path(__file__).parents[2]
CODES = [code for code in CATALOGUE.values() if code.kind == "hang"]
PARTS = ("What it means", "How it is seen", "Known limits", "Remedy", "How to silence it")


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.code)
def test_every_code_has_its_page(code: Code) -> None:
    page = (ROOT / code.docs).read_text(encoding="utf-8")
    assert page.startswith(f"# {code.code}\n\n{code.title}.\n")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == list(PARTS)
    assert ("Proven, and" in page, "Only suspected" in page) == (
        code.severity_rule == "proven",
        code.severity_rule == "suspected",
    )


def test_the_contract_knows_them_all() -> None:
    schema = json.loads((ROOT / "docs/schemas/hang-1.json").read_text("utf-8"))
    assert set(schema["properties"]["code"]["enum"]) == {*(c.code for c in CODES), None}
