"""Do all ranks hold the same nest of tensors? One small collective asks; a second tells who differs.

Without it a collective of unlike tensors hangs, aborts an innocent rank, or returns nonsense.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from diag.engine import wire
from diag.engine.process import Process
from diag.engine.trees import Leaf
from diag.errors import DiagError

# Sizes that fit in the first message; longer nests need a second.
_FIRST = 29


@dataclass(frozen=True)
class Agreed:
    """What the ranks said.

    Attributes:
        sizes: by rank, each tensor's size along the free dimension; 0 where it has none.
        notes: by rank, the numbers it added.
    """

    sizes: list[list[int]]
    notes: list[list[int]]


def agree(
    process: Process,
    operation: str,
    leaves: Sequence[Leaf],
    free: int | None = None,
    notes: Sequence[int] = (),
    hint: str = "",
) -> Agreed:
    """Make sure that the tensors are alike on all ranks but for their size along dimension `free`.

    Collective. A leaf that is no tensor is compared by its path alone.

    Args:
        operation: what was called, for the error.
        free: the dimension that may differ, negative ones from the end; None: none may.
        notes: a few numbers for the other ranks; equally many on each.

    Raises:
        DiagError: they differ; on every rank, naming ranks and shapes.
    """
    told = [_describe(leaf, free) for leaf in leaves]
    sizes = [_size(leaf, free) for leaf in leaves]
    signature = zlib.crc32("\n".join(told).encode())
    first = [*sizes[:_FIRST], *[0] * (_FIRST - len(sizes))]
    rows = wire.exchange(process, [signature, len(leaves), *notes, *first])
    if len({(row[0], row[1]) for row in rows}) > 1:
        raise _difference(process, operation, leaves, free, hint)
    start = 2 + len(notes)
    agreed = [row[start : start + len(leaves)] for row in rows]
    if len(leaves) > _FIRST:
        more = wire.exchange(process, sizes[_FIRST:])
        agreed = [few + rest for few, rest in zip(agreed, more, strict=True)]
    return Agreed(agreed, [row[2:start] for row in rows])


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 2`, `ranks 0 and 3`, `ranks 0 to 6`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _free_of(tensor: Tensor, free: int | None) -> int | None:
    if free is None or not -tensor.ndim <= free < tensor.ndim:
        return None
    return free % tensor.ndim


def _size(leaf: Leaf, free: int | None) -> int:
    if not isinstance(leaf.value, Tensor):
        return 0
    dim = _free_of(leaf.value, free)
    return 0 if dim is None else leaf.value.shape[dim]


def _describe(leaf: Leaf, free: int | None) -> str:
    if not isinstance(leaf.value, Tensor):
        return leaf.path
    dim = _free_of(leaf.value, free)
    shape = ", ".join("*" if i == dim else str(n) for i, n in enumerate(leaf.value.shape))
    return f"{leaf.path} {str(leaf.value.dtype).removeprefix('torch.')} [{shape}]"


def _difference(
    process: Process, operation: str, leaves: Sequence[Leaf], free: int | None, hint: str
) -> DiagError:
    """The error that names the first place where the ranks differ. Collective."""
    mine = [(_describe(leaf, free), _describe(leaf, None)) for leaf in leaves]
    everyone: list[list[tuple[str, str]]] = wire.gather_object(process, mine)
    for at in zip_longest(*everyone):
        if len({told[0] if told else "" for told in at}) > 1:
            break
    holders: dict[str, list[int]] = {}
    for rank, told in enumerate(at):
        holders.setdefault(told[1].strip() if told else "nothing there", []).append(rank)
    listed = "; ".join(f"{name_ranks(ranks)}: {told}" for told, ranks in holders.items())
    return DiagError(
        "ranks-disagree", f"{operation}: the ranks hold different tensors. {listed}.", hint
    )
