"""Loaders: each rank's part of the data, and where in it the training stands."""

from diag.engine.data.loader import Observer, PreparedLoader
from diag.engine.data.prepare import prepare_loader
from diag.engine.data.skipping import skip_first_batches

__all__ = ["Observer", "PreparedLoader", "prepare_loader", "skip_first_batches"]
