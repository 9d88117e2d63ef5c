"""The one session of this process, where wrappers that must not hold it in a closure find it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diag.probes.session import Session

session: Session | None = None
