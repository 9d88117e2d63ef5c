"""Models larger than a device: their weights on several GPUs, on the CPU and on the disk."""

from diag.engine.big.devicemap import infer_device_map
from diag.engine.big.empty import init_empty_weights
from diag.engine.big.load import load_checkpoint_and_dispatch

__all__ = ["infer_device_map", "init_empty_weights", "load_checkpoint_and_dispatch"]
