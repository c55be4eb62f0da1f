"""A key of every row that streams by, 28 bytes a row: which rows of a set of any size repeat an earlier one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from chatwright.conversations.duplicates import KEY_BYTES, dedup_key, find_exact
from chatwright.conversations.schema import Conversation


class Repeat(NamedTuple):
    """A row that repeats an earlier one, each by its source and row."""

    source: str
    row: int
    first_source: str
    first_row: int
    key: bytes


class RowKeys:
    """Holds each row's `dedup_key` and place."""

    def __init__(self, rows: Iterable[Conversation] = ()) -> None:
        self._keys = bytearray()
        self._sources: dict[str, int] = {}
        self._source_of, self._rows = array("i"), array("q")
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, conversation: Conversation) -> None:
        """Hold a row's key and place."""
        self._keys += dedup_key(conversation)
        self._source_of.append(self._sources.setdefault(conversation.source, len(self._sources)))
        self._rows.append(conversation.row)

    def repeats(self) -> tuple[int, Iterator[Repeat]]:
        """How many rows repeat an earlier one word for word, and which, in their order."""
        keys = np.frombuffer(bytes(self._keys), dtype=np.uint8).reshape(len(self), KEY_BYTES)
        first = find_exact(keys)
        again = np.flatnonzero(first != np.arange(len(first)))
        return len(again), (self._repeat(int(row), int(first[row])) for row in again)

    def _repeat(self, row: int, first: int) -> Repeat:
        names = list(self._sources)
        key = bytes(self._keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])
        here, there = (names[self._source_of[place]] for place in (row, first))
        return Repeat(here, self._rows[row], there, self._rows[first], key)
