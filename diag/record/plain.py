"""Values as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any


def plain_json(value: Any) -> Any:
    """Tuples to lists, keys to str, numbers that are not finite to None: JSON has none of these."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
