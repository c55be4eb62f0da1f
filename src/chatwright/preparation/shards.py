"""Shards: a data entry cut into row ranges, each made into one named folder of tokens by whoever takes it.

A shard is a pure function of its descriptor, so it doesn't matter which process, rank or machine makes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from chatwright.batches.token_cache import load_store, save_store
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.documents import read_text_range, split_texts
from chatwright.conversations.files import RawRow
from chatwright.conversations.hub import HUB_PREFIX, count_hub_rows, hub_range
from chatwright.conversations.regrouping import REGROUPINGS, regroup
from chatwright.conversations.renames import Renames
from chatwright.conversations.row_ranges import GROUP_BYTES, RowRange, cut_rows, num_bytes, read_range, split_source
from chatwright.conversations.sources import is_local, remote_files, scan_rows
from chatwright.conversations.stores import is_url
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger
from chatwright.preparation.cache import aside_of, install
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.rows import PreparedRows, RowFacts, prepare_rows
from chatwright.preparation.work import EntryWork, RenderWork, Shard
from chatwright.templates.base import Template

_FACTS = "facts.json"


def split_entry(work: EntryWork, number: int, rows_per_shard: int, *, unread: bool = False) -> list[Shard]:
    """The shards of a data entry that has a path.

    Args:
        number: the entry's place in the recipe, part of the shards' names.
        unread: see `split_source`.

    Raises:
        DataError: there is no such source.
    """
    return [
        Shard(f"entry-{number:03d}-shard-{index:05d}", work, rows, _piece_of(rows, work, rows_per_shard))
        for index, rows in enumerate(_ranges(work, rows_per_shard, unread))
    ]


def _ranges(work: EntryWork, rows_per_shard: int, unread: bool) -> list[RowRange]:
    entry = work.entry
    path, start = entry.path or "", entry.start or 0
    if _is_cut_by_row(entry):
        rows, commit = count_hub_rows(path)
        wanted = RowRange((path,), start, entry.stop, entry.step, commit=commit)
        return cut_rows(wanted, rows, rows_per_shard * entry.step)
    if entry.is_text:
        return split_texts(path, rows_per_shard, start, entry.stop, entry.step, unread=unread)
    whole = start == 0 and entry.stop is None and entry.step == 1
    if entry.format not in REGROUPINGS and is_url(path) and whole:
        return [RowRange((str(file),)) for file in remote_files(path)]
    if entry.format in REGROUPINGS or not is_local(path):
        return [RowRange((path,), start, entry.stop, entry.step)]
    return split_source(path, rows_per_shard, start, entry.stop, entry.step, unread=unread)


def _piece_of(rows: RowRange, work: EntryWork, most: int) -> int:
    """`rows_per_piece` of a range: `most` where it may hold more rows than that, 0 where it can't or is cut already."""
    if rows.stop is not None and len(range(rows.first, rows.stop, rows.step)) <= most:
        return 0
    if work.entry.format in REGROUPINGS or not is_local(rows.files[0]):
        return most
    return most if num_bytes(rows.files) > GROUP_BYTES and rows.offset is None else 0


def shard_rows(shard: Shard) -> Iterator[RawRow]:
    """The raw rows of a shard, with our names for their fields, grouped where the format asks for it.

    Raises:
        DataError: if a file as a whole can't be read.
    """
    entry, rows = shard.work.entry, shard.rows
    if _is_cut_by_row(entry) and rows.stop is not None:
        return _hub_rows(rows, entry.renames)
    if entry.is_text:
        return read_text_range(rows, entry.text_by, keep_notices=entry.keep_notices, hub_mode=entry.hub_mode)
    if entry.format in REGROUPINGS or not is_local(rows.files[0]):
        scanned = scan_rows(rows.files[0], entry.hub_mode, entry.renames)
        return islice(iter(regroup(entry.format, scanned)), rows.first, rows.stop, rows.step)
    renames = entry.renames
    if renames is None:
        return read_range(rows)
    return (raw._replace(value=renames.apply(raw.value)) for raw in read_range(rows))


def _is_cut_by_row(entry: DataSettings) -> bool:
    """Whether it is a downloaded data set of the hub, each row of which can be read by itself."""
    cached = (entry.path or "").startswith(HUB_PREFIX) and entry.hub_mode == "cached"
    return cached and entry.format not in REGROUPINGS


def _hub_rows(rows: RowRange, renames: Renames | None) -> Iterator[RawRow]:
    source, stop = rows.files[0], rows.stop or 0
    values = islice(hub_range(source, rows.first, stop, rows.commit), 0, None, rows.step)
    for number, value in zip(
        range(rows.first, stop, rows.step), values, strict=False
    ):  # a `stop` may be beyond its end
        yield RawRow(value if renames is None else renames.apply(value), source, number)


