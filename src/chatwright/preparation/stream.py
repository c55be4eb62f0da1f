"""All readers together: step after step of packs, in the background a window ahead.

Unit g of the run (a pack, or a step's examples) comes from reader g mod L, so the steps are the same for any number of
ranks. Every rank runs all readers: it needs the sums and keys of the whole step, and asks no other rank for them.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.errors import CheckpointError
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.packing.pack_plan import PackPlan
from chatwright.packing.plan import PLANNERS
from chatwright.preparation.logical_reader import EntryCursor, LogicalReader, ReaderState, StreamJob, Window

READ_AHEAD = "read, but in no step so far"

Counts = dict[str, tuple[int, int]]
"""(examples, tokens) by entry."""


@dataclass(frozen=True, slots=True)
class ReaderPosition:
    """Where the steps stand in a reader: its state before the current window, and the units of that already used.

    Args:
        digest: of the window, None before the first. ledger: the reader's account behind it.
        ahead: what the reader has read and given to no step: the window's other units, and what it holds behind it.
    """

    start: ReaderState
    used: int = 0
    digest: str | None = None
    ledger: Ledger = field(default_factory=Ledger, compare=False)
    ahead: Counts = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where a run stands before a step; `packed` is what its steps took of each entry."""

    step: int
    readers: tuple[ReaderPosition, ...]
    packed: Counts

    @staticmethod
    def beginning(job: StreamJob) -> StreamPosition:
        """Before the first step."""
        fresh = ReaderPosition(ReaderState(0, (EntryCursor(),) * len(job.entries)))
        return StreamPosition(0, (fresh,) * job.settings.readers, {})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        readers = [{"start": asdict(each.start), "used": each.used, "digest": each.digest} for each in self.readers]
        return {"step": self.step, "readers": readers, "packed": {k: list(v) for k, v in self.packed.items()}}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> StreamPosition:
        """What `to_dict` gave, read back from JSON."""
        readers = (
            ReaderPosition(ReaderState.from_dict(each["start"]), each["used"], each["digest"])
            for each in data["readers"]
        )
        packed = {name: (rows, tokens) for name, (rows, tokens) in data["packed"].items()}
        return StreamPosition(data["step"], tuple(readers), packed)

    def ledger(self) -> Ledger:
        """The account of all that was read for the steps so far: each count is of its own, so that sums can fail."""
        total = Ledger()
        for reader in self.readers:
            total.merge(reader.ledger)
            for name, (rows, tokens) in reader.ahead.items():
                total.count(name, Stage.UNPLACED, rows, tokens, READ_AHEAD)
        for name, (rows, tokens) in self.packed.items():
            total.count(name, Stage.PACKED, rows, tokens)
        return total


