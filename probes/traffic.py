"""Collectives as one rank sees them: when it handed them over, when it blocked, when it was let go.

A collective is noted when it is issued and becomes a row when somebody has waited for it.
Rows keep the timeline's position of their end, so that a cut can tell which step they belong to.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import diag
from diag.probes.timeline import Stamp

MAX_PENDING = 2048
# Installed trainers whose frames are not the user's; torch's and our own are found by path.
TRAINERS = ("accelerate", "lightning", "pytorch_lightning", "transformers")


@cache
def _library_prefixes() -> tuple[str, ...]:
    import torch

    own = os.path.dirname(os.path.abspath(__file__))
    package = os.path.dirname(os.path.abspath(diag.__file__))
    libraries = (os.path.dirname(torch.__file__), own, os.path.realpath(own), package)
    return tuple(path + os.sep for path in libraries)


@cache
def is_library(filename: str) -> bool:
    """Whether a frame of this file belongs to torch, a trainer, the interpreter or diag."""
    if filename.startswith(("<frozen ", *_library_prefixes())):
        return True
    _, found, installed = filename.rpartition("/site-packages/")
    if found:
        return installed.split("/", 1)[0] in TRAINERS
    return filename.startswith(_standard_library())


@cache
def _standard_library() -> str:
    return sysconfig.get_paths()["stdlib"] + os.sep


@dataclass(slots=True)
class Issued:
    """A collective on its way."""

    group: str
    seq: int
    op: str
    num_bytes: int
    dtype: str
    issue: Stamp
    site: str
    root: int | None = None
    work: weakref.ref[Any] | None = None


@dataclass(slots=True)
class Blocked:
    """A collective somebody waited for; `position` is the timeline's at its release."""

    issued: Issued
    wait: Stamp | None
    end: Stamp | None
    source: str
    position: int


class Traffic:
    """Issued and waited-for collectives of this rank.

    Args:
        ranks_of: the global ranks of a process group, given the group object.
    """

    def __init__(self, rank: int, ranks_of: Callable[[Any], list[int]]) -> None:
        self.rank = rank
        self.ranks_of = ranks_of
        self.pending: dict[int, Issued] = {}
        self.rows: list[Blocked] = []
        self.groups: dict[str, list[int]] = {}
        self.sequence: dict[str, int] = {}
        self._sites: dict[tuple[CodeType, int], str | None] = {}

    def next_seq(self, group: str) -> int:
        seq = self.sequence.get(group, -1) + 1
        self.sequence[group] = seq
        return seq

    def note_group(self, name: str, group: Any) -> None:
        if name not in self.groups:
            self.groups[name] = self.ranks_of(group)

    def issue(self, group: Any, op: str, args: Iterable[Any], stamp: Stamp) -> Issued:
        """Note a collective that is being handed to the backend."""
        name = str(group.group_name)
        if op in POINT_TO_POINT:
            name += "/p2p"
            self.groups.setdefault(name, [self.rank])
        else:
            self.note_group(name, group)
        num_bytes, dtype = payload(args)
        root = root_of(op, args, self.groups[name])
        return Issued(name, self.next_seq(name), op, num_bytes, dtype, stamp, self.site(), root)

    def follow(self, issued: Issued, work: Any) -> None:
        """Remember which Work will be waited for. The Work is not kept alive: it holds tensors."""
        if work is None:
            return
        issued.work = weakref.ref(work)
        self.pending[id(work)] = issued
        if len(self.pending) > MAX_PENDING:
            self._drop_dead()

    def claim(self, work: Any) -> Issued | None:
        """What `work` stands for, once. An id may be reused: the reference decides."""
        issued = self.pending.pop(id(work), None)
        if issued is None or issued.work is None or issued.work() is not work:
            return None
        return issued

    def take_rows(self, position: int) -> list[Blocked]:
        """Rows that ended at or before `position`."""
        if not self.rows or self.rows[-1].position <= position:  # they end in order
            taken, self.rows = self.rows, []
            return taken
        taken = [row for row in self.rows if row.position <= position]
        self.rows = [row for row in self.rows if row.position > position]
        return taken

    def _drop_dead(self) -> None:
        alive = {k: i for k, i in self.pending.items() if i.work is not None and i.work()}
        # Works nobody waits for (fire and forget) must not pile up either.
        self.pending = dict(list(alive.items())[-MAX_PENDING // 2 :])

    def site(self) -> str:
        """ "file:line" of the innermost frame that is not a library's."""
        frame = sys._getframe(1)
        for _ in range(40):
            key = (frame.f_code, frame.f_lineno)
            site = self._sites.get(key, "")
            if site == "":
                filename = frame.f_code.co_filename
                site = None if is_library(filename) else f"{filename}:{frame.f_lineno}"
                self._sites[key] = site
            if site is not None:
                return site
            if frame.f_back is None:
                break
            frame = frame.f_back
        return ""


POINT_TO_POINT = frozenset({"send", "recv", "recv_anysource"})
ONE_TO_ALL = frozenset({"broadcast", "scatter"})


def root_of(op: str, args: Iterable[Any], ranks: Sequence[int]) -> int | None:
    """The global rank all others wait for, told by the options of a broadcast or scatter."""
    if op not in ONE_TO_ALL:
        return None
    for arg in args:
        position = getattr(arg, "rootRank", None)
        if isinstance(position, int) and 0 <= position < len(ranks):
            return ranks[position]
    return None


def payload(args: Iterable[Any]) -> tuple[int, str]:
    """(bytes, dtype) of the largest tensor argument; list arguments count whole."""
    best, dtype = 0, ""
    for arg in args:
        tensors = arg if isinstance(arg, (list, tuple)) else (arg,)
        size = 0
        kind = ""
        for item in tensors:
            for tensor in item if isinstance(item, (list, tuple)) else (item,):
                nbytes = getattr(tensor, "nbytes", None)
                if isinstance(nbytes, int):
                    size += nbytes
                    kind = str(tensor.dtype)
        if size >= best and kind:
            best, dtype = size, kind
    return best, dtype.removeprefix("torch.")
