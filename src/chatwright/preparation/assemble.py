"""Prepared rows of all entries → training and held-out examples: duplicates, row caps and the held-out draw.

These need to see a whole source, so they come after rendering; they look at keys and columns, never at tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.batches.token_cache import load_store, save_stores
from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.conversations.duplicates import KEY_BYTES, find_exact, find_near
from chatwright.conversations.filters import ExactDuplicates, build_filters
from chatwright.conversations.hashing import scattered
from chatwright.conversations.lasting_names import lasting_name
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.preparation.columns import CONTENT, EXACT, NEAR, TREE, Columns, gathered
from chatwright.preparation.held_out import draw_groups, linked
from chatwright.preparation.marks import merged_reports
from chatwright.preparation.rows import PreparedRows, RowFacts
from chatwright.preparation.work import EntryInfo, EntryWork, RenderWork

Load = Callable[[], PreparedRows]
"""Gives a range's prepared rows; called several times, so that not all need be held."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The tokens of all entries.

    Args:
        store: what is trained on. heldout: what is only measured on.
        entries, ledger: the account.
        entry_index: int64 `[n]`, the entry of each training example.
        contamination: what `ContaminationReport.to_dict` gives, where rows were compared with evaluations.
        heldout_entries: the account of held-out data of its own.
    """

    store: TokenStore
    heldout: TokenStore
    entries: tuple[EntryInfo, ...]
    entry_index: np.ndarray
    ledger: Ledger
    contamination: dict[str, Any] | None = None
    heldout_entries: tuple[EntryInfo, ...] = ()


@dataclass(slots=True)
class _Entry:
    """One entry's examples over all its ranges.

    Args:
        sizes: examples of each range.
        rows: int64 `[n]`, each example's row over all sources, equal for one row of one file.
        draws: the row's draw, uint64 `[n]`.
        row_of: int64 `[n]`, each example's row in the columns of all ranges; empty where there are none.
        alive: bool `[n]`, still to be used.
    """

    work: EntryWork
    parts: Sequence[Load]
    facts: RowFacts
    sizes: list[int]
    rows: np.ndarray
    draws: np.ndarray
    row_of: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray

    def columns(self) -> list[Callable[[], Columns]]:
        """The columns of each range."""
        return [partial(_columns_of, part) for part in self.parts]

    def column(self, name: str) -> np.ndarray:
        """A narrow column, an item for each example."""
        if not len(self.row_of):
            return np.zeros((0, KEY_BYTES) if name == CONTENT else 0, dtype=np.uint8 if name == CONTENT else np.uint64)
        with gathered(self.columns(), name, np.arange(int(self.row_of.max()) + 1), None) as found:
            return found[self.row_of]


def assemble(
    entries: Sequence[tuple[EntryWork, Sequence[Load]]],
    render: RenderWork,
    share: float,
    save_to: Path | None,
    key: str,
) -> Rendered:
    """Put all entries together.

    Args:
        entries: each with its ranges, in the order of the rows.
        share: the part of the rows to hold out.
        save_to: a folder for the two stores, which then are memory-mapped; None keeps them in memory.
        key: see `save_stores`.

    Raises:
        DataError: no row of held-out data of its own is left to measure on.
    """
    ledger = Ledger()
    places: dict[str, int] = {}
    reports: list[dict[str, Any] | None] = []
    ours = [_read(work, parts, places, render, ledger, reports) for work, parts in entries]
    scratch = save_to if save_to is not None and save_to.is_dir() else None
    for entry in ours:
        _drop_duplicates(entry, ledger, scratch)
        _cap_rows(entry, ledger)
    training = [entry for entry in ours if not entry.work.heldout]
    away = _split(ours, share, ledger)
    train: list[Callable[[], TokenStore]] = []
    heldout: list[Callable[[], TokenStore]] = []
    for entry, out in zip(ours, away, strict=True):
        ledger.count(entry.work.name, Stage.HELD_OUT, int(out.sum()), int(entry.lengths[out].sum()))
        if not entry.work.heldout:
            train += _taken(entry, entry.alive & ~out)
        heldout += _taken(entry, out)
    counts = [int((e.alive & ~out).sum()) for e, out in zip(ours, away, strict=True) if not e.work.heldout]
    owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    stores = [
        _stored(parts, save_to and save_to / name, key) for parts, name in ((train, "train"), (heldout, "heldout"))
    ]
    return Rendered(
        stores[0],
        stores[1],
        tuple(entry.facts.info(entry.work) for entry in training),
        owner,
        ledger,
        merged_reports(reports),
        tuple(entry.facts.info(entry.work) for entry in ours if entry.work.heldout),
    )


def _read(
    work: EntryWork,
    parts: Sequence[Load],
    places: dict[str, int],
    render: RenderWork,
    ledger: Ledger,
    reports: list[dict[str, Any] | None],
) -> _Entry:
    """The keys of an entry's examples; its account goes to the ledger."""
    facts, rows, draws, lengths = RowFacts(), [], [], []
    row_of, rows_before = [], 0
    for part in parts:
        prepared = part()
        store = prepared.store
        facts.add(prepared.facts)
        reports.append(prepared.contamination)
        ledger.merge(prepared.ledger)
        own = np.array([places.setdefault(source, len(places)) for source in store.sources], dtype=np.int64)
        lasting = [lasting_name(source, work.entry.path) for source in store.sources]
        names = np.array([_name_hash(name, render.seed) for name in lasting], dtype=np.uint64)
        rows.append((own[store.source_index] << 40) + store.rows if len(own) else store.rows.astype(np.int64))
        draws.append(
            scattered(names[store.source_index] ^ store.rows.astype(np.uint64)) if len(own) else np.empty(0, np.uint64)
        )
        lengths.append(store.lengths)
        row_of.append(prepared.row_of + rows_before)
        rows_before += max((len(column) for column in prepared.columns.values()), default=0)
    joined = np.concatenate(lengths)
    return _Entry(
        work,
        parts,
        facts,
        [len(each) for each in rows],
        np.concatenate(rows),
        np.concatenate(draws),
        np.concatenate(row_of),
        joined,
        np.ones(len(joined), dtype=bool),
    )


