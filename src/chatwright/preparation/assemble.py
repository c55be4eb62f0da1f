"""Prepared rows of all entries → training and held-out examples: duplicates, row caps and the held-out draw.

These need to see a whole source, so they come after rendering; they look at keys and columns, never at tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from chatwright.batches.token_cache import load_store, save_stores
from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.conversations.duplicates import find_exact, find_near
from chatwright.conversations.filters import ExactDuplicates, build_filters
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.preparation.marks import merged_reports
from chatwright.preparation.rows import PreparedRows, RowFacts, require_fitting
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
    """

    store: TokenStore
    heldout: TokenStore
    entries: tuple[EntryInfo, ...]
    entry_index: np.ndarray
    ledger: Ledger
    contamination: dict[str, Any] | None = None


@dataclass(slots=True)
class _Entry:
    """One entry's examples over all its ranges.

    Args:
        rows: int64 `[n]`, each example's row over all sources, equal for one row of one file.
        names: the row's draw, uint64 `[n]`.
        alive: bool `[n]`, still to be used.
    """

    work: EntryWork
    parts: Sequence[Load]
    sizes: list[int]
    rows: np.ndarray
    draws: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray


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
        DataError: examples are too long, and `overflow` is `error`.
    """
    ledger = Ledger()
    places: dict[str, int] = {}
    reports: list[dict[str, Any] | None] = []
    read = [_read(work, parts, places, render, ledger, reports) for work, parts in entries]
    infos = tuple(info for _, info in read if info is not None)
    ours = [entry for entry, _ in read]
    for entry in ours:
        _drop_duplicates(entry, ledger)
        _cap_rows(entry, ledger)
    held = _draw_heldout([entry for entry in ours if not entry.work.heldout], share)
    train: list[Callable[[], TokenStore]] = []
    heldout: list[Callable[[], TokenStore]] = []
    for entry in ours:
        away = entry.alive if entry.work.heldout else entry.alive & np.isin(entry.rows, held)
        if not entry.work.heldout:
            ledger.count(entry.work.name, Stage.HELD_OUT, int(away.sum()), int(entry.lengths[away].sum()))
            train += _taken(entry, entry.alive & ~away)
        heldout += _taken(entry, away)
    counts = [int((e.alive & ~np.isin(e.rows, held)).sum()) for e in ours if not e.work.heldout]
    owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    stores = [
        _stored(parts, save_to and save_to / name, key) for parts, name in ((train, "train"), (heldout, "heldout"))
    ]
    return Rendered(stores[0], stores[1], infos, owner, ledger, merged_reports(reports))


def _read(
    work: EntryWork,
    parts: Sequence[Load],
    places: dict[str, int],
    render: RenderWork,
    ledger: Ledger,
    reports: list[dict[str, Any] | None],
) -> tuple[_Entry, EntryInfo | None]:
    """The keys of an entry's examples; its account goes to the ledger (held-out data of its own isn't counted)."""
    facts, rows, draws, lengths = RowFacts(), [], [], []
    for part in parts:
        prepared = part()
        store = prepared.store
        facts.add(prepared.facts)
        reports.append(prepared.contamination)
        if not work.heldout:
            ledger.merge(prepared.ledger)
        own = np.array([places.setdefault(source, len(places)) for source in store.sources], dtype=np.int64)
        names = np.array([_name_hash(source, render.seed) for source in store.sources], dtype=np.uint64)
        rows.append((own[store.source_index] << 40) + store.rows if len(own) else store.rows.astype(np.int64))
        draws.append(
            _mixed(names[store.source_index] ^ store.rows.astype(np.uint64)) if len(own) else np.empty(0, np.uint64)
        )
        lengths.append(store.lengths)
    require_fitting(facts, render.max_tokens)
    joined = np.concatenate(lengths)
    entry = _Entry(
        work,
        parts,
        [len(each) for each in rows],
        np.concatenate(rows),
        np.concatenate(draws),
        joined,
        np.ones(len(joined), dtype=bool),
    )
    return entry, None if work.heldout else facts.info(work)


def _name_hash(source: str, seed: int) -> int:
    """A source's part of its rows' draws: by file name, so that a moved folder gives the same draws."""
    name = source if "://" in source else PurePath(source).name
    return int.from_bytes(hashlib.sha256(f"{seed}/rows/{name}".encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64 values spread evenly (the finalizer of splitmix64, Steele, Lea and Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _drop(entry: _Entry, gone: np.ndarray, reason: str, ledger: Ledger) -> None:
    """Count examples (bool `[n]`) as dropped that had been counted as kept."""
    count, tokens = int(gone.sum()), int(entry.lengths[gone].sum())
    if count:
        ledger.count(entry.work.name, Stage.KEPT, -count, -tokens)
        ledger.count(entry.work.name, Stage.DROPPED, count, tokens, reason)
        entry.alive &= ~gone


def _drop_duplicates(entry: _Entry, ledger: Ledger) -> None:
    """Drop the examples of rows that repeat an earlier row of the entry."""
    for each in build_filters(entry.work.entry.filters).duplicates:
        column = "exact" if isinstance(each, ExactDuplicates) else "near"
        values, row_of, first = [], [], 0
        for part in entry.parts:
            prepared = part()
            found = prepared.columns.get(column)
            if found is not None:
                values.append(found)
                row_of.append(prepared.row_of + first)
                first += len(found)
        if not values:
            continue
        table = np.concatenate(values)
        same_as = find_exact(table) if isinstance(each, ExactDuplicates) else find_near(table, each.threshold)
        repeated = same_as != np.arange(len(table))
        _drop(entry, entry.alive & repeated[np.concatenate(row_of)], each.label, ledger)


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


def _draw_heldout(entries: Sequence[_Entry], share: float) -> np.ndarray:
    """The held-out rows: of each entry those with the lowest draws, at least one on either side.

    A row that several entries read is held out of all of them or of none: the first that reads it decides.
    """
    chosen = seen = np.empty(0, dtype=np.int64)
    for entry in entries if share else ():
        rows = _rows_by_draw(entry, entry.alive)
        fresh = rows[~np.isin(rows, seen)]
        count = max(0, min(max(1, round(share * len(fresh))), len(fresh) - 1))
        chosen = np.concatenate([chosen, fresh[:count]])
        seen = np.concatenate([seen, fresh])
    return chosen


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
