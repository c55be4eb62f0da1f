"""Rows out of files, here or in a store: JSON, JSON lines, CSV, parquet, YAML; and saved `datasets` folders.

Every reader yields `RawRow`s, bad ones included, so that the caller decides to stop or to skip.
A new file type is one function and one entry of `READERS`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml

from chatwright.conversations.compression import unpacked, unpacked_name, unpacking_errors
from chatwright.conversations.places import shown, without_nulls
from chatwright.conversations.stores import StoreFile, store_errors
from chatwright.errors import DataError, not_utf8
from chatwright.settings import load_yaml

ROWS_PER_BATCH = 1024
TEXT_ENDING = ".txt"
_LONGEST_CSV_FIELD = 2**31 - 1
DataFile = Path | StoreFile

_REPAIR_FILE = "repair the file"
_REPAIR_LINE = "repair or remove the line, or set on_bad_row: skip"
_LFS_POINTER = b"version https://git-lfs"
_LFS_HINT = "this is a pointer of Git LFS, not the file: fetch it with git lfs pull"


class RawRow(NamedTuple):
    """A row as read: its value, or the error that says why it can't be read.

    `source` is the file, `number` the row's number in it from 0 (bad rows counted, blank lines not).
    """

    value: Any
    source: str
    number: int
    error: DataError | None = None


def read_file(path: DataFile) -> Iterator[RawRow]:
    """The rows of one file, by its ending; that of a compression (`.gz`, `.zst` …) may follow any of them.

    Raises:
        DataError: if the ending is unknown or the whole file can't be read.
        UserError: if the library that unpacks it isn't installed.
    """
    kind = file_kind(path.name)
    if kind is None:
        ending = Path(path.name).suffix
        hint = f"known: {', '.join(READERS)}"
        if is_text_file(path.name):
            hint = "it is plain text: a recipe's data entry trains on it as it is (format: text)"
        raise DataError(f"unknown file type {ending!r}", source=str(path), hint=hint)
    try:
        yield from READERS[kind](path)
    except reading_errors() as error:
        raise DataError(
            f"can't be read: {error}", source=str(path), hint="check the path; fetch a cut file again"
        ) from None


def reading_errors() -> tuple[type[Exception], ...]:
    """What reading a file, here or in a store, can raise."""
    return (*store_errors(), *unpacking_errors())


def file_kind(name: str | Path) -> str | None:
    """The ending in `READERS` that a file name has, or None."""
    suffix = Path(unpacked_name(str(name))).suffix.lower()
    return suffix if suffix in READERS else None


def is_text_file(name: str | Path) -> bool:
    """Whether a name is that of plain text (`.txt`, packed or not), whose documents aren't rows."""
    return Path(unpacked_name(str(name))).suffix.lower() == TEXT_ENDING


@contextmanager
def open_data_file(path: DataFile) -> Iterator[BinaryIO]:
    """The bytes of a data file, unpacked where it is compressed."""
    with path.open("rb") as packed, unpacked(packed, path.name) as file:
        yield file


def _read_text(path: DataFile) -> str:
    with open_data_file(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(error), source=str(path), hint="save the file as UTF-8") from None


