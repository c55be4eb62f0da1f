"""An entry's rows without an end: pass after pass over its parts, dealt out to the readers in blocks.

The rows are read once, by one scan, however many readers there are. No row comes again before all others have come,
and no reader's share depends on how fast the others take theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from chatwright.conversations.converters import ROWS_TO_DETECT, detect_format
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.files import RawRow
from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import memory_rows
from chatwright.errors import DataError
from chatwright.packing.shuffling import permutation
from chatwright.preparation.prepare import entry_format
from chatwright.preparation.rows import named_rows
from chatwright.preparation.shards import shard_rows, split_entry
from chatwright.preparation.work import EntryWork, Shard
from chatwright.tasks.registry import make_task
from chatwright.templates.base import TrainOn

ROWS_PER_BLOCK = 128
"""Rows that a reader is dealt at a time, and renders together."""
ROWS_PER_PART = 10_000
"""Rows of a part that is cut out of a parquet file; the parts of a pass come in random order."""

Part = Callable[[int], Iterator[RawRow]]
"""Gives a part's rows behind the first so many."""


@dataclass(frozen=True, slots=True)
class StreamedEntry:
    """An entry as it is streamed.

    Args:
        work: its settings, name and format.
        parts: its rows. number: its place in the recipe, part of its seeds.
        weight: its share of the rows that are trained on, beside the other entries' weights.
    """

    work: EntryWork
    parts: tuple[Part, ...]
    number: int
    weight: float = 1.0


class Place(NamedTuple):
    """Where a block begins: its number, counted over all passes; the pass, the place of the part in it, and the row."""

    block: int
    pass_number: int
    part: int
    row: int


class Block(NamedTuple):
    """Rows that one reader takes together."""

    place: Place
    rows: list[RawRow]


def stream_entry(entry: DataSettings, name: str, number: int, train_on: TrainOn, seed: int) -> StreamedEntry:
    """Find an entry's parts and its format, from its first rows.

    Raises:
        DataError: there is no such source, it has no rows, or rows of no known format. ConfigError: no such task.
    """
    weight = entry.weight or 1.0
    if entry.task:
        made = make_task(entry.task, **entry.task_options).conversations(entry.split, entry.stop, seed)
        chosen = made[entry.start or 0 :: entry.step]
        work = EntryWork(entry, name, f"task ({entry.split})", train_on, streamed=True)
        return StreamedEntry(work, (lambda skip: islice(named_rows(chosen, name), skip, None),), number, weight)
    if (entry.path or "").startswith(HUB_PREFIX):
        entry = entry.model_copy(update={"hub_mode": "streaming"})
    draft = EntryWork(entry, name, entry.format, train_on, streamed=True)
    shards = split_entry(draft, number, ROWS_PER_PART, unread=True)
    parts = tuple(partial(_rows_behind, shard) for shard in shards)
    work = replace(draft, format=entry_format(entry, _head(parts, entry.path or "")))
    return StreamedEntry(work, parts, number, weight)


def given_stream(rows: Any, name: str, number: int, train_on: TrainOn) -> StreamedEntry:
    """An entry of rows in memory.

    Args:
        rows: what can be gone through again (a list, a `datasets.IterableDataset`, a function that returns an
            iterator); or an iterator, which must not end before the run does.

    Raises:
        DataError: there are no rows, or rows of no known format.
    """
    if isinstance(rows, Mapping):
        raise DataError("a mapping isn't rows", source=name, hint="give a list, an iterator, or a function of none")
    part = partial(_memory_part, _Once(rows, name) if isinstance(rows, Iterator) else _Again(rows), name)
    head = _head((part,), name)
    made = isinstance(head[0].value, Conversation)
    format = "conversations" if made else detect_format([row.value for row in head], name)
    work = EntryWork(DataSettings(path=name), name, format, train_on, streamed=True)
    return StreamedEntry(work, (part,), number)


def _rows_behind(shard: Shard, skip: int) -> Iterator[RawRow]:
    rest = replace(shard.rows, first=shard.rows.first + skip * shard.rows.step)
    if rest.stop is None or rest.first < rest.stop:
        yield from shard_rows(replace(shard, rows=rest))


