"""A source cut into row ranges that can be read apart from each other, by any process, without holding a file.

JSON lines are found by byte offset, rows of parquet files and saved data sets by record batch; the rows of other files
are read from their beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from chatwright.conversations.compression import unpacked_name
from chatwright.conversations.files import (
    RawRow,
    count_saved_rows,
    open_data_file,
    parse_line,
    read_parquet_range,
    read_saved_dataset,
)
from chatwright.conversations.sources import local_files, scan_file
from chatwright.errors import DataError

JSON_LINES = (".jsonl", ".ndjson")
SMALL_FILE_BYTES = 1 << 20
"""A file below this is never cut: reading it whole costs less than finding the place to cut."""
GROUP_BYTES = 4 << 20
"""Small files share a range up to this size together; one that can't be cut and is larger is made piece by piece."""
_UNPACKED = 10
"""How much larger a compressed file is taken to be unpacked; text is 3 to 15 times."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Every `step`-th of the rows `[first, stop)` of files read one after another.

    Args:
        files: the files of this machine; or one address or hub name, which only `scan_rows` can read.
        first: the first row, counted from 0 over the files. stop: the row after the last, or None for the end.
        step: 1 for every row.
        offset: the byte where the first row begins, where known (one file of JSON lines). line: the number of its
            line, from 1.
        commit: of a hub data set, where known: all of its ranges are of one commit.
    """

    files: tuple[str, ...]
    first: int = 0
    stop: int | None = None
    step: int = 1
    offset: int | None = None
    line: int = 1
    commit: str | None = None


def split_source(
    source: str,
    rows_per_range: int,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    *,
    unread: bool = False,
) -> list[RowRange]:
    """Cut a source into ranges of about `rows_per_range` rows, in the order of its rows.

    Args:
        source: a path, folder or glob of this machine.
        rows_per_range: most rows of a range that is cut out of a larger file; small files share a range by their bytes.
        start, stop, step: the rows of the whole source to use, counted over its files. Several files, or one whose
            rows can't be counted cheaply, are one range then, since only reading tells where a row stands.
        unread: cut without reading: files of JSON lines stay whole, those that tell their rows are cut.

    Raises:
        DataError: if there is no such source.
    """
    files = [str(path) for path in local_files(source)]
    if len(files) == 1:
        return list(_cut(files[0], rows_per_range, RowRange((files[0],), start, stop, step), unread))
    if start or stop is not None or step > 1:
        return [RowRange(tuple(files), start, stop, step)]
    ranges: list[RowRange] = []
    small: list[str] = []
    held = 0
    for path in files:
        size = num_bytes([path])
        if small and (not _is_small(path) or held + size > GROUP_BYTES):
            ranges.append(RowRange(tuple(small)))
            small, held = [], 0
        if _is_small(path):
            small.append(path)
            held += size
        else:
            ranges += _cut(path, rows_per_range, RowRange((path,)), unread)
    return [*ranges, RowRange(tuple(small))] if small else ranges


def num_bytes(files: Iterable[str]) -> int:
    """About how many bytes of rows there are in files of this machine."""
    sizes = ((Path(path).stat().st_size, unpacked_name(path) != path) for path in files if Path(path).is_file())
    return sum(size * _UNPACKED if packed else size for size, packed in sizes)


def _is_small(path: str) -> bool:
    return Path(path).is_file() and num_bytes([path]) < SMALL_FILE_BYTES


def _cut(path: str, rows_per_range: int, wanted: RowRange, unread: bool) -> Iterator[RowRange]:
    """The wanted rows of one file, cut where its type allows it."""
    wanted = RowRange((path,), wanted.first, wanted.stop, wanted.step)
    suffix = Path(path).suffix.lower()
    if Path(path).is_dir() or (suffix == ".parquet" and not _is_small(path)):
        yield from _cut_counted(wanted, rows_per_range * wanted.step)
    elif _is_small(path) or unread or suffix not in JSON_LINES:
        yield wanted
    else:
        yield from _cut_lines(wanted, rows_per_range * wanted.step)


def _cut_lines(wanted: RowRange, rows_per_cut: int) -> Iterator[RowRange]:
    """Ranges of non-blank lines, each with the byte where it begins; a file without any is one empty range."""
    first, stop = wanted.first, wanted.stop
    row = offset = 0
    begin: tuple[int, int] | None = None
    with Path(wanted.files[0]).open("rb") as file:
        for number, line in enumerate(file, 1):
            if row == stop:
                break
            if line.strip():
                if row == first:
                    begin = (offset, number)
                elif row == first + rows_per_cut and begin:
                    yield RowRange(wanted.files, first, row, wanted.step, *begin)
                    first, begin = row, (offset, number)
                row += 1
            offset += len(line)
    if begin is None:
        yield wanted
    else:
        yield RowRange(wanted.files, first, row, wanted.step, *begin)


def _cut_counted(wanted: RowRange, rows_per_cut: int) -> Iterator[RowRange]:
    """Ranges of a file that tells how many rows it has."""
    import pyarrow
    import pyarrow.parquet

    path = Path(wanted.files[0])
    try:
        rows = count_saved_rows(path) if path.is_dir() else pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowException, DataError):
        yield wanted  # reading it says what is wrong with it
        return
    yield from cut_rows(wanted, rows, rows_per_cut)


def cut_rows(wanted: RowRange, rows: int, rows_per_cut: int) -> list[RowRange]:
    """The wanted rows of a source that has so many, cut."""
    last = rows if wanted.stop is None else min(rows, wanted.stop)
    firsts = range(wanted.first, last, rows_per_cut)
    return [replace(wanted, first=first, stop=min(first + rows_per_cut, last)) for first in firsts] or [wanted]


def read_range(rows: RowRange) -> Iterator[RawRow]:
    """The rows of a range, bad ones included, each with its file and its number there.

    Raises:
        DataError: if a file as a whole can't be read.
    """
    path, suffix = rows.files[0], Path(rows.files[0]).suffix.lower()
    if rows.offset is not None:
        yield from islice(_lines_from(rows), 0, None if rows.stop is None else rows.stop - rows.first, rows.step)
    elif suffix == ".parquet" and len(rows.files) == 1 and rows.stop is not None:
        yield from islice(read_parquet_range(Path(path), rows.first, rows.stop), 0, None, rows.step)
    elif len(rows.files) == 1 and Path(path).is_dir():
        yield from islice(read_saved_dataset(Path(path), rows.first, rows.stop), 0, None, rows.step)
    elif suffix in JSON_LINES and len(rows.files) == 1 and rows.first:
        length = None if rows.stop is None else max(0, rows.stop - rows.first)
        yield from islice(_lines_after(path, rows.first), 0, length, rows.step)
    else:
        chained: Iterable[RawRow] = chain.from_iterable(map(scan_file, rows.files))
        yield from islice(chained, rows.first, rows.stop, rows.step)


def _lines_from(rows: RowRange) -> Iterator[RawRow]:
    """Rows from a byte offset on; the same as `read_jsonl` gives there."""
    path, row = rows.files[0], rows.first
    with open_data_file(Path(path)) as file:
        file.seek(rows.offset or 0)
        for number, line in enumerate(file, rows.line):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield parse_line(line, path, row, number)
                row += 1


def _lines_after(path: str, skipped: int) -> Iterator[RawRow]:
    """The rows of a file of JSON lines behind the first `skipped`, which aren't parsed."""
    row = 0
    with open_data_file(Path(path)) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                if row >= skipped:
                    yield parse_line(line, path, row, number)
                row += 1
