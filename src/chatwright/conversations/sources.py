"""Where rows come from: files, folders, globs, the Hugging Face hub, data sets and lists in memory.

`load_conversations` is the one door for the rest of the program: rows read, format found, bad rows stopped at or
counted. This module knows no format and no file type by itself; see `converters` and `files`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chatwright.conversations.converters import convert, detect_format
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.files import READERS, RawRow, file_kind, is_saved_dataset, read_file, read_saved_dataset
from chatwright.conversations.hub import HUB_PREFIX, read_hub
from chatwright.conversations.places import without_nulls
from chatwright.conversations.schema import Conversation
from chatwright.errors import DataError

Source = str | Path | Iterable[Any]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row left out, with the reason.

    Args:
        row: its number in its source, from 0.
        field: the dotted field that was wrong (`line` for a line that can't be parsed), or None.
        reason: what was wrong with it.
        source: the file or data set it stands in.
    """

    row: int
    field: str | None
    reason: str
    source: str = "memory"


@dataclass(frozen=True, slots=True)
class LoadedConversations:
    """What a source gave.

    Args:
        conversations: one a good row, in the order of the rows.
        source: the source's name.
        format: the format, detected or given.
        num_rows: rows read = conversations + skipped.
        skipped: the rows left out.
    """

    conversations: list[Conversation]
    source: str
    format: str
    num_rows: int
    skipped: tuple[SkippedRow, ...] = ()

    @property
    def skip_counts(self) -> dict[str, int]:
        """Skipped rows by field, list positions as `*`: `{"line": 14, "messages.*.role": 2}`."""
        return dict(Counter(_general_field(row.field) for row in self.skipped))


def _general_field(field: str | None) -> str:
    return ".".join("*" if key.isdigit() else key for key in (field or "row").split("."))


def read_rows(source: Source) -> Iterator[Any]:
    """The rows of a source, one by one, stopping at the first that can't be read.

    Args:
        source: a file, folder, glob or `hub:owner/name[:config]/split`; or a `datasets.Dataset`, list or iterator.

    Raises:
        DataError: naming the file and row.
    """
    for raw in scan_rows(source):
        if raw.error:
            raise raw.error
        yield raw.value


def load_conversations(
    source: Source,
    *,
    format: str = "auto",
    on_bad_row: BadRow = "error",
    start: int | None = None,
    stop: int | None = None,
) -> LoadedConversations:
    """Read and convert all rows of a source, or those of `[start, stop)`.

    Args:
        source: see `read_rows`.
        format: a name of `CONVERTERS`, or `auto`.
        on_bad_row: `error` or `skip` (counted in `skipped`).
        start: first row to use, from 0; `stop`: the row after the last.

    Raises:
        DataError: for a bad row (unless skipped), rows of no known format, or when not one row is left.
    """
    name = source_text(source)
    rows = list(islice(scan_rows(source), start, stop))
    if not rows:
        where = f" in [{start or 0}, {'end' if stop is None else stop})" if start or stop is not None else ""
        raise DataError(f"there are no rows{where}", source=name, hint="give a source that has rows")
    if on_bad_row == "error":
        _raise_first(rows)
    readable = [raw.value for raw in rows if not raw.error]
    if format == "auto" and readable:
        format = detect_format(readable, name)
    conversations: list[Conversation] = []
    skipped: list[SkippedRow] = []
    for raw in rows:
        try:
            if raw.error:
                raise raw.error
            conversations.append(convert(raw.value, format, raw.source, raw.number))
        except DataError as error:
            # An error without a row, such as an unknown format, isn't about this row.
            if on_bad_row == "error" or error.row is None:
                raise
            skipped.append(SkippedRow(raw.number, error.field, error.message, raw.source))
    if not conversations:
        first = skipped[0]
        message = f"all {len(rows):,} rows were skipped; the first (row {first.row}): {first.reason}"
        raise DataError(message, source=name, hint="set the right format, or repair the rows")
    return LoadedConversations(conversations, name, format, len(rows), tuple(skipped))


