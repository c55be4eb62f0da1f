"""Where rows come from: files, folders, globs, stores, the Hugging Face hub, data sets and lists in memory.

`load_conversations` is the one door for the rest of the program: rows read, format found, bad rows stopped at or
counted. This module knows no format and no file type by itself; see `converters` and `files`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chatwright.conversations.converters import convert, detect_format
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.files import (
    READERS,
    RawRow,
    file_kind,
    is_saved_dataset,
    is_text_file,
    read_file,
    read_saved_dataset,
)
from chatwright.conversations.hub import HUB_PREFIX, HubMode, hub_commit, hub_rows
from chatwright.conversations.lasting_names import lasting_name
from chatwright.conversations.places import without_nulls
from chatwright.conversations.regrouping import regroup
from chatwright.conversations.renames import Renames, require_names
from chatwright.conversations.schema import Conversation
from chatwright.conversations.stores import LOCAL_SCHEME, StoreFile, is_url, store_files
from chatwright.errors import DataError

ROWS_SHOWN = 8
"""How many numbers of skipped rows a text shows before it breaks off."""

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
        return dict(Counter(general_field(row.field) for row in self.skipped))

    @property
    def skip_places(self) -> dict[str, str]:
        """Where the skipped rows are, by field as in `skip_counts`: `{"line": "rows 12, 40 of a.jsonl"}`."""
        return skip_places(self.skipped)


def skip_places(skipped: Iterable[SkippedRow]) -> dict[str, str]:
    """The row numbers (from 0) of skipped rows, by field: `rows 12, 40, 41 … of a.jsonl; row 3 of b.jsonl`."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in skipped:
        found.setdefault(general_field(row.field), {}).setdefault(row.source, []).append(row.row)
    return {
        field: "; ".join(_rows_of(numbers, source) for source, numbers in places.items())
        for field, places in found.items()
    }


def _rows_of(numbers: list[int], source: str) -> str:
    shown = ", ".join(map(str, numbers[:ROWS_SHOWN])) + (" …" if len(numbers) > ROWS_SHOWN else "")
    return f"row{'s' if len(numbers) > 1 else ''} {shown} of {source}"


def general_field(field: str | None) -> str:
    """A field's name for counting: list positions as `*`, `row` where no field is named."""
    return ".".join("*" if key.isdigit() else key for key in (field or "row").split("."))


def read_rows(source: Source, hub_mode: HubMode = "cached") -> Iterator[Any]:
    """The rows of a source, one by one, stopping at the first that can't be read.

    Args:
        source: a file, folder or glob, here or at an address such as `s3://bucket/*.jsonl`; a hub data set
            `hub:owner/name[@revision][:config]/split`; or a `datasets.Dataset`, list or iterator.
        hub_mode: whether a hub data set is downloaded whole and kept, or streamed.

    Raises:
        DataError: naming the file and row.
    """
    for raw in scan_rows(source, hub_mode):
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
    hub_mode: HubMode = "cached",
    renames: Renames | None = None,
) -> LoadedConversations:
    """Read and convert all rows of a source, or those of `[start, stop)`.

    Args:
        source: see `read_rows`.
        format: a name of `CONVERTERS`, or `auto`.
        on_bad_row: `error` or `skip` (counted in `skipped`).
        start: first row to use, from 0; `stop`: the row after the last. Both count what `regroup` makes of the rows.
        hub_mode: see `read_rows`.
        renames: what fields and roles are called in these rows.

    Raises:
        DataError: for a bad row (unless skipped), rows of no known format, or when not one row is left.
    """
    name = source_text(source)
    scanned: Iterable[RawRow] = scan_rows(source, hub_mode)
    if renames is not None:
        scanned = list(scanned)
        require_names(renames, (raw.value for raw in scanned if not raw.error), name)
        scanned = _renamed(scanned, renames)
    rows = list(islice(regroup(format, scanned), start, stop))
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


