"""Errors that a user can cause, each with its place and the next step.

A `UserError` is printed as one clear message without a traceback (`--debug` brings it back).
An `assert` or any other exception means a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MARKS = {
    "UTF-32": b"\xff\xfe\0\0",
    "UTF-16": b"\xff\xfe",
    "UTF-16 (big-endian)": b"\xfe\xff",
    "a gzip archive": b"\x1f\x8b",
    "a zip archive": b"PK\x03\x04",
    "a parquet file": b"PAR1",
}
"""What files that aren't UTF-8 begin with."""


class UserError(Exception):
    """A mistake in what the user gave: says what was found, where, and what to do next.

    Args:
        message: what is wrong, with the value that was found.
        place: where it stands: file, row, field, setting.
        hint: what to type or change next.
    """

    def __init__(self, message: str, *, place: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.place = place
        self.hint = hint
        super().__init__(self.full_text())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as it is: workers send the errors they find."""
        return _rebuilt, (type(self), self.args, self.__dict__)

    def full_text(self) -> str:
        """The whole message: `place: message` and the hint on a line of its own."""
        head = f"{self.place}: {self.message}" if self.place else self.message
        return f"{head}\n  → {self.hint}" if self.hint else head


def _rebuilt(kind: type[UserError], args: tuple[Any, ...], facts: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class ConfigError(UserError):
    """Every problem found in the settings, reported at once.

    Args:
        problems: one sentence each, starting with the dotted name of the setting.
        source: the recipe file or command that held them.
    """

    def __init__(self, problems: Sequence[str], *, source: str = "settings") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        body = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} found\n{body}", place=source)


class DataError(UserError):
    """A row that can't be read or used.

    Args:
        message: what is wrong, with the value.
        source: the file, data set or iterable the row came from.
        row: index of the row in its source, counted from 0.
        field: the field of the row, dotted for nested ones.
        hint: the next step.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str,
        row: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.source, self.row, self.field = source, row, field
        place = source
        if row is not None:
            place += f", row {row}"
        if field:
            place += f", field {field!r}"
        super().__init__(message, place=place, hint=hint)


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that should be UTF-8, in words."""
    for encoding, mark in _MARKS.items():
        if error.object.startswith(mark):
            return f"is {encoding}, not UTF-8"
    return f"is not UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x})"


class TemplateError(UserError):
    """A chat template or tokenizer that can't render a conversation faithfully."""


class ModelError(UserError):
    """A model folder, configuration or device that can't be used as asked."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to something else."""


class TrainingError(UserError):
    """A run that had to stop, such as on a loss that is not finite."""
