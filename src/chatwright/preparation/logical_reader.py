"""A logical reader: its share of every entry's rows, mixed by weight, rendered and planned window by window.

What a reader gives is a pure function of the data, the settings, the seed and its own number: not of the other
readers' pace, nor of the ranks. Its state is small, since a window is planned anew from where its rows begin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np

from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.packing.pack_plan import EpochPacks, PackingSettings
from chatwright.packing.plan import PLANNERS
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.rows import RowFacts, prepare_rows
from chatwright.preparation.streamed_rows import Dealer, Place, StreamedEntry
from chatwright.preparation.work import RenderWork, StreamingSettings
from chatwright.templates.base import Template

LEAST_COUNTED = 500
"""Examples of an entry that a reader has rendered before their dropped share is judged."""
MOST_ROWS_IN_VAIN = 100_000
"""Rows in a row that give no example, after which a reader gives up."""


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What is streamed, and how.

    Args:
        template: what `render.load_template()` gives. check: what rows are compared with.
    """

    entries: tuple[StreamedEntry, ...]
    render: RenderWork
    template: Template
    packing: PackingSettings
    settings: StreamingSettings
    check: ContaminationCheck | None = None

    @property
    def window(self) -> int:
        """Examples planned together: `packing.window`, rounded up to whole steps where a step counts examples."""
        size = self.packing.examples_per_step if self.packing.by == "examples" else 1
        return -(-self.packing.window // size) * size

    def dealers(self, held: Sequence[Sequence[Place | None]]) -> list[Dealer]:
        """A dealer for each entry; `held` says for each entry and reader which block is held already."""
        count, seed, shuffle = self.settings.readers, self.render.seed, self.packing.shuffle
        return [Dealer(entry, count, seed, shuffle, own) for entry, own in zip(self.entries, held, strict=True)]


@dataclass(frozen=True, slots=True)
class EntryCursor:
    """Where a reader stands in an entry.

    Args:
        place: the newest block that it was dealt, None before the first. used: that block's examples used so far.
        drawn: rows drawn so far. left: that block's examples that are left, and their tokens.
    """

    place: Place | None = None
    used: int = 0
    drawn: int = 0
    left: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ReaderState:
    """A reader before a window: the window's number, its cursors, and its account so far (`Ledger.to_dict`)."""

    window: int
    cursors: tuple[EntryCursor, ...]
    ledger: dict[str, Any] = field(default_factory=lambda: Ledger().to_dict())

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ReaderState:
        """What `dataclasses.asdict` gave, read back from JSON."""
        cursors = tuple(
            EntryCursor(
                Place(*each["place"]) if each["place"] else None,
                each["used"],
                each["drawn"],
                (each["left"][0], each["left"][1]),
            )
            for each in data["cursors"]
        )
        return ReaderState(data["window"], cursors, data["ledger"])


@dataclass(frozen=True, slots=True)
class Window:
    """A planned window.

    Args:
        start: the reader before it. store: its examples. owner: int64 `[n]`, the entry of each.
        units: its packs; steps are made of units. ledger: the reader's account behind it.
        left: of each entry, what the reader holds behind it: (examples, tokens) that were read for no window so far.
        compared: rows that its process has compared with evaluations up to here, and how many of them were hit.
    """

    start: ReaderState
    store: TokenStore
    owner: np.ndarray
    units: EpochPacks
    ledger: Ledger
    left: tuple[tuple[int, int], ...]
    compared: tuple[int, int] = (0, 0)

    def digest(self) -> str:
        """sha256 of the tokens, weights and packs: a window planned anew must give the same."""
        digest = hashlib.sha256()
        store = self.store
        arrays = (store.offsets, store.ids.astype(np.int32), store.run_lengths, store.run_weights, *self.units)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class LogicalReader:
    """Plans its windows one after another.

    Args:
        number: 0 … `settings.readers` − 1. dealers: one an entry, shared by all readers of this process.
        state: where to begin.
    """

    def __init__(self, number: int, job: StreamJob, dealers: Sequence[Dealer], state: ReaderState) -> None:
        self.number, self.job = number, job
        self.window = state.window
        self.ledger = Ledger.from_dict(state.ledger)
        self.facts = [RowFacts() for _ in job.entries]
        self.compared = (0, 0)
        self._tables = [
            _Table(self, place, dealer, cursor)
            for place, (dealer, cursor) in enumerate(zip(dealers, state.cursors, strict=True))
        ]
        self._shares = _whole_numbers([entry.weight for entry in job.entries])

    @property
    def state(self) -> ReaderState:
        """Where it stands."""
        return ReaderState(self.window, tuple(table.cursor for table in self._tables), self.ledger.to_dict())

    def next_window(self) -> Window:
        """Read, render and plan the next window.

        Raises:
            DataError: a bad row, too many that are too long or train nothing, or none that trains anything.
        """
        start, stores, owners = self.state, list[TokenStore](), list[int]()
        room = self.job.window
        while room:
            entry = self._turn()
            stores.append(self._tables[entry].next_row(room))
            owners.append(entry)
            room -= len(stores[-1])
        store = concatenate(stores)
        owner = np.repeat(np.array(owners, dtype=np.int64), [len(each) for each in stores])
        packing = self.job.packing.model_copy(update={"window": len(store)})  # one window: nothing is carried over
        number = start.window * self.job.settings.readers + self.number
        everything = np.arange(len(store), dtype=np.int64)
        units = PLANNERS[packing.by].pack_epoch(store.lengths, [everything], packing, self.job.render.seed, number)
        self.window += 1
        left = tuple(table.left for table in self._tables)
        return Window(start, store, owner, units, Ledger.from_dict(self.ledger.to_dict()), left, self.compared)

    def _turn(self) -> int:
        """The entry that is farthest behind its share of the rows drawn."""
        drawn = [table.drawn for table in self._tables]
        total, whole = sum(drawn) + 1, sum(self._shares)
        behind = [share * total - whole * count for share, count in zip(self._shares, drawn, strict=True)]
        return behind.index(max(behind))


class _Table:
    """A reader's rows of one entry: the block it was dealt last, rendered."""

    def __init__(self, reader: LogicalReader, entry: int, dealer: Dealer, cursor: EntryCursor) -> None:
        self.reader, self.entry, self.dealer = reader, entry, dealer
        self.place, self.used, self.drawn = cursor.place, cursor.used, cursor.drawn
        self._store: TokenStore | None = None
        self._left = cursor.left

    @property
    def cursor(self) -> EntryCursor:
        return EntryCursor(self.place, self.used, self.drawn, self.left)

    @property
    def left(self) -> tuple[int, int]:
        """Examples of the block it holds that no window has yet, and their tokens."""
        if self._store is None:  # not rendered again since the reader stopped
            return self._left
        return len(self._store) - self.used, int(self._store.lengths[self.used :].sum())

    def next_row(self, most: int) -> TokenStore:
        """The examples of the next row that has any; at most so many, the rest comes next time."""
        store, in_vain = self._store, 0
        while store is None or self.used >= len(store):
            store, rows = self._next_block()
            in_vain = 0 if len(store) else in_vain + rows
            if in_vain >= MOST_ROWS_IN_VAIN:
                self._give_up(in_vain)
        first = last = self.used
        same = (store.source_index[first], store.rows[first])
        while last < min(len(store), first + most) and (store.source_index[last], store.rows[last]) == same:
            last += 1
        self.used = last
        self.drawn += 1
        return store.take(np.arange(first, last))

    def _next_block(self) -> tuple[TokenStore, int]:
        """Render the next block; the one that was held when the reader stopped is already counted."""
        job = self.reader.job
        block = self.dealer.next_block(self.reader.number)
        held = self._store is None and block.place == self.place
        work = job.entries[self.entry].work
        prepared = prepare_rows(block.rows, work, job.render, job.template, job.check)
        if not held:
            self.used = 0
            self.reader.facts[self.entry].add(prepared.facts)
            self.reader.ledger.merge(prepared.ledger)
            if prepared.contamination is not None:
                compared, hit = self.reader.compared
                more = sum(prepared.contamination["checked"].values())
                self.reader.compared = (compared + more, hit + len(prepared.contamination["rows"]))
            self._check_budget()
        self.place, self._store = block.place, prepared.store
        return prepared.store, len(block.rows)

    def _check_budget(self) -> None:
        """Stop when too much is lost.

        Raises:
            DataError: with the share, the reasons, and what to set.
        """
        ledger, name = self.reader.ledger, self.reader.job.entries[self.entry].work.name
        rendered, dropped = ledger.rows(Stage.RENDERED, name), ledger.rows(Stage.DROPPED, name)
        most = self.reader.job.settings.max_dropped_share
        if rendered < LEAST_COUNTED or dropped <= most * rendered:
            return
        raise DataError(
            f"{dropped:,} of the first {rendered:,} examples of a reader were dropped ({_reasons(ledger, name)}), "
            f"more than streaming.max_dropped_share = {most:g} allows",
            source=name,
            hint="set a larger max_tokens, overflow: truncate or split_turns, or a larger streaming.max_dropped_share",
        )

    def _give_up(self, rows: int) -> None:
        ledger, name = self.reader.ledger, self.reader.job.entries[self.entry].work.name
        raise DataError(
            f"none of {rows:,} rows in a row can be trained on ({_reasons(ledger, name)})",
            source=name,
            hint="look at some of them with `chatwright inspect`; change the filters, max_tokens or the mask policy",
        )


def _reasons(ledger: Ledger, name: str) -> str:
    found = [entry for entry in ledger.entries() if entry.source == name and entry.reason]
    return "; ".join(f"{entry.rows:,} {entry.stage}: {entry.reason}" for entry in found)


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """Weights as the decimals they were written as, made whole: 0.5 and 1.5 → 1 and 3."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(each.denominator for each in exact))
    return [int(each * scale) for each in exact]
