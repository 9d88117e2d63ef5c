"""What a rank is found doing, in words, and whose line it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from diag.record.evidence import Frame
from diag.reports.hang.activity import activity
from diag.reports.hang.model import Place
from diag.reports.hang.stacks import is_users, most_common, user_place
from helpers.hangs import C10D, TORCH, TRAIN, main, rank, worker

USER = (TRAIN, 88, "f")
LIB = "/usr/lib/python3.11"


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"state": "stopped"}, "stopped"),
        ({"state": "disk-sleep"}, "kernel"),
        ({"state": "running"}, "compute"),
        ({"state": "running", "threads": main(USER, owns_gil=True)}, "compute"),
        ({"threads": main(USER, owns_gil=True)}, "native"),
        ({"syscall": "clock_nanosleep 0x1"}, "sleep"),
        ({"wchan": "hrtimer_nanosleep"}, "sleep"),
        ({"wchan": "futex_wait_queue"}, "lock"),
        ({"wchan": "pipe_read"}, "read"),
        ({"syscall": "read 0x3"}, "read"),
        ({"wchan": "folio_wait_bit_common"}, "read"),
        ({"wchan": "do_wait"}, "child"),
        ({"syscall": "wait4"}, "child"),
        ({"syscall": "recvfrom"}, "network"),
        ({"wchan": "ep_poll"}, "network"),
        ({"wchan": "sk_wait_data"}, "network"),
        ({"threads": main((f"{LIB}/threading.py", 1, "wait"), USER)}, "lock"),
        ({"threads": main((f"{LIB}/subprocess.py", 1, "communicate"), USER)}, "read"),
        ({"threads": main(Frame("libc.so.6", 0, "clock_nanosleep", native=True), USER)}, "sleep"),
        ({"threads": main((f"{TORCH}/cuda/__init__.py", 1, "synchronize"), USER)}, "device"),
        ({"threads": main((TRAIN, 5, "synchronize"))}, "unknown"),
        ({"threads": main((f"{TORCH}/utils/data/dataloader.py", 1, "_next_data"), USER)}, "loader"),
        ({}, "unknown"),
    ],
)
def test_what_it_does(found: dict[str, Any], kind: str) -> None:
    one = rank(1, **{"threads": main(USER), **found})
    assert activity(one, one, answered=False, others_answered=False).kind == kind


def test_a_moment_in_the_kernel_is_nothing() -> None:
    now = rank(1, state="disk-sleep", threads=main(USER))
    before = replace(now, state="running")
    assert activity(now, before, answered=False, others_answered=False).kind != "kernel"


def test_who_answers_does_not_hold_the_lock() -> None:
    one = rank(1, threads=main(USER, owns_gil=True))
    assert activity(one, one, answered=True, others_answered=True).kind != "native"


@pytest.mark.parametrize(
    ("children", "words"),
    [
        ((), "waits for its loader"),
        ((worker(9),), "waits for its loader"),
        (
            (worker(9, ("/d/data.py", 12, "__getitem__")), worker(10)),
            "waits for its loader: worker 9 is at data.py:12 in __getitem__",
        ),
        ((worker(9, state="zombie"),), "waits for its loader: worker 9 is dead"),
        ((worker(9, state="stopped"),), "waits for its loader: worker 9 is stopped"),
    ],
)
def test_a_loaders_workers_are_told(children: tuple[Any, ...], words: str) -> None:
    stack = main((f"{TORCH}/utils/data/dataloader.py", 1, "_try_get_data"), USER)
    one = rank(1, threads=stack, children=children)
    assert activity(one, one, answered=False, others_answered=False).words == words


@pytest.mark.parametrize(
    ("file", "mine"),
    [
        (TRAIN, True),
        ("train.py", True),
        ("/home/me/torch/train.py", True),
        ("/home/me/diag/train.py", True),
        ("/home/me/probes/model.py", True),
        ("", False),
        (C10D, False),
        (f"{LIB}/threading.py", False),
        ("/venv/lib/python3.12/site-packages/lightning/loop.py", False),
        ("<frozen runpy>", False),
        ("/src/diag/launch/worker.py", False),
        ("/src/diag/probes/torch_seams.py", False),
        ("/src/probes/torch_seams.py", False),
        ("/src/pytorch/torch/nn/module.py", False),
        ("lib/hold.c", False),
        ("libcuda.so.1", False),
    ],
)
def test_whose_line_it_is(file: str, mine: bool) -> None:
    assert is_users(Frame(file, 1, "f")) is mine


def test_without_a_line_of_the_users_the_innermost_is_named() -> None:
    thread = main(Frame("a.c", 1, "x", native=True), (C10D, 9, "barrier"))[0]
    assert user_place(thread) == Place(C10D, 9, "barrier")
    assert user_place(None) is None


def test_the_line_most_share_is_named() -> None:
    a, b = Place("a.py", 1), Place("b.py", 1)
    assert most_common([b, None, b, a]) == b
    assert most_common([b, a]) == most_common([a, b]) == a
    assert most_common([None]) is None