class Stream:
    """Gives the steps from a position on. One thread reads, renders and plans, a window ahead of every reader.

    Raises:
        CheckpointError: a window of the position is not what it was: the rows have changed since.
    """

    def __init__(self, job: StreamJob, at: StreamPosition) -> None:
        self.job, self.position = job, at
        held = [[reader.start.cursors[entry].place for reader in at.readers] for entry in range(len(job.entries))]
        dealers = job.dealers(held)
        self.readers = [LogicalReader(number, job, dealers, each.start) for number, each in enumerate(at.readers)]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chatwright-stream")
        self._windows: list[Window | None] = [None] * len(self.readers)
        self._used = [each.used for each in at.readers]
        self._digests: list[str | None] = [None] * len(self.readers)
        self._next: list[Future[Window]] = [self._thread.submit(reader.next_window) for reader in self.readers]
        self._packed = dict(at.packed)
        self._expected = {number: each.digest for number, each in enumerate(at.readers) if each.digest is not None}

    def windows(self) -> list[Window]:
        """Every reader's current window."""
        return [self._window(number) for number in range(len(self.readers))]

    def next_step(self) -> tuple[TokenStore, PackPlan, np.ndarray]:
        """The next step: its examples, its packs as a plan of one step, and int64 `[n]`, the entry of each example.

        Moves `position` behind it.

        Raises:
            DataError: see `LogicalReader.next_window`.
        """
        self._require_same_windows()
        units = PLANNERS[self.job.packing.by].units_per_step(self.job.packing)
        first = self.position.step * units
        parts = [self._next_unit(unit % len(self.readers)) for unit in range(first, first + units)]
        packs = [pack for unit in parts for pack, _ in unit]
        owner = np.concatenate([each for unit in parts for _, each in unit])
        store = concatenate(packs)
        plan = PackPlan(
            members=np.arange(len(store), dtype=np.int64),
            pack_starts=np.cumsum([0, *(len(pack) for pack in packs)]).astype(np.int64),
            step_starts=np.array([0, len(packs)], dtype=np.int64),
            epoch_of_pack=np.zeros(len(packs), dtype=np.int64),
            unplaced=(),
            num_examples=len(store),
            tokens_per_pack=self.job.packing.tokens_per_pack,
        )
        self.position = StreamPosition(self.position.step + 1, self._positions(), dict(self._packed))
        return store, plan, owner

    def close(self) -> None:
        """Stop reading; waits for the window that is being made."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _window(self, number: int) -> Window:
        """The current window of a reader; the one behind it is begun at once."""
        window = self._windows[number]
        if window is None:
            window = self._advance(number)
        return window

    def _advance(self, number: int) -> Window:
        window = self._next[number].result()
        self._windows[number], self._digests[number] = window, None
        self._next[number] = self._thread.submit(self.readers[number].next_window)
        return window

    def _require_same_windows(self) -> None:
        """Before anything is trained: the windows that the position stands in give the same packs as before."""
        for number, digest in self._expected.items():
            if self._window(number).digest() != digest:
                raise CheckpointError(
                    "the rows have changed since the checkpoint: what was read before it now reads otherwise",
                    place=f"reader {number}",
                    hint="restore the data, or begin a new run with --set out=OTHER (from these weights: "
                    "--set model=THIS_RUN)",
                )
        self._expected = {}

    def _next_unit(self, number: int) -> list[tuple[TokenStore, np.ndarray]]:
        """The packs of a reader's next unit, each with its examples' entries."""
        window = self._window(number)
        if self._used[number] == window.units.num_units:
            window, self._used[number] = self._advance(number), 0
        packs = window.units
        place = self._used[number]
        self._used[number] += 1
        bounds = packs.pack_starts[packs.unit_starts[place] : packs.unit_starts[place + 1] + 1]
        members = [packs.members[start:stop] for start, stop in pairwise(bounds)]
        for each in members:
            add_counts(self._packed, self._counted(window, each))
        return [(window.store.take(each), window.owner[each]) for each in members]

    def _counted(self, window: Window, members: np.ndarray) -> Counts:
        return counts_by_entry(self.job, window.owner[members], window.store.lengths[members])

    def _ahead(self, window: Window, used: int) -> Counts:
        """What a reader has read behind the first so many units of a window."""
        packs = window.units
        ahead = self._counted(window, packs.members[packs.pack_starts[packs.unit_starts[used]] :])
        held = zip(self.job.entries, window.left, strict=True)
        return add_counts(ahead, {entry.work.name: left for entry, left in held})

    def _positions(self) -> tuple[ReaderPosition, ...]:
        found = []
        for number, (window, old) in enumerate(zip(self._windows, self.position.readers, strict=True)):
            if window is None or not self._used[number]:
                found.append(old)  # none of its units is in a step so far
                continue
            if self._digests[number] is None:
                self._digests[number] = window.digest()
            used, digest = self._used[number], self._digests[number]
            found.append(ReaderPosition(window.start, used, digest, window.ledger, self._ahead(window, used)))
        return tuple(found)


def counts_by_entry(job: StreamJob, owner: np.ndarray, lengths: np.ndarray) -> Counts:
    """Counts of examples, given the entry (int64 `[n]`) and the length of each."""
    own = {entry: lengths[owner == entry] for entry in np.unique(owner).tolist()}
    return {job.entries[entry].work.name: (len(each), int(each.sum())) for entry, each in own.items()}


def add_counts(total: Counts, more: Counts) -> Counts:
    """`total`, with more added to it."""
    for name, (rows, tokens) in more.items():
        before = total.get(name, (0, 0))
        total[name] = (before[0] + rows, before[1] + tokens)
    return total
