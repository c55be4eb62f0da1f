"""Plain text for pre-training: `.txt` files whole, by paragraph or by line, and rows with a text field.

This module knows nothing of conversations; a `Document` is text with its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from chatwright.conversations.compression import unpacked_name, unpacking_errors
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.files import RawRow, file_kind, open_data_file, read_file
from chatwright.conversations.places import Place, read_list, read_mapping, read_text
from chatwright.conversations.schema import Document
from chatwright.conversations.sources import (
    SkippedRow,
    Source,
    is_local,
    local_files,
    scan_file,
    scan_rows,
    source_text,
)
from chatwright.conversations.stores import StoreFile, driver_errors, is_url, store_files
from chatwright.errors import DataError

TextUnit = Literal["file", "paragraph", "line"]
TEXT_ENDING = ".txt"

_GUTENBERG_START = re.compile(r"\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG EBOOK")
_GUTENBERG_END = re.compile(r"\*\*\* ?END OF (THE|THIS) PROJECT GUTENBERG EBOOK|End of (the )?Project Gutenberg", re.I)
_LINES_TO_START = 400
"""A Gutenberg file's notice ends within so many lines; the files at hand need 24."""


def read_documents(
    source: Source,
    *,
    by: TextUnit = "file",
    field: str = "text",
    keep_notices: bool = False,
    on_bad_row: BadRow = "error",
    on_skip: Callable[[SkippedRow], None] | None = None,
) -> Iterator[Document]:
    """The documents of a source, one by one.

    A `.txt` file (packed or not) is one document, or one a paragraph (parted by blank lines) or line; blank ones don't
    count. Line ends become `\\n`. In every other file, a row is a document.

    Args:
        source: as for `read_rows`, `.txt` files included.
        by: what of a `.txt` file is a document.
        field: where a row's text stands: a string, or a list of strings, which line breaks join (`paragraphs`).
            Rows that are strings themselves need none.
        keep_notices: leave Project Gutenberg's notice and licence in; they are cut off where its marks stand.
        on_bad_row: `error` or `skip`, for rows without text.
        on_skip: called with each skipped row, for counting.

    Raises:
        DataError: for a row without text (unless skipped), or when there is not one document.
    """
    found = 0
    for item in _read(source, by, field, keep_notices):
        if isinstance(item, Document):
            found += 1
            yield item
        elif on_bad_row == "error" or item.row is None:
            raise item
        elif on_skip:
            on_skip(SkippedRow(item.row, item.field, item.message, item.source))
    if not found:
        raise DataError("there is no text", source=source_text(source), hint="give a source that has documents")


def _read(source: Source, by: TextUnit, field: str, keep_notices: bool) -> Iterator[Document | DataError]:
    """Documents, and in the place of bad rows their errors."""
    if not (is_local(source) or is_url(source)):
        yield from _of_rows(scan_rows(source), field)
        return
    for file in _files(str(source)):
        if _is_text(file.name):
            yield from _of_text(file, by, keep_notices)
        else:
            yield from _of_rows(scan_file(file) if isinstance(file, Path) else read_file(file), field)


def _files(source: str) -> Iterable[Path | StoreFile]:
    if is_url(source):
        return store_files(source, lambda name: _is_text(name) or file_kind(name) is not None)
    folder = Path(source).expanduser()
    texts = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_text(path.name)]
    shown = [path for path in texts if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    # A folder of texts and rows would mix two kinds of documents: its texts win, as `by` says what they are.
    return shown or local_files(source)


def _is_text(name: str) -> bool:
    return Path(unpacked_name(name)).suffix.lower() == TEXT_ENDING


def _of_rows(rows: Iterable[RawRow], field: str) -> Iterator[Document | DataError]:
    for raw in rows:
        try:
            if raw.error:
                raise raw.error
            yield Document(_row_text(raw.value, field, Place(raw.source, raw.number)), raw.source, raw.number)
        except DataError as error:
            yield error


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


def _of_text(file: Path | StoreFile, by: TextUnit, keep_notices: bool) -> Iterator[Document]:
    lines = _lines(file)
    if not keep_notices:
        lines = _without_notices(lines)
    units = {"file": _whole, "paragraph": _paragraphs, "line": _nonblank}[by](lines)
    yield from (Document(text, str(file), row) for row, text in enumerate(units))


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


def _without_notices(lines: Iterator[str]) -> Iterator[str]:
    """The lines between Project Gutenberg's marks; all lines where its first mark isn't found."""
    head: list[str] = []
    for line in lines:
        if _GUTENBERG_START.match(line):
            yield from _up_to_end(lines)
            return
        head.append(line)
        if len(head) == _LINES_TO_START:
            break
    yield from chain(head, lines)


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
