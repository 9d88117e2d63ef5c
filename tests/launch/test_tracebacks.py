"""Tracebacks without diag's own frames, and where in the user's code an error arose."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

import diag
from diag.errors import DiagError
from diag.launch import tracebacks

_DIAG = os.path.dirname(os.path.abspath(diag.__file__))


CALL = "exec(*inner)"  # leaves no frame of its own


def raised(*layers: tuple[str, str]) -> BaseException:
    """The error of the innermost of nested sources, each running the next by CALL."""
    inner: Any = None
    for path, source in reversed(layers):
        inner = (compile(source, path, "exec"), {"inner": inner})
    try:
        exec(*inner)
    except BaseException as error:
        own = error.__traceback__  # this function's entry comes first
        return error.with_traceback(own.tb_next if own else None)
    raise AssertionError("nothing was raised")


def files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def test_frames_of_the_worker_and_the_probes_go_from_anywhere() -> None:
    error = raised(
        (f"{_DIAG}/launch/worker.py", CALL),
        ("/home/me/train.py", CALL),
        (f"{_DIAG}/probes/torch_seams.py", CALL),
        ("/lib/torch/autograd.py", "1/0"),
    )
    tracebacks.trim(error)
    assert files(error) == ["/home/me/train.py", "/lib/torch/autograd.py"]


def test_an_error_of_diags_own_stays_visible() -> None:
    error = raised((f"{_DIAG}/launch/worker.py", "1/0"))
    tracebacks.trim(error)
    assert files(error) == [f"{_DIAG}/launch/worker.py"]


def test_chains_are_trimmed_too_and_may_be_circular() -> None:
    first = raised((f"{_DIAG}/launch/worker.py", CALL), ("/home/me/a.py", "1/0"))
    second = raised((f"{_DIAG}/launch/worker.py", CALL), ("/home/me/b.py", "1/0"))
    second.__cause__, first.__context__ = first, second
    tracebacks.trim(second)
    assert f"{_DIAG}/launch/worker.py" not in files(first) + files(second)


def test_the_place_is_the_innermost_of_the_users_own() -> None:
    library = os.path.dirname(os.path.abspath(json.__file__))
    error = raised(
        ("/home/me/train.py", f"\n\n{CALL}"),
        (f"{library}/decoder.py", "raise ValueError('bad value')"),
    )
    assert tracebacks.describe(error) == {
        "type": "ValueError",
        "message": "bad value",
        "file": "/home/me/train.py",
        "line": 3,
        "function": "<module>",
        "hint": "",
    }


def test_messages_are_bounded_and_may_be_broken() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert len(tracebacks.message_of(ValueError("x" * 10_000))) == 2_000
    assert tracebacks.message_of(Broken()) == "<its message cannot be shown>"
    assert tracebacks.describe(Broken())["file"] is None


def test_an_error_of_diag_s_own_takes_its_hint_along() -> None:
    error = DiagError("no-tea", "There is no tea.", "Put the kettle on.")
    assert tracebacks.describe(error)["hint"] == "Put the kettle on."
    assert "hint: Put the kettle on." in "".join(traceback.format_exception(error))
