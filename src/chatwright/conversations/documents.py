"""Plain text for pre-training: `.txt` files whole, by paragraph or by line, and rows with a text field.

A `.txt` file (packed or not) is one document, or one a paragraph (parted by blank lines) or line; blank ones don't
count, and line ends become `\\n`. In every other file a row is a document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from chatwright.conversations.compression import unpacking_errors
from chatwright.conversations.data_settings import TextUnit
from chatwright.conversations.files import RawRow, file_kind, is_text_file, open_data_file, read_file
from chatwright.conversations.hub import HubMode
from chatwright.conversations.places import Place, read_list, read_mapping, read_text
from chatwright.conversations.row_ranges import SMALL_FILE_BYTES, RowRange, read_range, split_source
from chatwright.conversations.schema import Conversation, Document, Message
from chatwright.conversations.sources import (
    Source,
    fingerprint,
    fingerprint_files,
    is_local,
    local_files,
    scan_file,
    scan_rows,
)
from chatwright.conversations.stores import LOCAL_SCHEME, StoreFile, driver_errors, is_url, store_files
from chatwright.errors import DataError

NOTICE_CUT = "Project Gutenberg's notice cut off"

_GUTENBERG_START = re.compile(r"\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG EBOOK")
_GUTENBERG_END = re.compile(r"\*\*\* ?END OF (THE|THIS) PROJECT GUTENBERG EBOOK|End of (the )?Project Gutenberg", re.I)
_LINES_TO_START = 400
"""A Gutenberg file's notice ends within so many lines; the files at hand need 24."""


# Documents as conversations: the one shape that filters, transforms and preparation know


def document_conversation(document: Document, extra: Mapping[str, Any] | None = None) -> Conversation:
    """A document in the shape of a conversation: one message, with the mark that no template goes around it.

    The message counts as a reply, since the model is to write it; so filters and transforms for replies apply to it.
    """
    message = Message.of("assistant", document.text)
    return Conversation((message,), source=document.source, row=document.row, extra=extra or {}, document=True)


def document_of(row: RawRow, field: str) -> Document:
    """The document of a row of `scan_texts`.

    Args:
        field: where a row's text stands: a string, or a list of strings, which line breaks join (`paragraphs`).
            Rows that are strings themselves need none.

    Raises:
        DataError: the row can't be read, or has no text.
    """
    if row.error:
        raise row.error
    if isinstance(row.value, Document):
        return row.value
    return Document(_row_text(row.value, field, Place(row.source, row.number)), row.source, row.number)


def columns_beside(row: RawRow, field: str) -> dict[str, Any]:
    """The row's columns beside its text, for filters."""
    return {name: value for name, value in row.value.items() if name != field} if isinstance(row.value, Mapping) else {}


# Reading


def scan_texts(
    source: Source, by: TextUnit = "file", *, keep_notices: bool = False, hub_mode: HubMode = "cached"
) -> Iterator[RawRow]:
    """The rows of a source, bad ones included; those of `.txt` files hold `Document`s.

    Args:
        source: as for `read_rows`, `.txt` files included; of a folder that has any, they alone are read.
        by: what of a `.txt` file is a document.
        keep_notices: leave Project Gutenberg's notice and licence in; else they are cut off where its marks stand.

    Raises:
        DataError: a file as a whole can't be read.
    """
    if is_local(source) or is_url(source):
        for file in _files(str(source)):
            yield from _scan_file(file, by, keep_notices)
    else:
        yield from scan_rows(source, hub_mode)


def _scan_file(file: Path | StoreFile, by: TextUnit, keep_notices: bool) -> Iterator[RawRow]:
    if is_text_file(file.name):
        return _of_text(file, by, keep_notices)
    return scan_file(file) if isinstance(file, Path) else read_file(file)


