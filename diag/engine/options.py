"""What a user can choose about the engine, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class DDPOptions:
    """How DDP synchronizes; the names are DistributedDataParallel's own."""

    bucket_cap_mb: float | None = None
    static_graph: bool = False
    gradient_as_bucket_view: bool = False
    find_unused_parameters: bool = False
    broadcast_buffers: bool = True


@dataclass(frozen=True)
class FSDPOptions:
    """How `fully_shard` cuts a model.

    Attributes:
        wrap_classes: class names of the blocks to shard one by one (`("Block",)`).
        wrap_min_params: else, from the bottom up, every module that brings together at least so
            many parameters not in a block yet. With neither: the classes that the model's own
            `_no_split_modules` names, else torch's transformer layers, else the children of the
            largest ModuleList or Sequential of one kind of module.
        reshard_after_forward: give the gathered parameters back after each forward.
        activation_checkpointing: recompute the blocks' activations in backward; under DDP and in
            a single process too.
        methods: other methods of the model that compute without calling it (`("score",)`); they
            gather and synchronize as forward does, under DDP too.
    """

    wrap_classes: Sequence[str] = ()
    wrap_min_params: int | None = None
    reshard_after_forward: bool = True
    activation_checkpointing: bool = False
    methods: Sequence[str] = ()


@dataclass(frozen=True)
class DataOptions:
    """How loaders are divided among the ranks.

    Attributes:
        split_batches: the loader's batch is the whole job's and is cut in N; else each rank
            takes batches of that size: rank r in step s gets batch s·N + r.
        even_batches: pad the tail by cycling from the start, so that all ranks take the same
            number of full batches. False: the tail is divided as it is.
        dispatch_batches: rank 0 alone reads and sends the others their parts. None: only for
            iterable datasets.
        use_seedable_sampler: a shuffle whose order is the same for every number of ranks.
        data_seed: that order's seed; None: of the loader's own generator, else drawn from
            torch's; rank 0's counts.
        non_blocking: copy to the device without waiting (pinned memory).
    """

    split_batches: bool = False
    even_batches: bool = True
    dispatch_batches: bool | None = None
    use_seedable_sampler: bool = True
    data_seed: int | None = None
    non_blocking: bool = False
