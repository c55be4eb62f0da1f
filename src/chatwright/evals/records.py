"""Results on disk, one JSON line an example: a killed evaluation loses none, and goes on where it stopped.

    evals/smollm2-135m-q4/gsm8k.jsonl              first line: what the results depend on; then a line an example
    evals/smollm2-135m-q4/.gsm8k.jsonl.rank-1      what another rank has finished; joined when all ranks are

While an evaluation runs, lines come as examples finish. In the file of a complete one they stand in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from chatwright.errors import UserError
from chatwright.run_folder import write_whole

FORMAT = 1
"""Raised when lines change their meaning."""
FRESH = "give another folder with --examples, or begin anew with --fresh, which deletes these results"


class Key(NamedTuple):
    """Names an example: a problem's number in the task's order, and which of its replies."""

    problem: int
    sample: int


@dataclass(frozen=True, slots=True)
class Record:
    """One example and what came of it.

    Args:
        key: see `Key`.
        source, row: where the task took the problem from.
        prompt: the start of the sha256 of the conversation that was asked.
        score: 1 for right, 0 for wrong, or what lies between; None where there is nothing to grade (held-out loss).
        seconds: from the start of this session's work on the task to this example's end.
        details: the reply or the letters' log-probabilities, why it ended, token counts …
    """

    key: Key
    source: str
    row: int
    prompt: str
    score: float | None
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, without its end."""
        told = {"problem": self.key.problem, "sample": self.key.sample, "source": self.source, "row": self.row}
        rest = {"prompt": self.prompt, "score": self.score, **self.details, "seconds": round(self.seconds, 3)}
        line = json.dumps({**told, **rest}, ensure_ascii=False)
        return line.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair becomes its JSON escape

    @staticmethod
    def from_line(line: str) -> Record:
        """What `to_line` gave.

        Raises:
            ValueError, LookupError, TypeError: the line is no record.
        """
        told = json.loads(line)
        key = Key(told.pop("problem"), told.pop("sample"))
        named = {name: told.pop(name) for name in ("source", "row", "prompt", "score", "seconds")}
        return Record(key, **named, details=told)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a file of results.

    Args:
        key: all that the results depend on; results are only added to those of an equal key.
        about: told to readers, and free to differ: the model's name, the program's version.
    """

    key: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, without its end."""
        return json.dumps({"chatwright_eval": FORMAT, **self.about, "key": self.key}, ensure_ascii=False)


class ResultsFile:
    """The results of one subject on one task.

    Args:
        path: of rank 0's file; the folder is made.
        header: of this evaluation.
        rank: which process this is; others than 0 write parts beside the file.
    """

    def __init__(self, path: Path, header: Header, rank: int = 0) -> None:
        self.path, self.header = path, header
        self._own = path if rank == 0 else path.with_name(f".{path.name}.rank-{rank}")
        self._file: IO[str] | None = None

    def recover(self, *, fresh: bool = False) -> list[Record]:
        """What is there already, parts of killed ranks included, joined into the one file. Rank 0 alone does this.

        A last line that is half written is dropped: its example is done again.

        Raises:
            UserError: the file holds other results than this evaluation would add, or is damaged.
        """
        parts = sorted(self.path.parent.glob(f".{self.path.name}.rank-*"))
        found: dict[Key, Record] = {}
        if not fresh and self.path.is_file():
            for path in (self.path, *parts):
                for record in self._read(path):
                    found.setdefault(record.key, record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(found.values())
        for part in parts:
            part.unlink()
        return list(found.values())

    def append(self, record: Record) -> None:
        """Add a record; it is with the operating system when this returns."""
        if self._file is None:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            new = not self._own.exists()
            self._file = self._own.open("a", encoding="utf-8", buffering=1)  # line-buffered
            if new:
                self._file.write(self.header.to_line() + "\n")
        self._file.write(record.to_line() + "\n")

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def complete(self, records: Sequence[Record]) -> None:
        """Rank 0 writes all records in order."""
        self.close()
        if self._own == self.path:
            self._write(records)

    def drop_part(self) -> None:
        """Another rank's part goes, once rank 0 has written what it holds (`complete`)."""
        if self._own != self.path:
            self._own.unlink(missing_ok=True)

    def _write(self, records: Iterable[Record]) -> None:
        lines = [self.header.to_line(), *(each.to_line() for each in sorted(records, key=lambda each: each.key))]
        write_whole(self.path, "".join(f"{line}\n" for line in lines))

    def _read(self, path: Path) -> list[Record]:
        *lines, _half = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        if not lines:
            return []
        self._require_same(path, lines[0])
        records = []
        for number, line in enumerate(lines[1:], 2):
            try:
                records.append(Record.from_line(line))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"is no line of results: {error}", place=f"{path} line {number}", hint=FRESH) from None
        return records

    def _require_same(self, path: Path, line: str) -> None:
        try:
            told = json.loads(line)
            version, key = told["chatwright_eval"], dict(told["key"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"doesn't begin as results do: {error}", place=str(path), hint=FRESH) from None
        if version != FORMAT:
            raise UserError(f"holds results of format {version}, and this is {FORMAT}", place=str(path), hint=FRESH)
        wanted = json.loads(json.dumps(self.header.key))
        names = [name for name in {**wanted, **key} if wanted.get(name) != key.get(name)]
        if names:
            told = "; ".join(f"{name} {_short(key.get(name))} there, {_short(wanted.get(name))} here" for name in names)
            raise UserError(f"holds the results of another evaluation: {told}", place=str(path), hint=FRESH)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def file_name(label: str) -> str:
    """A task's label or a model's name as the name of a file or folder: `arc:ARC-Easy` → `arc-ARC-Easy`."""
    kept = [each if each.isalnum() or each in "._" else "-" for each in label]
    return "-".join(filter(None, "".join(kept).strip(".").split("-"))) or "model"