def _files(source: str) -> Iterable[Path | StoreFile]:
    if is_url(source):
        return store_files(source, lambda name: is_text_file(name) or file_kind(name) is not None)
    folder = Path(os.path.expandvars(source.removeprefix(LOCAL_SCHEME))).expanduser()
    texts = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_text_file(path.name)]
    shown = [path for path in texts if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    # A folder of texts and rows would mix two kinds of documents: its texts win, as `by` says what they are.
    return shown or local_files(source)


def text_fingerprint(source: str) -> str | None:
    """What `fingerprint` gives, over the files that `scan_texts` reads.

    Raises:
        DataError: there is no such source.
    """
    found = is_local(source) or is_url(source)
    return fingerprint_files(_files(source), source) if found else fingerprint(source)


# Ranges


def split_texts(
    path: str, rows_per_range: int, start: int = 0, stop: int | None = None, step: int = 1, *, unread: bool = False
) -> list[RowRange]:
    """A source cut into ranges that `read_text_range` reads; the arguments are those of `split_source`.

    A `.txt` file is never cut, and small ones share a range; files of rows are cut as those of conversations are. What
    isn't on this machine is one range.

    Raises:
        DataError: there is no such source.
    """
    if not is_local(path):
        return [RowRange((path,), start, stop, step)]
    files = [str(file) for file in _files(path)]
    if not any(map(is_text_file, files)):
        return split_source(path, rows_per_range, start, stop, step, unread=unread)
    if start or stop is not None or step > 1:
        return [RowRange(tuple(files), start, stop, step)]
    ranges: list[list[str]] = [[]]
    size = 0
    for file in files:
        size += Path(file).stat().st_size
        if ranges[-1] and size > SMALL_FILE_BYTES:
            ranges.append([])
            size = Path(file).stat().st_size
        ranges[-1].append(file)
    return [RowRange(tuple(each)) for each in ranges]


def read_text_range(rows: RowRange, by: TextUnit, *, keep_notices: bool, hub_mode: HubMode) -> Iterator[RawRow]:
    """The rows of a range of `split_texts`; or of a whole address or hub data set, as `scan_texts` gives them.

    Raises:
        DataError: a file as a whole can't be read.
    """
    first = rows.files[0]
    if not is_local(first):
        scanned = scan_texts(first, by, keep_notices=keep_notices, hub_mode=hub_mode)
    elif any(map(is_text_file, rows.files)):
        scanned = chain.from_iterable(_scan_file(Path(file), by, keep_notices) for file in rows.files)
    else:
        return read_range(rows)
    return islice(scanned, rows.first, rows.stop, rows.step)


# Rows and lines


def _row_text(row: Any, field: str, place: Place) -> str:
    if not isinstance(row, str):
        row = read_mapping(row, place)
        if field not in row:
            fields = ", ".join(map(repr, row)) or "none"
            raise place.error(f"the row has no field {field!r}; its fields are {fields}", "name the field of the text")
        place, row = place.at(field), row[field]
    text = row if isinstance(row, str) or row is None else "\n".join(_texts(row, place))
    text = read_text(text, place)
    if not text.strip():
        raise place.error("the text is empty", "leave the row out, or set on_bad_row: skip")
    return text


def _texts(value: Any, place: Place) -> Iterator[str]:
    if isinstance(value, Mapping):
        raise place.error("must be text or a list of texts, found an object")
    return (read_text(text, place.at(i)) for i, text in enumerate(read_list(value, place)))


def _of_text(file: Path | StoreFile, by: TextUnit, keep_notices: bool) -> Iterator[RawRow]:
    lines, cut = _lines(file), None
    if not keep_notices:
        lines, cut = _without_notices(lines)
    units = {"file": _whole, "paragraph": _paragraphs, "line": _nonblank}[by](lines)
    for row, text in enumerate(units):
        yield RawRow(Document(text, str(file), row, None if row else cut), str(file), row)


def _lines(file: Path | StoreFile) -> Iterator[str]:
    """Lines without their ends; they end at `\\n` only, since texts hold U+2028 and form feeds."""
    try:
        with open_data_file(file) as stream:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        message = f"line {number} is not UTF-8 (byte {error.start:,} of it)"
        raise DataError(message, source=str(file), hint="save the file as UTF-8") from None
    except _reading_errors() as error:
        raise DataError(f"can't be read: {error}", source=str(file), hint="check the path") from None


def _reading_errors() -> tuple[type[Exception], ...]:
    return (OSError, *unpacking_errors(), *driver_errors())


def _without_notices(lines: Iterator[str]) -> tuple[Iterator[str], str | None]:
    """The lines between Project Gutenberg's marks, and that they were cut; all lines where its first mark is absent."""
    head: list[str] = []
    for line in lines:
        if _GUTENBERG_START.match(line):
            return _up_to_end(lines), NOTICE_CUT
        head.append(line)
        if len(head) == _LINES_TO_START:
            break
    return chain(head, lines), None


def _up_to_end(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if _GUTENBERG_END.match(line):
            return
        yield line


def _whole(lines: Iterable[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield text


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in chain(lines, [""]):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []


def _nonblank(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())