def _columns_of(part: Load) -> Columns:
    return part().columns


def _name_hash(name: str, seed: int) -> int:
    """A source's part of its rows' draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/rows/{name}".encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _drop(entry: _Entry, gone: np.ndarray, reason: str, ledger: Ledger) -> None:
    """Count examples (bool `[n]`) as dropped that had been counted as kept."""
    count, tokens = int(gone.sum()), int(entry.lengths[gone].sum())
    if count:
        ledger.count(entry.work.name, Stage.KEPT, -count, -tokens)
        ledger.count(entry.work.name, Stage.DROPPED, count, tokens, reason)
        entry.alive &= ~gone


def _drop_duplicates(entry: _Entry, ledger: Ledger, scratch: Path | None) -> None:
    """Drop the examples of rows that repeat an earlier row of the entry; rows without an example stand for none."""
    for each in build_filters(entry.work.entry.filters).duplicates:
        living = np.unique(entry.row_of[entry.alive])
        if not len(living):
            return
        exact = isinstance(each, ExactDuplicates)
        with gathered(entry.columns(), EXACT if exact else NEAR, living, scratch) as table:
            same_as = find_exact(table) if isinstance(each, ExactDuplicates) else find_near(table, each.threshold)
        repeated = living[same_as != np.arange(len(living))]
        _drop(entry, entry.alive & np.isin(entry.row_of, repeated), each.label, ledger)


def _cap_rows(entry: _Entry, ledger: Ledger) -> None:
    """Keep `max_rows` rows, those with the lowest draws."""
    most = entry.work.entry.max_rows
    if most is None:
        return
    rows = _rows_by_draw(entry, entry.alive)
    _drop(
        entry, entry.alive & np.isin(entry.rows, rows[most:]), f"not among the {most:,} rows drawn (max_rows)", ledger
    )


def _rows_by_draw(entry: _Entry, chosen: np.ndarray) -> np.ndarray:
    """The distinct rows of the chosen examples, lowest draw first."""
    rows, first = np.unique(entry.rows[chosen], return_index=True)
    return rows[np.lexsort((rows, entry.draws[chosen][first]))]


def _split(entries: Sequence[_Entry], share: float, ledger: Ledger) -> list[np.ndarray]:
    """For each entry which of its examples are held out, bool `[n]`; drops held-out data that is trained on."""
    away = [entry.alive & entry.work.heldout for entry in entries]
    if share:
        training = [place for place, entry in enumerate(entries) if not entry.work.heldout]
        drawn = _draw_heldout([entries[place] for place in training], share)
        for place, out in zip(training, drawn, strict=True):
            away[place] = out
    if any(e.work.heldout for e in entries) and not all(e.work.heldout for e in entries):
        _drop_trained(entries, away, ledger)
        away = [out & entry.alive for entry, out in zip(entries, away, strict=True)]
    return away


def _draw_heldout(entries: Sequence[_Entry], share: float) -> list[np.ndarray]:
    """For each entry the examples held out: whole groups of rows with the lowest draws, at least one on either side.

    Rows of a group say the same, come of one tree, or are one row that several entries read; the first entry that has
    rows of it decides for all.
    """
    contents, trees = _labels(entries)
    alive, rows = (np.concatenate([getattr(entry, name) for entry in entries]) for name in ("alive", "rows"))
    kinds = [np.where(alive, labels, -1) for labels in (contents, trees, np.unique(rows, return_inverse=True)[1])]
    group = linked(kinds, len(alive))
    chosen = seen = np.empty(0, dtype=np.int64)
    ends = np.cumsum([0, *(len(entry.alive) for entry in entries)])
    own = [group[start:stop] for start, stop in pairwise(ends)]
    for entry, groups in zip(entries, own, strict=True):
        fresh = np.flatnonzero(entry.alive & ~np.isin(groups, seen))
        row = fresh[np.unique(entry.rows[fresh], return_index=True)[1]]  # an example of each row
        chosen = np.concatenate([chosen, draw_groups(groups[row], entry.draws[row], share)])
        seen = np.concatenate([seen, np.unique(groups[row])])
    return [entry.alive & np.isin(groups, chosen) for entry, groups in zip(entries, own, strict=True)]


def _drop_trained(entries: Sequence[_Entry], away: Sequence[np.ndarray], ledger: Ledger) -> None:
    """Drop rows of held-out data of its own that are trained on, or come of a tree that is.

    Raises:
        DataError: no other rows are left to measure on.
    """
    contents, trees = _labels(entries)
    trained = np.concatenate([e.alive & ~out & (not e.work.heldout) for e, out in zip(entries, away, strict=True)])
    same = np.isin(contents, contents[trained])
    akin = (trees >= 0) & np.isin(trees, trees[trained])
    first, before = 0, 0
    for entry in entries:
        part = slice(first, first + len(entry.alive))
        first = part.stop
        if not entry.work.heldout:
            continue
        before += int(entry.alive.sum())
        for found, reason in ((same, "trained on too"), (akin, "of a conversation tree that is trained on")):
            gone = entry.alive & found[part]
            if gone.any():
                entry.facts.notes[f"left out of the held-out data: {reason}"] += len(np.unique(entry.rows[gone]))
            _drop(entry, gone, reason, ledger)
    if before and not any(entry.alive.any() for entry in entries if entry.work.heldout):
        raise DataError(
            "all rows of the held-out data are trained on too, so they can't tell how well the model does on new ones",
            source=", ".join(entry.work.name for entry in entries if entry.work.heldout),
            hint="give other rows as heldout.data, or hold out a part of the data with heldout.share",
        )


def _labels(entries: Sequence[_Entry]) -> tuple[np.ndarray, np.ndarray]:
    """Over the examples of all entries: labels of what a row says, and of its tree (-1 for none); int64 `[n]` each."""
    contents = find_exact(np.concatenate([entry.column(CONTENT) for entry in entries]))
    trees = np.concatenate([entry.column(TREE) for entry in entries])
    return contents, np.where(trees > 0, np.unique(trees, return_inverse=True)[1], -1)


def _taken(entry: _Entry, wanted: np.ndarray) -> list[Callable[[], TokenStore]]:
    """The wanted examples (bool `[n]`), a range at a time."""
    ends = np.cumsum([0, *entry.sizes])
    taken: list[Callable[[], TokenStore]] = []
    for part, start, stop in zip(entry.parts, ends[:-1], ends[1:], strict=True):
        numbers = np.flatnonzero(wanted[start:stop])
        taken.append(partial(_take, part, numbers))
    return taken


def _take(part: Load, examples: np.ndarray) -> TokenStore:
    return part().store.take(examples)


def _stored(parts: Sequence[Callable[[], TokenStore]], folder: Path | None, key: str) -> TokenStore:
    if folder is None:
        return concatenate([part() for part in parts]) if parts else TokenStore.from_examples([])
    save_stores(parts, folder, key)
    return load_store(folder, key)
