"""Rows into files, JSON lines or parquet: written aside as they come, and renamed when the last one stands.

Memory holds one batch of rows. Parquet columns are fixed by the target before the first row is seen: what differs from
row to row (tool schemas, template variables, further fields) is JSON text inside, so that Arrow can't merge two rows'
fields into each other; the converters read such text as if it stood open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from chatwright.conversations.message_formats import EXTRA_FIELD
from chatwright.conversations.writers import Row, json_text
from chatwright.errors import UserError

ROWS_PER_BATCH = 2048
CHARACTERS_PER_BATCH = 1 << 24
"""A batch of rows is written when it has so many rows or characters."""

_JSON_COLUMNS = ("tools", "chat_template_kwargs")
_MESSAGE_COLUMNS = ("messages", "prompt", "chosen", "rejected")


class RowFile(Protocol):
    """An open file that rows are added to."""

    def shape(self, row: Row) -> Row:
        """The row as this kind of file will give it back."""
        ...

    def add(self, row: Row) -> None:
        """Write a row that `shape` gave."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class JsonLinesFile:
    """One JSON object a line, in UTF-8."""

    def __init__(self, path: Path, target: str) -> None:
        self._file = path.open("wb")

    def shape(self, row: Row) -> Row:
        """JSON holds a row as it is."""
        return row

    def add(self, row: Row) -> None:
        """Write one line."""
        text = json_text(row)
        assert text is not None, "writers give JSON only"
        self._file.write(text.encode() + b"\n")

    def close(self) -> None:
        """Bring the file to the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class ParquetFile:
    """Parquet with the columns of a target."""

    def __init__(self, path: Path, target: str) -> None:
        import pyarrow.parquet

        self._schema = _schema(target)
        self._columns = set(self._schema.names)
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._characters = 0

    def shape(self, row: Row) -> Row:
        """The row with the target's columns: varying fields as JSON text, typed parts in a column of their own."""
        shaped = {name: value for name, value in row.items() if name in self._columns}
        for name in _JSON_COLUMNS:
            if name in shaped:
                shaped[name] = json_text(shaped[name])
        for name in _MESSAGE_COLUMNS:
            if isinstance(shaped.get(name), list):
                shaped[name] = [_with_parts_apart(message) for message in shaped[name]]
        further = {name: value for name, value in row.items() if name not in self._columns}
        return {**shaped, EXTRA_FIELD: json_text(further)} if further else shaped

    def add(self, row: Row) -> None:
        """Keep a row for the next batch."""
        self._rows.append(row)
        self._characters += _size(row)
        if len(self._rows) >= ROWS_PER_BATCH or self._characters >= CHARACTERS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._file.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._characters = [], 0

    def close(self) -> None:
        """Write the last batch and the file's index."""
        try:
            if self._rows:
                self._flush()
        finally:
            self._file.close()


def _with_parts_apart(message: Row) -> Row:
    if not isinstance(message.get("content"), list):
        return message
    return {**{key: value for key, value in message.items() if key != "content"}, "parts": message["content"]}


def _size(value: Any) -> int:
    """Characters of text inside a row, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _schema(target: str) -> Any:
    """The columns of a target, every one of which may be null."""
    import pyarrow as pa

    text = pa.string()

    def record(**fields: Any) -> Any:
        return pa.struct(list(fields.items()))

    flags = {"train": pa.bool_(), "weight": pa.float64()}
    part = record(type=text, text=text, name=text, id=text, tool_call_id=text, arguments=text)
    call = record(id=text, type=text, function=record(name=text, arguments=text))
    message = record(
        role=text,
        content=text,
        reasoning_content=text,
        tool_calls=pa.list_(call),
        name=text,
        tool_call_id=text,
        parts=pa.list_(part),
        **flags,
    )
    turn = record(**{"from": text}, value=text, name=text, tool_call_id=text, **flags)
    own: dict[str, dict[str, Any]] = {
        "messages": {"messages": pa.list_(message)},
        "sharegpt": {"conversations": pa.list_(turn)},
        "alpaca": {
            **dict.fromkeys(("instruction", "input", "output", "system"), text),
            "history": pa.list_(pa.list_(text)),
        },
        "preference": {
            **dict.fromkeys(_MESSAGE_COLUMNS, pa.list_(message)),
            "margin": pa.float64(),
            "label": pa.bool_(),
        },
    }
    return pa.schema(list({**own[target], **dict.fromkeys((*_JSON_COLUMNS, EXTRA_FIELD), text)}.items()))


FILE_KINDS: dict[str, Callable[[Path, str], RowFile]] = {"jsonl": JsonLinesFile, "parquet": ParquetFile}
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def kind_of_file(out: Path, given: str | None) -> str:
    """`jsonl` or `parquet`: what was given, or what the file's ending says.

    Raises:
        UserError: for an unknown kind, an ending that says nothing, or two that disagree.
    """
    told = _ENDINGS.get(out.suffix.lower())
    known = f"known: {', '.join(FILE_KINDS)}"
    if given is not None and given not in FILE_KINDS:
        raise UserError(f"unknown file format {given!r}", place="--format", hint=known)
    if told and given and told != given:
        raise UserError(f"the ending {out.suffix} says {told}, --format says {given}", place=str(out))
    if not told:
        hint = f"let it end in {', '.join(_ENDINGS)}, so that it can be read again"
        raise UserError(f"the ending {out.suffix!r} is no file format to write", place=str(out), hint=hint)
    return told


@contextmanager
def new_file(out: Path, kind: str, target: str, *, force: bool = False) -> Iterator[RowFile]:
    """A file that appears under its name when the block ends well, and not at all when it doesn't.

    Args:
        out: its name. kind: of `FILE_KINDS`. target: of `WRITERS`, which sets a parquet file's columns.
        force: replace a file of this name.

    Raises:
        UserError: if `out` exists (and isn't to be replaced), is no plain file, or can't be written.
    """
    check_free(out, force)
    aside = out.with_name(f".{out.name[-40:]}.{os.getpid()}.writing")
    try:
        file = FILE_KINDS[kind](aside, target)
        try:
            yield file
        finally:
            file.close()
        aside.replace(out)
    except OSError as error:
        if error.filename not in (None, str(aside), str(out)):
            raise  # one of the files that are read
        hint = "check that the folder exists, that you may write there, and that the disk has room"
        reason = error.strerror or str(error)
        raise UserError(f"can't be written: {reason}; nothing was kept of it", place=str(out), hint=hint) from None
    finally:
        aside.unlink(missing_ok=True)


def check_free(out: Path, force: bool) -> None:
    """Refuse a name that is taken.

    Raises:
        UserError: it exists and isn't to be replaced, or is a folder or device.
    """
    if out.exists() and not out.is_file():
        raise UserError("is a folder or device, not a file", place=str(out), hint="name the file to write")
    if out.exists() and not force:
        raise UserError("this file exists already", place=str(out), hint="--force replaces it; or name another")
