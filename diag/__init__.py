"""diag: where did the speed-up go?"""

from __future__ import annotations

from diag.labels import samples, span

__all__ = ["__version__", "samples", "span"]
__version__ = "0.1.0"
