"""The `diag` command itself: a word that is no command."""

from __future__ import annotations

import pytest

from diag.cli.main import COMMANDS, build, unknown_command


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("report", "'scaling-report'"),
        ("Report", "'scaling-report'"),
        ("scaling", "'scaling-report'"),
        ("scalling-reprot", "'scaling-report'"),
        ("doctr", "'doctor'"),
        ("runn", "'run' or 'runs'"),
        ("train.py", "'run train.py'"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(word: str, meant: str) -> None:
    assert unknown_command(word, COMMANDS) == (f"No such command {word!r}. Did you mean {meant}?")


@pytest.mark.parametrize("word", ["", "xyzzy"])
def test_any_other_word_with_all_there_are(word: str) -> None:
    assert unknown_command(word, COMMANDS).endswith(f"The commands are: {', '.join(COMMANDS)}.")


def test_a_new_command_is_suggested_without_more_ado() -> None:
    assert "Did you mean 'compare'?" in unknown_command("compre", [*COMMANDS, "compare"])


def test_the_command_line_says_so_and_exits_as_for_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        build()(["report"], prog_name="diag")
    assert ended.value.code == 2
    assert "No such command 'report'. Did you mean 'scaling-report'?" in capsys.readouterr().err


def test_an_unknown_option_is_left_to_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build()(["--no-such-option"], prog_name="diag")
    assert ended.value.code == 2
    assert "No such option: --no-such-option" in capsys.readouterr().err
