"""The training engine: a custom single-GPU loop on N GPUs, equal to one process."""