def _raise_first(rows: Iterable[RawRow]) -> None:
    for raw in rows:
        if raw.error:
            raise raw.error


def fingerprint(source: Source) -> str:
    """sha256 (hex) over what a source holds: names and bytes of its files, or its rows; for cache keys.

    Args:
        source: see `read_rows`; an iterator can't be asked, since reading would use it up.

    Raises:
        DataError: if the source can't be read, or only once.
    """
    digest = hashlib.sha256()
    if is_local(source):
        for path in local_files(str(source)):
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            for file in files:
                _add_file(digest, file)
        return digest.hexdigest()
    if isinstance(source, Iterator):
        raise DataError("an iterator can be read only once", source="memory", hint="make a list of its rows")
    for row in read_rows(source):
        digest.update(json.dumps(row, ensure_ascii=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    """Add a file's name, size and bytes; the name tells how it is read, the size where it ends."""
    digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def source_text(source: Source) -> str:
    """A source's name for messages: its path, or `memory`."""
    return str(source) if isinstance(source, str | Path) else "memory"


def scan_rows(source: Source) -> Iterator[RawRow]:
    """The rows of a source with their places, bad ones included.

    Raises:
        DataError: if the source as a whole can't be read.
    """
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        yield from _memory_rows(read_hub(source), source)
    elif isinstance(source, str | Path):
        for path in local_files(str(source)):
            yield from scan_file(path)
    elif isinstance(source, Mapping):
        hint = f"give one of its parts: {', '.join(map(str, source))}"
        raise DataError("a mapping isn't rows (a DatasetDict holds several splits)", source="memory", hint=hint)
    else:
        yield from _memory_rows(source, "memory")


def scan_file(path: Path | str) -> Iterator[RawRow]:
    """The rows of one local file or saved data set, bad ones included."""
    path = Path(path)
    return read_saved_dataset(path) if path.is_dir() else read_file(path)


def _memory_rows(rows: Iterable[Any], name: str) -> Iterator[RawRow]:
    # `datasets` objects have `features`: their rows come out of Arrow, filled with nulls.
    from_arrow = hasattr(rows, "features")
    for index, row in enumerate(rows):
        yield RawRow(without_nulls(row) if from_arrow else row, name, index)


def is_local(source: Source) -> bool:
    """Whether a source is made of files of this machine."""
    return isinstance(source, Path) or (isinstance(source, str) and not source.startswith(HUB_PREFIX))


def local_files(source: str) -> list[Path]:
    """The files (and saved data sets) that a path, folder or glob stands for, sorted.

    Raises:
        DataError: if there are none.
    """
    path = Path(source).expanduser()
    if _is_readable(path):
        return [path]
    if path.is_dir():
        found = _data_files(path)
        problem, hint = "the folder holds no data files", f"known endings: {', '.join(READERS)}"
    elif any(letter in source for letter in "*?["):
        # A glob that names a file of unknown type is told so when the file is read.
        root = Path(path.anchor or ".")
        matches = root.glob(str(path.relative_to(path.anchor)))
        found = sorted(f for f in matches if (_is_hidden(path) or not _is_hidden(f)) and _is_readable(f))
        problem, hint = "no file matches this pattern", f"paths are relative to {Path.cwd()}"
    else:
        found = []
        problem, hint = "there is no such file or folder", f"paths are relative to {Path.cwd()}"
    if not found:
        raise DataError(problem, source=source, hint=hint)
    return found


def _data_files(folder: Path) -> list[Path]:
    """The data files in a folder and the folders inside it, hidden ones left out."""
    inside = (path for path in folder.rglob("*") if path.is_file() and file_kind(path))
    return sorted(path for path in inside if not _is_hidden(path.relative_to(folder)))


def _is_readable(path: Path) -> bool:
    return path.is_file() or is_saved_dataset(path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
