"""Which modules of a model FSDP shards one by one: its blocks.

A block's parameters are gathered together just before it computes, so a good block is the unit
the model repeats. What no block holds is gathered with the model itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from diag.engine.options import FSDPOptions
from diag.errors import DiagError

_log = logging.getLogger(__name__)
_LISTED_CLASSES = 12


def find_blocks(model: nn.Module, options: FSDPOptions) -> list[nn.Module]:
    """The modules to shard one by one, outer before inner; the model is not among them.

    Left out are modules without parameters or without a forward of their own, and those that
    share a parameter with the rest of the model: both users must find it gathered.

    Raises:
        DiagError: a class named in the options is not in the model.
    """
    if options.wrap_classes:
        chosen = _by_class(model, options.wrap_classes)
    elif options.wrap_min_params is not None:
        chosen = _by_size(model, options.wrap_min_params)
    else:
        chosen = _by_default(model)
    candidates = [m for m in _inside(model) if m in chosen and _computes(m) and _has_parameters(m)]
    return list(_without_shared(model, candidates))


def _by_class(model: nn.Module, names: Iterable[str]) -> set[nn.Module]:
    present = Counter(type(m).__name__ for m in model.modules())
    for name in names:
        if name not in present:
            listed = ", ".join(f"{n} ×{k}" for n, k in present.most_common(_LISTED_CLASSES))
            raise DiagError(
                "no-such-block",
                f"wrap_classes names {name}, but the model has no module of that class.",
                hint=f"Its classes: {listed}{', …' if len(present) > _LISTED_CLASSES else ''}.",
            )
    return {m for m in model.modules() if type(m).__name__ in set(names)}


def _by_size(model: nn.Module, least: int) -> set[nn.Module]:
    """Bottom-up, every module that brings together `least` parameters not in a block yet."""
    chosen: set[nn.Module] = set()

    def left_over(module: nn.Module) -> int:
        # Attention uses its output projection's weight without calling that module.
        whole = isinstance(module, nn.MultiheadAttention)
        left = sum(p.numel() for p in module.parameters(recurse=whole))
        left += 0 if whole else sum(left_over(child) for child in module.children())
        if left < least or not _computes(module):
            return left
        chosen.add(module)
        return 0

    left_over(model)
    return chosen


def _by_default(model: nn.Module) -> set[nn.Module]:
    """What the model calls indivisible; else torch's transformer layers; else what it repeats."""
    named = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    torchs = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return (
        {m for m in model.modules() if type(m).__name__ in named}
        or {m for m in model.modules() if isinstance(m, torchs)}
        or _repeated(model)
    )


def _repeated(model: nn.Module) -> set[nn.Module]:
    """The children of the largest list of one kind of module (of any list, if none is of one
    kind), and the model's other modules of that kind where it is no layer of torch's."""
    lists = [
        [child for child in m.children() if _has_parameters(child)]
        for m in model.modules()
        if isinstance(m, (nn.ModuleList, nn.Sequential))
    ]
    best = max(lists, key=_worth, default=[])
    kinds = {type(m) for m in best if not type(m).__module__.startswith("torch.")}
    return {*best, *(m for m in model.modules() if type(m) in kinds)}


def _worth(children: list[nn.Module]) -> tuple[bool, int]:
    repeated = len(children) > 1 and len({type(child) for child in children}) == 1
    return repeated, sum(p.numel() for child in children for p in child.parameters())


def _inside(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if m is not model)


def _computes(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _without_shared(model: nn.Module, candidates: list[nn.Module]) -> Iterator[nn.Module]:
    users: dict[nn.Parameter, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, set()).add(module)
    names = {module: name for name, module in model.named_modules()}
    for candidate in candidates:
        within = set(candidate.modules())
        shared = next((p for p in candidate.parameters() if not users[p] <= within), None)
        if shared is None:
            yield candidate
        else:
            others = ", ".join(sorted(names[m] or "the model" for m in users[shared] - within))
            _log.info("%s is no block of its own: %s uses its weight", names[candidate], others)
