"""Which settings aren't as they were, by dotted name and in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flat_settings(plain: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting in nested mappings; lists stay whole."""
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def setting_changes(before: Mapping[str, Any], now: Mapping[str, Any], open_rooms: tuple[str, ...] = ()) -> list[str]:
    """What differs between settings by dotted name, in words.

    A setting that one side doesn't have is no change, since another version of the program may not know it; but it is
    one where that side says its whole room is null, such as `adapter`.

    Args:
        open_rooms: rooms that take any key, where a missing one says something.
    """
    found = [
        f"{name}: was {_short(value)}, is {_short(now[name])}"
        for name, value in before.items()
        if name in now and now[name] != value
    ]
    found += null_changes(before, now)
    for name in _one_sided(before, now, open_rooms):
        was, is_now = (_short(side[name]) if name in side else "not set" for side in (before, now))
        found.append(f"{name}: was {was}, is {is_now}")
    return found


def null_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Rooms that one side says are null, and for which the other has settings, in words."""
    filled = [f"{room}: was null, is {_short(given)}" for room, given in _rooms(now, before).items()]
    return [*filled, *(f"{room}: was {_short(given)}, is null" for room, given in _rooms(before, now).items())]


def _one_sided(before: Mapping[str, Any], now: Mapping[str, Any], rooms: tuple[str, ...]) -> list[str]:
    """Names in those rooms, where both sides have the room, that only one of them has."""
    found = []
    for start in (f"{room}." for room in rooms):
        old, new = ([name for name in side if name.startswith(start)] for side in (before, now))
        if old and new:
            found += [name for name in dict.fromkeys([*old, *new]) if (name in before) != (name in now)]
    return found


def _rooms(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rooms that have settings here and are a plain null there, with those settings."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in here.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            room = ".".join(parts[:depth])
            if room in there and not there[room]:
                found.setdefault(room, {})[".".join(parts[depth:])] = value
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