def fingerprint(source: Source) -> str | None:
    """sha256 (hex) over what a source holds, for cache keys; None for a hub data set while the hub is out of reach.

    Names and bytes of files; the checksums (or versions, or size and time) that a store tells; a hub set's commit;
    the rows of data in memory.

    Args:
        source: see `read_rows`; an iterator can't be asked, since reading would use it up.

    Raises:
        DataError: if the source can't be read, or only once.
    """
    if is_local(source):
        return fingerprint_files(local_files(str(source)), str(source))
    if is_url(source):
        return fingerprint_files(remote_files(str(source)), str(source))
    digest = hashlib.sha256()
    if isinstance(source, str):
        commit = hub_commit(source)
        if commit is None:
            return None
        digest.update(f"{source}\0{commit}".encode())
    else:
        if isinstance(source, Iterator):
            raise DataError("an iterator can be read only once", source="memory", hint="make a list of its rows")
        for row in read_rows(source):
            digest.update(json.dumps(row, ensure_ascii=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def fingerprint_files(paths: Iterable[Path | StoreFile], source: str) -> str:
    """sha256 (hex) over the names and bytes of files, those in folders included, or what a store tells of them.

    Args:
        source: the path that they are found by: names are taken from there on, so that a moved folder is the same.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{lasting_name(str(path), source)}\0".encode("utf-8", "surrogatepass"))
        if not isinstance(path, Path):
            _add_store_file(digest, path)
            continue
        for file in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
            _add_file(digest, file)
    return digest.hexdigest()


def _add_store_file(digest: hashlib._Hash, file: StoreFile) -> None:
    """Add what the store tells of a file, or its bytes where it tells nothing."""
    digest.update(f"{file.url}\0{file.version}\0".encode())
    if file.version is None:
        with file.open() as stream:
            while block := stream.read(1 << 20):
                digest.update(block)


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    """Add a file's name, size and bytes; the name tells how it is read, the size where it ends."""
    digest.update(f"{path.name}\0{path.stat().st_size}\0".encode("utf-8", "surrogatepass"))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def source_text(source: Source) -> str:
    """A source's name for messages: its path, or `memory`."""
    return str(source) if isinstance(source, str | Path) else "memory"


def scan_rows(source: Source, hub_mode: HubMode = "cached", renames: Renames | None = None) -> Iterator[RawRow]:
    """The rows of a source with their places, bad ones included; fields and roles renamed if asked.

    Raises:
        DataError: if the source as a whole can't be read.
    """
    rows = _scan(source, hub_mode)
    return rows if renames is None else _renamed(rows, renames)


def require_fields(source: Source, hub_mode: HubMode, renames: Renames | None) -> None:
    """Refuse names for fields that the first rows of a source haven't.

    Raises:
        DataError: naming the field and those that there are.
    """
    if renames is not None and (renames.columns or renames.message_columns):
        require_names(renames, (raw.value for raw in _scan(source, hub_mode) if not raw.error), source_text(source))


def _renamed(rows: Iterable[RawRow], renames: Renames) -> Iterator[RawRow]:
    return (raw._replace(value=renames.apply(raw.value)) for raw in rows)


def _scan(source: Source, hub_mode: HubMode) -> Iterator[RawRow]:
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        yield from memory_rows(hub_rows(source, hub_mode), source)
    elif is_url(source):
        for file in remote_files(str(source)):
            yield from read_file(file)
    elif isinstance(source, str | Path):
        for path in local_files(str(source)):
            yield from scan_file(path)
    elif isinstance(source, Mapping):
        hint = f"give one of its parts: {', '.join(map(str, source))}"
        raise DataError("a mapping isn't rows (a DatasetDict holds several splits)", source="memory", hint=hint)
    else:
        yield from memory_rows(source, "memory")


def scan_file(path: Path | str) -> Iterator[RawRow]:
    """The rows of one local file or saved data set, bad ones included."""
    path = Path(path)
    return read_saved_dataset(path) if path.is_dir() else read_file(path)


def memory_rows(rows: Iterable[Any], name: str = "memory") -> Iterator[RawRow]:
    """Rows in memory with their places."""
    # `datasets` objects have `features`: their rows come out of Arrow, filled with nulls.
    from_arrow = hasattr(rows, "features")
    for index, row in enumerate(rows):
        yield RawRow(without_nulls(row) if from_arrow else row, name, index)


def is_local(source: Source) -> bool:
    """Whether a source is made of files of this machine."""
    return isinstance(source, Path) or (
        isinstance(source, str) and not source.startswith(HUB_PREFIX) and not is_url(source)
    )


def remote_files(url: str) -> list[StoreFile]:
    """The data files that an address stands for, sorted: one file, a glob's matches, or all in a folder.

    Raises:
        UserError: if the store's driver isn't installed. DataError: if there are none.
    """
    return store_files(url, lambda name: file_kind(name) is not None)


def local_files(source: str) -> list[Path]:
    """The files (and saved data sets) that a path, folder or glob stands for, sorted; `~` and `$NAME` are filled in.

    Raises:
        DataError: if there are none.
    """
    source = os.path.expandvars(source.removeprefix(LOCAL_SCHEME))
    if not source:
        raise DataError("the path is empty", source="data", hint="name a file, folder or glob")
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise DataError("there is no such user's home", source=source, hint="write the whole path") from None
    if _is_readable(path):
        return [path]
    if path.is_dir():
        found = _data_files(path)
        problem, hint = "the folder holds no data files", f"known endings: {', '.join(READERS)}"
        if any(is_text_file(file) for file in path.rglob("*")):
            hint = f"its .txt files are plain text: set format: text; {hint}"
    elif any(letter in source for letter in "*?["):
        # A glob that names a file of unknown type is told so when the file is read.
        root = Path(path.anchor or ".")
        matches = root.glob(str(path.relative_to(path.anchor)))
        found = sorted(f for f in matches if (_is_hidden(path) or not _is_hidden(f)) and _is_readable(f))
        problem, hint = "no file matches this pattern", f"paths are relative to {Path.cwd()}"
    else:
        found = []
        problem, hint = _why_absent(path), f"paths are relative to {Path.cwd()}"
        if "$" in source:
            hint = f"set the environment variable that it begins with, such as export CHATWRIGHT_DATA=FOLDER; or {hint}"
    if not found:
        raise DataError(problem, source=source, hint=hint)
    return found


def _why_absent(path: Path) -> str:
    """Why a path is neither a file nor a folder."""
    if path.is_symlink():
        target = path.readlink()
        return f"is a link to {target}, which leads " + ("nowhere" if target != Path(path.name) else "back to itself")
    return "is no plain file (a pipe or device)" if path.exists() else "there is no such file or folder"


def _data_files(folder: Path) -> list[Path]:
    """The data files in a folder and the folders inside it, hidden ones left out."""
    inside = (path for path in folder.rglob("*") if path.is_file() and file_kind(path))
    return sorted(path for path in inside if not _is_hidden(path.relative_to(folder)))


def _is_readable(path: Path) -> bool:
    return path.is_file() or is_saved_dataset(path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
