"""diag: where did the speed-up go?"""

__version__ = "0.1.0"
