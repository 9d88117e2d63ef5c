"""Tracebacks as the user's script alone would give them: without the worker's and probes' frames."""

from __future__ import annotations

import os
import sysconfig
import traceback
from types import TracebackType
from typing import Any

import diag
from diag.errors import DiagError

_PACKAGE = os.path.dirname(os.path.abspath(diag.__file__))
# Where a rank's own machinery lies; an error in diag's other parts is worth its full traceback.
_HIDDEN = tuple(os.path.join(_PACKAGE, room) + os.sep for room in ("launch", "probes"))
_MESSAGE_LIMIT = 2_000


def trim(error: BaseException) -> None:
    """Take the hidden frames out of `error` and of everything chained to it, in place."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = without_hidden(current.__traceback__)
        waiting += [current.__cause__, current.__context__]


def without_hidden(tb: TracebackType | None) -> TracebackType | None:
    """The same traceback without hidden frames; as it is, if nothing else would be left."""
    kept = [entry for entry in _entries(tb) if not _is_hidden(entry)]
    result: TracebackType | None = None
    for entry in reversed(kept):
        result = TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result or tb


def _entries(tb: TracebackType | None) -> list[TracebackType]:
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    return entries


def _is_hidden(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith(_HIDDEN)


def describe(error: BaseException) -> dict[str, Any]:
    """{type, message, file, line, function, hint} of `error`: the innermost place in the user's code."""
    place = user_entry(error.__traceback__)
    code = place.tb_frame.f_code if place else None
    return {
        "type": type(error).__qualname__,
        "message": message_of(error),
        "file": code.co_filename if code else None,
        "line": place.tb_lineno if place else None,
        "function": code.co_name if code else None,
        "hint": hint_of(error),
    }


def hint_of(error: BaseException) -> str:
    """What diag's own errors advise; "" for all others."""
    return error.hint if isinstance(error, DiagError) else ""


def message_of(error: BaseException) -> str:
    """str(error), cut to a bearable length; a broken __str__ must not lose the rest."""
    try:
        return str(error)[:_MESSAGE_LIMIT]
    except Exception:
        return "<its message cannot be shown>"


def user_entry(tb: TracebackType | None) -> TracebackType | None:
    """The innermost entry in neither a library nor diag; the innermost of all if there is none."""
    entries = _entries(tb)
    own = [entry for entry in entries if not _is_library(entry.tb_frame.f_code.co_filename)]
    candidates = own or entries
    return candidates[-1] if candidates else None


def _is_library(filename: str) -> bool:
    return filename.startswith(("<frozen", _PACKAGE + os.sep, *_library_roots()))


def _library_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[key] + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def text_of(error: BaseException) -> str:
    """The traceback as Python prints it."""
    return "".join(traceback.format_exception(error))
