"""In what two runs differ, in words a person knows the thing by: never a hash, never a field's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from diag.reports import format as f


@dataclass(frozen=True)
class Script:
    """A script is its contents; the path only names it."""

    sha256: str
    path: str = field(default="", compare=False)


@dataclass(frozen=True)
class Difference:
    """One field in which two runs differ; `run` and `baseline` are its values."""

    field: str
    run: Any
    baseline: Any

    @property
    def brief(self) -> str:
        """Which thing differs: "another script", "other arguments", "3 threads against 1"."""
        if self.field == "script" and self.run.path == self.baseline.path:
            return self.full
        return _BRIEF.get(self.field) or self.full

    @property
    def full(self) -> str:
        """The same with both values: "other arguments: --lr 0.1 against 0.2"."""
        if self.field == "script":
            return _script(self.run, self.baseline)
        if self.field == "arguments":
            return f"other arguments: {_arguments(self.run, self.baseline)}"
        if self.field == "threads":
            return f"{f.plural(self.run, 'thread')} against {self.baseline}"
        between = f"{self.run} against {self.baseline}"
        named = _BRIEF.get(self.field)
        return f"{named}: {between}" if named else f"{self.field} {between}"


_BRIEF = {
    "script": "another script",
    "module": "another module",
    "arguments": "other arguments",
    "device name": "another device",
}


def differences(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Fields known in both runs whose values differ."""
    return tuple(
        Difference(name, value, baseline[name])
        for name, value in run.items()
        if value is not None and baseline.get(name) is not None and value != baseline[name]
    )


def listed(found: Sequence[Difference]) -> str:
    """ "other arguments: --lr 0.1 against 0.2; 4 threads against 1"."""
    return "; ".join(one.full for one in found)


def in_one_line(lead: str, found: Sequence[Difference], room: int) -> str:
    """`lead` and the differences, in at most `room` columns by saying less where it must."""
    first = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    choices = (listed(found), "; ".join(one.brief for one in found), f"{first.brief}{more}")
    said = (lead + words for words in choices)
    return next((text for text in said if f.display_width(text) <= room), lead + choices[-1])


def _script(run: Script, baseline: Script) -> str:
    if run.path == baseline.path:
        return f"{PurePath(run.path).name or 'the script'} was edited in between"
    mine, theirs = PurePath(run.path), PurePath(baseline.path)
    if mine.name == theirs.name:
        return f"another script: {mine} against {theirs}"
    return f"another script: {mine.name} against {theirs.name}"


def _arguments(run: Sequence[str], baseline: Sequence[str]) -> str:
    """Only what differs: "--lr 0.1 against 0.2, --big against none"."""
    mine, theirs = _by_option(run), _by_option(baseline)
    parts = [
        _pair(option, mine.get(option), theirs.get(option))
        for option in dict.fromkeys([*mine, *theirs])
        if mine.get(option) != theirs.get(option)
    ]
    return ", ".join(parts) or "in another order"


def _pair(option: str, mine: list[str] | None, theirs: list[str] | None) -> str:
    both = mine is not None and theirs is not None
    right = f.command(theirs or ["none"]) if both else _said(option, theirs)
    return f"{_said(option, mine)} against {right}"


def _said(option: str, values: list[str] | None) -> str:
    if values is None:
        return "none"
    return f.command([option, *values] if option else values)


def _by_option(args: Sequence[str]) -> dict[str, list[str]]:
    """Arguments by the option they belong to, as far as words alone tell; "": positional ones.

    The word after an option is taken for its value unless it is an option itself.
    """
    found: dict[str, list[str]] = {}
    option = ""
    for word in map(str, args):
        name, equals, value = word.partition("=")
        if not _is_option(word):
            found.setdefault(option, []).append(word)
            option = ""
        elif equals:
            found.setdefault(name, []).append(value)
            option = ""
        else:
            found.setdefault(word, [])
            option = word
    return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word.removeprefix("-").replace(".", "", 1).isdecimal()
