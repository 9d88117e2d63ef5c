"""A verdict as JSON: the outside contract ``diag.hang/1``.

The schema is docs/schemas/hang-1.json. Additive changes keep the number.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from diag.codes import CATALOGUE
from diag.reports.hang.model import CallSite, Pending, Place, Verdict

SCHEMA = "diag.hang/1"


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The contract's object: built from dicts, lists, str, int, finite float, bool and None."""
    seconds = verdict.seconds_to_verdict
    return {
        "schema": SCHEMA,
        "run": verdict.run,
        "code": verdict.code,
        "title": CATALOGUE[verdict.code].title if verdict.code else None,
        "proven": verdict.proven,
        "pause": verdict.pause,
        "culprits": list(verdict.culprits),
        "waiting": list(verdict.waiting),
        "collective": _collective(verdict.collective),
        "location": _location(verdict.location),
        "sites": [_site(site) for site in verdict.sites],
        "why": verdict.why,
        "seconds_to_verdict": round(seconds, 3) if math.isfinite(seconds) else None,
        "evidence": list(verdict.evidence),
        "missing": list(verdict.missing),
        "hint": verdict.hint,
        "docs": CATALOGUE[verdict.code].docs if verdict.code else None,
    }


def _collective(pending: Pending | None) -> dict[str, Any] | None:
    if pending is None:
        return None
    return {
        "op": pending.op,
        "seq": pending.seq,
        "group": pending.group,
        "bytes": pending.num_bytes,
        "dtype": pending.dtype,
    }


def _location(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else asdict(place)


def _site(site: CallSite) -> dict[str, Any]:
    return {"ranks": list(site.ranks), "what": site.what, "location": _location(site.place)}


def render_verdict_json(verdict: Verdict) -> str:
    """One JSON document, indented, ASCII, ending in a newline."""
    return json.dumps(verdict_json(verdict), indent=2, allow_nan=False) + "\n"
