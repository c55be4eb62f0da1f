"""Which row at work begins as a new prompt does, so that the beginning needs no second prefill."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from chatwright.inference.requests import Row

LEAST_SHARED = 16
"""Tokens; a shorter common beginning is computed again, which costs less than telling it apart."""


class PrefixFinder:
    """Token sequences to be compared with a new one; equal bytes mean equal ids."""

    def __init__(self) -> None:
        self._known: list[tuple[bytes, Row]] = []

    def add(self, ids: Sequence[int], row: Row) -> None:
        """Remember what a row holds."""
        self._known.append((_bytes(ids), row))

    def longest(self, ids: Sequence[int]) -> tuple[int, Row | None]:
        """How many tokens `ids` shares with the row that begins most alike, and that row."""
        best, source, wanted = 0, None, _bytes(ids)
        for known, row in self._known:
            if known[: 8 * (best + 1)] == wanted[: 8 * (best + 1)]:
                shared = _common(known, wanted)
                if shared > best:
                    best, source = shared, row
        return best, source


def _bytes(ids: Sequence[int]) -> bytes:
    return array("q", ids).tobytes()


def _common(one: bytes, other: bytes) -> int:
    """Tokens of 8 bytes that both begin with, found by halving."""
    low, high = 0, min(len(one), len(other)) // 8
    while low < high:
        middle = (low + high + 1) // 2
        if one[8 * low : 8 * middle] == other[8 * low : 8 * middle]:
            low = middle
        else:
            high = middle - 1
    return low
