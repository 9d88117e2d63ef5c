"""A broadcast holds up its receivers only: its root waits for nobody."""

from __future__ import annotations

import numpy as np
import pytest

from diag.record.schema import PHASES
from diag.reports.panel import I64, Panel, Waits
from diag.reports.replay import replay

MS = 1_000_000


def broadcast_then_reduce(early: tuple[int, int], late: tuple[int, int], root: int) -> Panel:
    """Two ranks, one step: `early` ms before a broadcast, `late` ms before the reduction.

    The first rank sends; the wall times are what a free network gives.
    """
    sent = early[0] if root == 0 else max(early)
    received = (early[0], max(early[1], sent)) if root == 0 else (max(early), max(early))
    arrived = tuple(at + own for at, own in zip(received, late, strict=True))
    end = max(arrived)

    def waits(rank: int) -> Waits:
        begin = np.array([early[rank], arrived[rank]], np.int64) * MS
        return Waits(
            key=np.array([1, 2], np.int64),
            step=np.zeros(2, np.int64),
            issue_ns=begin,
            wait_ns=begin,
            end_ns=np.array([received[rank], end], np.int64) * MS,
            world=np.ones(2, np.bool_),
            root=np.array([root, -1], np.int64),
        )

    phases: I64 = np.zeros((2, 1, len(PHASES)), np.int64)
    for rank in range(2):
        own = early[rank] + late[rank]
        phases[rank, 0, PHASES.index("forward")] = own * MS
        phases[rank, 0, PHASES.index("exposed_comm")] = (end - own) * MS
    return Panel(
        ranks=(0, 1),
        index=np.zeros(1, np.int64),
        start_ns=np.zeros((2, 1), np.int64),
        end_ns=np.full((2, 1), end * MS),
        phases_ns=phases,
        samples=np.ones((2, 1)),
        tokens=np.full((2, 1), np.nan),
        flags=np.zeros((2, 1), np.int64),
        probe_ns=np.zeros((2, 1), np.int64),
        waits=(waits(0), waits(1)),
    )


@pytest.mark.parametrize(
    ("early", "late", "root", "inner_ms"),
    [
        ((10, 40), (50, 20), 0, 0),  # the receiver is late first, the root later: nobody waits
        ((40, 10), (20, 50), 0, 30),  # the root is late first: the receiver's 50 come after
        ((10, 40), (50, 20), -1, 30),  # were it an all-reduce, the first rank would wait
        ((25, 25), (25, 25), 0, 0),
    ],
)
def test_only_receivers_wait(
    early: tuple[int, int], late: tuple[int, int], root: int, inner_ms: int
) -> None:
    panel = broadcast_then_reduce(early, late, root)
    assert replay(panel, np.ones(1, np.bool_)).inner_ns.tolist() == [inner_ms * MS]
