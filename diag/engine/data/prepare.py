"""From a user's loader to this rank's: which kind of source it needs, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from diag.engine.agreement import name_ranks
from diag.engine.data import randomness
from diag.engine.data.dispatch import DispatchSource
from diag.engine.data.indices import IndexSource, RankSampler, SeededShuffle
from diag.engine.data.loader import Observer, PreparedLoader
from diag.engine.data.reading import Source, check_is_loader
from diag.engine.data.sharding import Share
from diag.engine.data.skipping import unskipped
from diag.engine.data.streams import AsTheyCome, StreamSource
from diag.engine.logs import get_logger
from diag.engine.options import DataOptions
from diag.engine.process import Process
from diag.errors import DiagError

_logger = get_logger(__name__)
_TORCHS_OWN = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
# Deprecated; a later torch may be without them.
_DATA_PIPES = tuple(
    getattr(torch.utils.data, name)
    for name in ("IterDataPipe", "MapDataPipe")
    if hasattr(torch.utils.data, name)
)
_FIXED = (SequentialSampler, SeededShuffle, list, tuple, range)


def prepare_loader(
    loader: DataLoader[Any],
    process: Process,
    options: DataOptions,
    observer: Observer,
    put_on_device: bool = True,
) -> PreparedLoader:
    """This rank's part of `loader`, which stays as it is. Collective; a prepared one comes back.

    Raises:
        DiagError: a batch that cannot be split; a sampler made for another job than this one;
            no loader.
    """
    check_is_loader(loader)
    if isinstance(loader, PreparedLoader):
        return loader
    loader, skipped = unskipped(loader)
    source = _source(loader, process, options, put_on_device)
    vars(source.reader).update(diag_hands_over=True)  # to the probes: see `seen`
    device = process.device if put_on_device else None
    prepared = PreparedLoader(
        loader, source, process.rank, observer, device, options.non_blocking, skipped
    )
    _warn_of_empty_ranks(loader, source, process)
    return prepared


def _source(
    loader: DataLoader[Any], process: Process, options: DataOptions, put_on_device: bool
) -> Source:
    if isinstance(loader.dataset, _DATA_PIPES):
        return AsTheyCome(loader)
    iterable = isinstance(loader.dataset, IterableDataset)
    replicas = 1 if iterable else _already_divided(loader, process)
    if replicas > 1:
        return _index_source(loader, options, process, [0], Share(replicas=replicas, even=False))
    dispatches = iterable if options.dispatch_batches is None else options.dispatch_batches
    dispatches = dispatches and process.distributed
    ranks = range(process.world_size) if dispatches else [process.rank]
    divided = Share(
        process.world_size, options.split_batches and process.distributed, options.even_batches
    )
    build = _stream_source if iterable else _index_source
    source = build(loader, options, process, ranks, divided)
    if not dispatches:
        return source
    return DispatchSource(source, process, put_on_device)


def _index_source(
    loader: DataLoader[Any],
    options: DataOptions,
    process: Process,
    ranks: Sequence[int],
    share: Share,
) -> Source:
    draws: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    inner = getattr(draws, "sampler", draws)
    batches = loader.batch_sampler is not None or isinstance(draws, BatchSampler)
    size = getattr(draws, "batch_size", None) if batches else None
    share = share.of(
        size if isinstance(size, int) else None,
        drop_last=batches and bool(getattr(draws, "drop_last", False)),
        sized=batches,
    )
    if share.replicas > 1 or _draws_nothing(draws):
        return IndexSource(loader, RankSampler(draws, share, ranks))
    seed = _seed(inner, options, process)
    if options.use_seedable_sampler and type(inner) is RandomSampler:
        shuffle = SeededShuffle(inner, seed)
        if inner is draws:
            return IndexSource(loader, RankSampler(shuffle, share, ranks, seed), shuffle)
        if type(draws) is BatchSampler:
            draws = BatchSampler(shuffle, draws.batch_size, draws.drop_last)
            return IndexSource(loader, RankSampler(draws, share, ranks, seed), shuffle)
    torch_only = type(inner) in _TORCHS_OWN and type(draws) in (BatchSampler, *_TORCHS_OWN)
    sources = randomness.sources_of(draws, inner, torch_only=torch_only)
    return IndexSource(loader, RankSampler(draws, share, ranks, seed, sources))


def _stream_source(
    loader: DataLoader[Any],
    options: DataOptions,
    process: Process,
    ranks: Sequence[int],
    share: Share,
) -> Source:
    size = loader.batch_size
    if loader.num_workers > 1 and process.distributed and not share.even:
        _logger.warning(
            f"even_batches=False: each of an iterable dataset's {loader.num_workers} workers has "
            "a last step of its own, so they are filled up all the same. gather_for_metrics "
            "leaves the repeated samples out."
        )
    share = share.of(size, drop_last=loader.drop_last, sized=size is not None)
    return StreamSource(loader, share, ranks, _seed(loader.dataset, options, process))


def _seed(drawing: Any, options: DataOptions, process: Process) -> int:
    """What the order depends on. Collective, unless the user chose it."""
    if options.data_seed is not None:
        return options.data_seed % (1 << 63)
    # Drawn by every rank, so that their generators stay in step; rank 0's counts.
    generator = getattr(drawing, "generator", None)
    own = generator if isinstance(generator, torch.Generator) else None
    seed = own.initial_seed() if own is not None else int(torch.randint(1 << 62, ()))
    return randomness.agreed_seed(process, seed % (1 << 63))


def _draws_nothing(draws: Any) -> bool:
    """Whether these indices come without random numbers."""
    return type(draws) in _FIXED or (type(draws) is BatchSampler and type(draws.sampler) in _FIXED)


def _already_divided(loader: DataLoader[Any], process: Process) -> int:
    """Among how many ranks the user's own sampler divides the indices; 1 if it does not.

    Raises:
        DiagError: it divides them for another job, or for another rank.
    """
    batch_sampler: Any = loader.batch_sampler
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), loader.sampler):
        replicas, rank = getattr(sampler, "num_replicas", 1), getattr(sampler, "rank", None)
        if not isinstance(replicas, int) or not isinstance(rank, int) or replicas == 1:
            continue
        name = type(sampler).__name__
        if (replicas, rank) != (process.world_size, process.rank):
            raise DiagError(
                "sampler-of-another-job",
                f"The loader's {name} takes share {rank} of {replicas}, but this is rank "
                f"{process.rank} of {process.world_size}.",
                hint="Leave the sampler out (shuffle=True): the engine divides the data.",
            )
        _logger.warning(
            f"The loader's {name} divides the data among {replicas} ranks already: it is taken "
            "as it is. Without it, the engine divides in the single process's order."
        )
        return replicas
    return 1


def _warn_of_empty_ranks(loader: DataLoader[Any], source: Source, process: Process) -> None:
    try:
        counts = [source.num_batches(rank) for rank in range(process.world_size)]
    except (TypeError, NotImplementedError):  # not known ahead
        return
    empty = [rank for rank, count in enumerate(counts) if not count]
    if len(empty) == len(counts):
        _logger.warning(f"A loader gives no batch: {_sizes(loader, source.share)}.")
    elif empty:
        _logger.warning(
            f"A loader gives no batch on {name_ranks(empty)}: {_sizes(loader, source.share)}. "
            "With even_batches=True it repeats samples, so that every rank gets as many batches."
        )


def _sizes(loader: DataLoader[Any], share: Share) -> str:
    size = f", batches of {share.full}" if share.full else ""
    dropped = ", drop_last=True" if share.drop_last else ""
    return f"{len(loader.dataset)} samples{size}, {share.num_ranks} ranks{dropped}"  # type: ignore[arg-type]
