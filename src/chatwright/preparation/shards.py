"""Shards: a data entry cut into row ranges, each made into one named folder of tokens by whoever takes it.

A shard is a pure function of its descriptor, so it doesn't matter which process, rank or machine makes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.batches.token_cache import load_store, save_store
from chatwright.conversations.documents import read_text_range, split_texts
from chatwright.conversations.files import RawRow
from chatwright.conversations.regrouping import REGROUPINGS, regroup
from chatwright.conversations.row_ranges import RowRange, read_range, split_source
from chatwright.conversations.sources import is_local, remote_files, scan_rows
from chatwright.conversations.stores import is_url
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger
from chatwright.preparation.cache import aside_of, install
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.rows import PreparedRows, RowFacts, prepare_rows
from chatwright.preparation.work import EntryWork, RenderWork, Shard
from chatwright.templates.base import Template


def split_entry(work: EntryWork, number: int, rows_per_shard: int, *, unread: bool = False) -> list[Shard]:
    """The shards of a data entry that has a path.

    Args:
        number: the entry's place in the recipe, part of the shards' names.
        unread: see `split_source`.

    Raises:
        DataError: there is no such source.
    """
    entry = work.entry
    path, start = entry.path or "", entry.start or 0
    if entry.is_text:
        ranges = split_texts(path, rows_per_shard, start, entry.stop, entry.step, unread=unread)
        return _named(ranges, work, number)
    whole = start == 0 and entry.stop is None and entry.step == 1
    if entry.format not in REGROUPINGS and is_url(path) and whole:
        ranges = [RowRange((str(file),)) for file in remote_files(path)]
    elif entry.format in REGROUPINGS or not is_local(path):
        ranges = [RowRange((path,), start, entry.stop, entry.step)]
    else:
        ranges = split_source(path, rows_per_shard, start, entry.stop, entry.step, unread=unread)
    return _named(ranges, work, number)


def _named(ranges: Sequence[RowRange], work: EntryWork, number: int) -> list[Shard]:
    return [Shard(f"entry-{number:03d}-shard-{index:05d}", work, rows) for index, rows in enumerate(ranges)]


def shard_rows(shard: Shard) -> Iterator[RawRow]:
    """The raw rows of a shard, with our names for their fields, grouped where the format asks for it.

    Raises:
        DataError: if a file as a whole can't be read.
    """
    entry, rows = shard.work.entry, shard.rows
    if entry.is_text:
        return read_text_range(rows, entry.text_by, keep_notices=entry.keep_notices, hub_mode=entry.hub_mode)
    if entry.format in REGROUPINGS or not is_local(rows.files[0]):
        scanned = scan_rows(rows.files[0], entry.hub_mode, entry.renames)
        return islice(iter(regroup(entry.format, scanned)), rows.first, rows.stop, rows.step)
    renames = entry.renames
    if renames is None:
        return read_range(rows)
    return (raw._replace(value=renames.apply(raw.value)) for raw in read_range(rows))


def make_shard(
    shard: Shard, render: RenderWork, template: Template, check: ContaminationCheck | None, folder: Path
) -> RowFacts:
    """Make a shard's tokens and write them to `folder / shard.name`, complete or not at all.

    Raises:
        DataError: see `prepare_rows`.
        OSError: the folder can't be written.
    """
    prepared = prepare_rows(shard_rows(shard), shard.work, render, template, check)
    aside = aside_of(folder / shard.name)
    try:
        save_store(prepared.store, aside / "tokens")
        columns: dict[str, Any] = {"row_of": prepared.row_of, **prepared.columns}
        np.savez(aside / "columns.npz", **columns)
        facts = {
            "facts": prepared.facts.to_dict(),
            "ledger": prepared.ledger.to_dict(),
            "contamination": prepared.contamination,
        }
        (aside / "facts.json").write_text(
            json.dumps(facts, ensure_ascii=False), encoding="utf-8", errors="surrogatepass"
        )
        install(aside, folder / shard.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return prepared.facts


def read_shard(folder: Path, name: str) -> PreparedRows:
    """A shard that `make_shard` wrote; its tokens are memory-mapped.

    Raises:
        DataError: it is absent or damaged.
    """
    try:
        text = (folder / name / "facts.json").read_text(encoding="utf-8", errors="surrogatepass")
        read = json.loads(text)
        with np.load(folder / name / "columns.npz") as arrays:
            columns = {key: arrays[key] for key in arrays.files}
        facts, ledger = RowFacts.from_dict(read["facts"]), Ledger.from_dict(read["ledger"])
        store, row_of = load_store(folder / name / "tokens"), columns.pop("row_of")
        return PreparedRows(store, ledger, facts, columns, row_of, read["contamination"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"this shard can't be read: {error}", source=str(folder / name)) from None


def has_shard(folder: Path, name: str) -> bool:
    """Whether a shard is there, whole."""
    return (folder / name / "facts.json").is_file()