def _head(parts: Sequence[Part], source: str) -> list[RawRow]:
    head = list(islice(chain.from_iterable(part(0) for part in parts), ROWS_TO_DETECT))
    if not head:
        raise DataError("there are no rows", source=source, hint="give a source that has rows")
    return head


def _memory_part(rows: Callable[[], Iterable[Any]], name: str, skip: int) -> Iterator[RawRow]:
    for row in islice(memory_rows(rows(), name), skip, None):
        if isinstance(row.value, Conversation):
            row = row._replace(value=replace(row.value, source=name, row=row.number))
        yield row


class _Again:
    """Rows that can be gone through again and again."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __call__(self) -> Iterable[Any]:
        rows: Iterable[Any] = self._rows() if callable(self._rows) else self._rows
        return rows


class _Once:
    """An iterator's rows; the first can be looked at before they are gone through."""

    def __init__(self, rows: Iterator[Any], name: str) -> None:
        self._rows, self._name = rows, name
        self._head: list[Any] = []
        self._looked = self._used = False

    def __call__(self) -> Iterable[Any]:
        if not self._looked:
            self._looked, self._head = True, list(islice(self._rows, ROWS_TO_DETECT))
            return self._head
        if self._used:
            raise DataError(
                "the iterator has come to its end, and can be read only once",
                source=self._name,
                hint="give a list, a function that returns a new iterator each time, or set a smaller train.max_steps",
            )
        self._used = True
        return chain(self._head, self._rows)


class Dealer:
    """Deals the blocks of one entry to its readers, in turns of an order drawn by the seed.

    Args:
        readers: how many there are. shuffle: whether the parts of a pass come in random order.
        held: for each reader the block that it holds already, which is dealt to it once more; None before its first.
    """

    def __init__(
        self, entry: StreamedEntry, readers: int, seed: int, shuffle: bool, held: Sequence[Place | None]
    ) -> None:
        self.entry, self.readers, self.seed, self.shuffle = entry, readers, seed, shuffle
        self._first = [0 if place is None else place.block for place in held]
        self._waiting: list[deque[Block]] = [deque() for _ in range(readers)]
        begin = Place(0, 0, 0, 0)
        self._scan = self._blocks(min((place or begin for place in held), default=begin))

    def next_block(self, reader: int) -> Block:
        """The reader's next block; what comes before it for the others waits for them.

        Raises:
            DataError: a file can't be read, there are no rows, or an iterator has ended.
        """
        while not self._waiting[reader]:
            block = next(self._scan)
            owner = self._owner(block.place.block)
            if block.place.block >= self._first[owner]:
                self._waiting[owner].append(block)
        return self._waiting[reader].popleft()

    def _owner(self, block: int) -> int:
        turn, place = divmod(block, self.readers)
        return int(permutation(self.readers, self.seed, turn, "rows", part=2 * self.entry.number + 1)[place])

    def _blocks(self, at: Place) -> Iterator[Block]:
        """Blocks without end, from a place on; a pass ends with a shorter block."""
        number, pass_number, part, row = at
        while True:
            rows: list[RawRow] = []
            begin, seen = (part, row), at.pass_number == pass_number and (at.part, at.row) != (0, 0)
            for each in self._order(pass_number)[part:]:
                for raw in self.entry.parts[each](row):
                    rows.append(raw)
                    row += 1
                    if len(rows) == ROWS_PER_BLOCK:
                        yield Block(Place(number, pass_number, *begin), rows)
                        number, rows, begin, seen = number + 1, [], (part, row), True
                part, row = part + 1, 0
            if rows:
                yield Block(Place(number, pass_number, *begin), rows)
                number, seen = number + 1, True
            if not seen:
                name = self.entry.work.name
                raise DataError("there are no rows", source=name, hint="give a source that has rows")
            pass_number, part, row = pass_number + 1, 0, 0

    def _order(self, pass_number: int) -> list[int]:
        """The parts in the order of a pass."""
        count = len(self.entry.parts)
        if not self.shuffle:
            return list(range(count))
        return permutation(count, self.seed, pass_number, "rows", part=2 * self.entry.number + 2).tolist()