def make_shard(
    shard: Shard,
    render: RenderWork,
    template: Template,
    check: ContaminationCheck | None,
    folder: Path,
    done: Callable[[RowFacts], None] | None = None,
) -> RowFacts:
    """Make a shard's tokens and write them to `folder / shard.name`, complete or not at all.

    Of a shard that is made piece by piece, those that are there already stay.

    Args:
        done: called with the facts of each piece that is made.

    Raises:
        DataError: see `prepare_rows`.
        OSError: the folder can't be written.
    """
    if not shard.rows_per_piece:
        return _make(shard, shard_rows(shard), render, template, check, folder, done)
    facts, rows, index = RowFacts(), iter(shard_rows(shard)), 0
    (folder / shard.name / _FACTS).unlink(missing_ok=True)
    while held := list(islice(rows, shard.rows_per_piece)):
        piece = _piece(shard, index)
        if not has_shard(folder, piece):
            facts.add(_make(piece, held, render, template, check, folder, done))
        index += 1
    (folder / shard.name).mkdir(parents=True, exist_ok=True)
    _write_facts(folder / shard.name, {"shard": _descriptor(shard), "pieces": index})
    return facts


def _piece(shard: Shard, index: int) -> Shard:
    """The piece of that number; the last one may end earlier."""
    rows, length = shard.rows, shard.rows_per_piece * shard.rows.step
    first = rows.first + index * length
    stop = first + length if rows.stop is None else min(first + length, rows.stop)
    own = replace(rows, first=first, stop=stop)
    return Shard(f"{shard.name}/piece-{index:05d}", shard.work, own)


def _make(
    shard: Shard,
    rows: Iterable[RawRow],
    render: RenderWork,
    template: Template,
    check: ContaminationCheck | None,
    folder: Path,
    done: Callable[[RowFacts], None] | None,
) -> RowFacts:
    prepared = prepare_rows(rows, shard.work, render, template, check)
    aside = aside_of(folder / shard.name)
    try:
        save_store(prepared.store, aside / "tokens")
        for column, values in {"row_of": prepared.row_of, **prepared.columns}.items():
            np.save(aside / f"{column}.npy", values)
        facts = {
            "shard": _descriptor(shard),
            "facts": prepared.facts.to_dict(),
            "ledger": prepared.ledger.to_dict(),
            "contamination": prepared.contamination,
        }
        _write_facts(aside, facts)
        install(aside, folder / shard.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if done is not None:
        done(prepared.facts)
    return prepared.facts


def _descriptor(shard: Shard) -> dict[str, Any]:
    """What a shard is made of, as it is read back from JSON: two shards of one descriptor are one."""
    work = {each.name: getattr(shard.work, each.name) for each in fields(shard.work)}
    work["entry"] = shard.work.entry.model_dump(mode="json")
    made = {"rows": asdict(shard.rows), "rows_per_piece": shard.rows_per_piece, "work": work}
    return cast(dict[str, Any], json.loads(json.dumps(made)))


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `facts.json`, whole or not at all."""
    text = json.dumps(facts, ensure_ascii=False)
    aside = aside_of(folder / _FACTS)
    aside.write_text(text, encoding="utf-8", errors="surrogatepass")
    aside.replace(folder / _FACTS)


def _read_facts(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """What stands beside a shard's tokens; None where it isn't there whole, or is that of other rows."""
    try:
        text = (folder / shard.name / _FACTS).read_text(encoding="utf-8", errors="surrogatepass")
        read = json.loads(text)
        return cast(dict[str, Any], read) if read["shard"] == _descriptor(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_shard(folder: Path, shard: Shard) -> bool:
    """Whether this very shard is there, whole: of the same rows, read in the same way."""
    return _read_facts(folder, shard) is not None


def made_shards(folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """The shards of an entry as they were made: pieces in place of those made piece by piece.

    Raises:
        DataError: one isn't there, or they don't hold all rows between the first and the last one.
    """
    made: list[Shard] = []
    for shard in shards:
        read = _read_facts(folder, shard)
        if read is None:
            raise _unusable(folder, shard, "it isn't there, or was made of other rows")
        made += [_piece(shard, index) for index in range(read["pieces"])] if shard.rows_per_piece else [shard]
    for shard, following in pairwise(made):
        rows, behind = shard.rows, following.rows
        cut = rows.files == behind.files
        if behind.first != (rows.stop if cut else shards[0].rows.first):
            raise _unusable(folder, following, "its rows don't follow those of the one before")
        if cut and read_shard(folder, shard).facts.num_rows != len(range(rows.first, rows.stop or 0, rows.step)):
            raise _unusable(folder, shard, "it hasn't all of its rows")
    return made


def read_shard(folder: Path, shard: Shard) -> PreparedRows:
    """A shard that `make_shard` wrote whole; its tokens are memory-mapped.

    Raises:
        DataError: it is absent, damaged, or of other rows.
    """
    read, place = _read_facts(folder, shard), folder / shard.name
    if read is None:
        raise _unusable(folder, shard, "it isn't there, or was made of other rows")
    try:
        columns = {path.stem: np.load(path, mmap_mode="r") for path in place.glob("*.npy")}
        facts, ledger = RowFacts.from_dict(read["facts"]), Ledger.from_dict(read["ledger"])
        store, row_of = load_store(place / "tokens"), columns.pop("row_of")
        return PreparedRows(store, ledger, facts, columns, row_of, read["contamination"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(folder, shard, str(error)) from None


def _unusable(folder: Path, shard: Shard, problem: str) -> DataError:
    hint = "was the data changed while it was read? Remove this folder, and prepare again"
    return DataError(f"shard {shard.name} can't be used: {problem}", source=str(folder), hint=hint)
