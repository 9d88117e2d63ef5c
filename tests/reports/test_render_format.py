"""Formatters, literally."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag.reports import format as f


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (18.2149, "18.2"),
        (0.031249, "0.0312"),
        (999.6, "1000"),
        (1234.0, "1230"),
        (-18.26, "-18.3"),
        (9.996, "10.0"),
    ],
)
def test_significant_digits_never_use_an_exponent(value: float, text: str) -> None:
    assert f.significant(value) == text


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(-0.04, 1, "0.0"), (0.05, 1, "0.1"), (None, 1, "-"), (-0.06, 1, "-0.1"), (12.0, 2, "12.00")],
)
def test_table_cells_have_no_negative_zero(value: float | None, decimals: int, text: str) -> None:
    assert f.fixed(value, decimals) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.697, "70%"), (0.004, "0.4%"), (0.0, "0%"), (-0.17, "-17%"), (1.143, "114%"), (None, "-")],
)
def test_percent(share: float | None, text: str) -> None:
    assert f.percent(share) == text


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (1.4249, 1, "1.42x"),
        (1.996, 1, "2.0x"),
        (2.76, 1, "2.8x"),
        (2.76, 2, "2.76x"),
        (44.13, 1, "44x"),
        (44.13, 2, "44.1x"),
        (None, 1, "-"),
    ],
)
def test_speedup(value: float | None, decimals: int, text: str) -> None:
    assert f.speedup(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1_610_612_736, "1.50 GiB"), (None, "-")],
)
def test_size(value: int | None, text: str) -> None:
    assert f.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (42.0, "42.0 s"), (99.96, "1 min 40 s"), (3605.0, "1 h 00 min"), (None, "-")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert f.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-3.0, "just now"),
        (59.0, "just now"),
        (60.0, "1 min ago"),
        (7200.0, "2 h ago"),
        (2e6, "23 d ago"),
    ],
)
def test_age(value: float, text: str) -> None:
    assert f.age(value) == text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ((2,), "rank 2"),
        ((1, 3), "ranks 1 and 3"),
        ((0, 1, 2, 3, 7), "ranks 0-3 and 7"),
        ((4, 5), "ranks 4 and 5"),
        (tuple(range(0, 40, 2)), "20 ranks (0, 2, 4, 6, 8, 10, 12, 14, ...)"),
    ],
)
def test_rank_names(ranks: tuple[int, ...], text: str) -> None:
    assert f.rank_names(ranks) == text


def test_printable_drops_what_a_terminal_would_obey() -> None:
    assert f.printable("a\x1b[31mb\u202ec\nd\x00e\udc80") == "a[31mbc de"


@given(st.text(max_size=40), st.integers(1, 30))
def test_clip_never_passes_its_width(text: str, width: int) -> None:
    assert f.display_width(f.clip(f.printable(text), width)) <= width


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6))
def test_command_lines_read_back_as_the_same_words_when_printable(words: list[str]) -> None:
    words = [f.printable(word) or "x" for word in words]
    lines = f.command_lines(f.command(words), 40)
    # A shell drops a backslash before the end of a line; shlex does not.
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == words


def test_a_word_with_control_characters_survives_bash_unprinted() -> None:
    word = "it's \x1b[31m \\ 名"
    (line,) = f.command_lines(f.command(["printf", "%s", word]), 200, indent="")
    assert "\x1b" not in line
    shell = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert shell.stdout == word
