"""How many samples a step trained on, told by the loader's own indices where possible.

Order of trust (design: samples): the user's word, the loader's batch size, the batch's leading
dimension. Sequence-first, ragged and packed batches make the leading dimension lie, so it is
asked last and only believed when at least two tensors agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 3


@dataclass
class LoaderSizes:
    """What is known of one loader iterator's batches, oldest first."""

    drawn: deque[int] = field(default_factory=deque)  # index lists drawn, not yet delivered
    nominal: int | None = None  # loader.batch_size
    full_lead: int | None = None  # leading dimension of the first batch, for iterable datasets
    handed_over: bool = False  # the engine reads, and says when the training takes a batch


def leading_dimensions(batch: Any, depth: int = 0) -> Iterator[int]:
    """shape[0] of every tensor in a nested batch (tuples, lists, mappings)."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        if len(shape) > 0:
            yield int(shape[0])
    elif depth < MAX_DEPTH:
        if isinstance(batch, Mapping):
            items: Any = batch.values()
        elif isinstance(batch, (list, tuple)):
            items = batch[:16]
        else:
            items = ()
        for item in items:
            yield from leading_dimensions(item, depth + 1)


def agreed_lead(batch: Any, at_least: int) -> int | None:
    """The leading dimension all tensors share, if there are `at_least` that many of them."""
    leads = list(leading_dimensions(batch))
    if len(leads) >= at_least and len(set(leads)) == 1:
        return leads[0]
    return None


def batch_samples(batch: Any, sizes: LoaderSizes, iterable: bool) -> int | None:
    """Samples in a delivered batch; None when nothing can be trusted."""
    if sizes.drawn and not iterable:
        return sizes.drawn.popleft()
    if sizes.nominal is None:
        return agreed_lead(batch, at_least=2)
    lead = agreed_lead(batch, at_least=1)
    if sizes.full_lead is None:
        sizes.full_lead = lead
    # An iterable dataset's last batch is short; believe it only where full batches led with
    # the batch size, which a sequence-first batch does not.
    if lead is not None and sizes.full_lead == sizes.nominal and lead < sizes.nominal:
        return lead
    return sizes.nominal


def batch_tokens(batch: Any) -> int | None:
    """Tokens of a Hugging Face style batch: the attention mask's sum, else input_ids' size.

    Only for CPU tensors: reading a CUDA tensor would synchronize.
    """
    if isinstance(batch, (list, tuple)) or not isinstance(batch, Mapping):
        return None  # the common kinds first: asking for a Mapping is slow
    if "input_ids" not in batch:
        return None
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if getattr(ids, "is_cuda", True):
        return None
    if mask is not None and not getattr(mask, "is_cuda", True):
        return int(mask.sum())
    return int(ids.numel())
