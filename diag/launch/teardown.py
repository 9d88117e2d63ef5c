"""After a script that ended well: take torch.distributed down in an order that does not abort."""

from __future__ import annotations

import gc
import sys
from types import FunctionType, ModuleType


def leave_process_group(main: ModuleType) -> None:
    """Destroy the process group if the script left it, once no DDP module lives on.

    gloo aborts in some exits when a DistributedDataParallel outlives its process group, so the
    script's objects go first. Should one be held elsewhere, everything is left to the
    interpreter, as without diag. Never call it after an exception: peers may wait forever.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    if _ddp_alive():
        drop_objects(main)
        gc.collect()
    if not _ddp_alive():
        dist.destroy_process_group()


def _ddp_alive() -> bool:
    parallel = sys.modules.get("torch.nn.parallel.distributed")
    if parallel is None:
        return False
    ddp = parallel.DistributedDataParallel
    # type() rather than isinstance: proxies among all objects must not be made to resolve.
    return any(issubclass(type(obj), ddp) for obj in gc.get_objects())


def drop_objects(module: ModuleType) -> None:
    """Forget the objects a script made; what it imported and defined stays for late callers."""
    kept = (ModuleType, FunctionType, type)
    for name, value in list(vars(module).items()):
        if not name.startswith("__") and not isinstance(value, kept):
            del module.__dict__[name]
