"""Choose rows to look at while they stream by, holding only those that are chosen."""

from __future__ import annotations

import hashlib
import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class RowSample(Generic[T]):
    """A random sample over all data entries, every row alike; which rows it holds follows from seed and places alone.

    Args:
        number: how many to hold in all; all of them where there are fewer.
        seed: the same seed draws the same rows.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed
        self._held: list[tuple[int, int, int, T]] = []  # (−draw, entry, place, row): the highest draw on top

    def offer(self, entry: int, place: int, row: T) -> None:
        """Hold the row if its draw is among the lowest so far.

        Args:
            entry: the number of its data entry. place: its place there; no two alike.
        """
        draw = hashlib.blake2b(f"{self.seed}/{entry}/{place}".encode(), digest_size=8).digest()
        item = (-int.from_bytes(draw, "big"), -entry, -place, row)
        if len(self._held) < self.number:
            heapq.heappush(self._held, item)
        elif self._held and item[:3] > self._held[0][:3]:
            heapq.heapreplace(self._held, item)

    def chosen(self, num_entries: int) -> list[list[T]]:
        """For each entry its rows, in their order."""
        groups: list[list[tuple[int, T]]] = [[] for _ in range(num_entries)]
        for _, entry, place, row in self._held:
            groups[-entry].append((-place, row))
        return [[row for _, row in sorted(group, key=lambda each: each[0])] for group in groups]


class EvenRows(Generic[T]):
    """At most `most` rows of a stream of unknown length, spread evenly over it: every k-th, k doubling as it grows."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0
        self._every = 1
        self.rows: list[T] = []

    def offer(self, row: T) -> None:
        """Hold the row if it falls on a step."""
        if self.seen % self._every == 0:
            if len(self.rows) == self.most:
                self.rows = self.rows[::2]
                self._every *= 2
            if self.seen % self._every == 0:
                self.rows.append(row)
        self.seen += 1