def read_jsonl(path: DataFile) -> Iterator[RawRow]:
    """One JSON value a line. Lines end at `\\n` only: rows hold U+2028, where `splitlines` would cut."""
    source, index = str(path), 0
    with open_data_file(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            yield parse_line(line, source, index, number)
            index += 1


def parse_line(line: bytes, source: str, index: int, number: int) -> RawRow:
    """The row of one JSON line; `index` is the row's number, `number` the line's, from 1."""
    try:
        return RawRow(json.loads(line.decode("utf-8")), source, index)
    except UnicodeDecodeError as error:
        message, hint = f"line {number} {not_utf8(error)}: {shown(line[:60])}", "save the file as UTF-8"
    except RecursionError:
        message, hint = f"line {number} is nested too deeply: {shown(line[:60])}", _REPAIR_LINE
    except ValueError as error:
        # json's own "line 1 column 97" counts inside this line.
        reason = str(error).replace("line 1 column", "column")
        message = f"line {number} is not JSON ({reason}): {shown(line[:60])}"
        hint = _LFS_HINT if line.startswith(_LFS_POINTER) else _REPAIR_LINE
    return RawRow(None, source, index, DataError(message, source=source, row=index, field="line", hint=hint))


def read_json_file(path: DataFile) -> Iterator[RawRow]:
    """A JSON list of rows, or `{"data": […]}`; a `.json` file with one object a line is read as JSON lines."""
    source = str(path)
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            yield from read_jsonl(path)
            return
        hint = _LFS_HINT if error.doc.startswith(_LFS_POINTER.decode()) else _REPAIR_FILE
        raise DataError(f"is not JSON: {error}", source=source, hint=hint) from None
    except RecursionError:
        raise DataError("holds JSON that can't be read: nested too deeply", source=source, hint=_REPAIR_FILE) from None
    except ValueError as error:
        raise DataError(f"holds JSON that can't be read: {error}", source=source, hint=_REPAIR_FILE) from None
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        data = data["data"]
    if not isinstance(data, list):
        fields = f" with fields {', '.join(map(repr, data))}" if isinstance(data, dict) else ""
        raise DataError(
            f"must hold a list of rows, found one {type(data).__name__}{fields}",
            source=source,
            hint='write [row, row, …] or {"data": [row, …]}',
        )
    for index, row in enumerate(data):
        yield RawRow(row, source, index)


def read_csv(path: DataFile) -> Iterator[RawRow]:
    """Comma-separated rows under a header line, as dicts of strings; read as they are asked for."""
    source = str(path)
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    with open_data_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            header = next(lines, [])
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                names = ", ".join(map(repr, twice))
                raise DataError(f"the header names {names} twice", source=source, hint="give each column its own name")
            for index, values in enumerate(filter(None, lines)):
                yield _csv_row(header, values, source, index, lines.line_num)
        except csv.Error as error:
            message, hint = f"line {lines.line_num} is not CSV: {error}", "repair the line"
            raise DataError(message, source=source, hint=hint) from None
        except UnicodeDecodeError:
            _read_text(path)  # tells where in the file
            raise


def other_delimiter(header: Sequence[str]) -> str | None:
    """What stands between the columns of a CSV file where it isn't the comma, told by its header's only name."""
    if len(header) != 1:
        return None
    return next((each for each in (";", "\t", "|") if each in str(header[0])), None)


def _csv_row(header: list[str], values: list[str], source: str, index: int, line: int) -> RawRow:
    if len(values) == len(header):
        return RawRow(dict(zip(header, values, strict=True)), source, index)
    message = f"line {line} has {len(values)} values, the header names {len(header)} columns"
    hint = "repair the line (quote values that hold commas), or set on_bad_row: skip"
    if delimiter := other_delimiter(header):
        hint = f"the header has {delimiter!r} between its names: save the file with commas"
    return RawRow(None, source, index, DataError(message, source=source, row=index, field="line", hint=hint))


def read_yaml_dialogues(path: DataFile) -> Iterator[RawRow]:
    """A YAML list of rows, or chatterbot-corpus's `conversations: [[question, answer, …], …]`."""
    source = str(path)
    try:
        data = load_yaml(_read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"is not YAML that can be read: {error}", source=source, hint=_REPAIR_FILE) from None
    rows = data.get("conversations") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise DataError("must hold a list of rows, alone or as 'conversations'", source=source)
    for index, row in enumerate(rows):
        yield RawRow(row, source, index)


def read_parquet(path: DataFile) -> Iterator[RawRow]:
    """The rows of a parquet file, a batch at a time, without the nulls that Arrow filled in."""
    import pyarrow
    import pyarrow.parquet

    source = str(path)
    try:
        with pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else path.open("rb")) as file:
            yield from _arrow_rows(file.iter_batches(batch_size=ROWS_PER_BATCH), source, 0)
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from None


def read_parquet_range(path: Path, first: int, stop: int) -> Iterator[RawRow]:
    """The rows `[first, stop)` of a parquet file; row groups outside aren't read."""
    import pyarrow
    import pyarrow.parquet

    source, begin = str(path), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if begin < stop and end > first:
                    batches = file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group])
                    yield from _arrow_rows(batches, source, begin, first, stop)
                begin = end
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from None


def _not_parquet(path: DataFile, error: Exception) -> DataError:
    with path.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    message = f"is not a parquet file that can be read: {error}"
    return DataError(message, source=str(path), hint=_LFS_HINT if pointer else "fetch the file again")


def read_saved_dataset(folder: Path, first: int = 0, stop: int | None = None) -> Iterator[RawRow]:
    """The rows `[first, stop)` of a folder written by `Dataset.save_to_disk`, read with pyarrow alone.

    Raises:
        DataError: for a folder of several splits (name one), or a damaged one.
    """
    with _saved_dataset_errors(folder):
        yield from _arrow_rows(_saved_batches(folder), str(folder), 0, first, stop)


def count_saved_rows(folder: Path) -> int:
    """How many rows a folder written by `Dataset.save_to_disk` holds; their values aren't read.

    Raises:
        DataError: see `read_saved_dataset`.
    """
    with _saved_dataset_errors(folder):
        return sum(batch.num_rows for batch in _saved_batches(folder))


@contextmanager
def _saved_dataset_errors(folder: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(f"is not a saved data set that can be read: {error}", source=str(folder)) from None


def _saved_batches(folder: Path) -> Iterator[Any]:
    """The record batches of all its files, memory-mapped: one that is passed over costs nothing."""
    import pyarrow

    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        hint = f"name one of them: {' or '.join(str(folder / split) for split in splits)}"
        raise DataError(f"holds several splits: {', '.join(splits)}", source=str(folder), hint=hint)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for entry in state["_data_files"]:
        with pyarrow.memory_map(str(folder / entry["filename"])) as file:
            yield from _arrow_batches(file)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote this folder with `save_to_disk`."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _arrow_batches(file: Any) -> Iterator[Any]:
    """Record batches of an Arrow stream (what `datasets` writes) or Arrow file."""
    import pyarrow

    try:
        yield from pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _arrow_rows(batches: Any, source: str, start: int, first: int = 0, stop: int | None = None) -> Iterator[RawRow]:
    """The rows `[first, stop)` of batches that begin with row `start`; only these become Python values."""
    for batch in batches:
        if stop is not None and start >= stop:
            return
        end = start + batch.num_rows
        begin = max(start, first)
        length = (end if stop is None else min(end, stop)) - begin
        if length > 0:
            for number, row in enumerate(batch.slice(begin - start, length).to_pylist(), begin):
                yield RawRow(without_nulls(row), source, number)
        start = end


READERS: dict[str, Callable[[DataFile], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json_file,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".yml": read_yaml_dialogues,
    ".yaml": read_yaml_dialogues,
}
