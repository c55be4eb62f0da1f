"""The folder of one run: its recipe, metrics and trace, exact after a kill at any moment.

Plain files and JSON; this module loads no torch, so that reports can read a run anywhere.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from chatwright.errors import CheckpointError, UserError

T = TypeVar("T")

ANOTHER = "give another folder with `--set out=…`"
FOREIGN = ("is a folder with other files in it; a run needs one of its own", ANOTHER)
TAKEN = ("holds a run already", f"continue it with `--resume`, or {ANOTHER}")


class Ranks(Protocol):
    """What a run folder needs of the `Runtime`."""

    @property
    def is_main(self) -> bool:
        """True on the rank that writes."""

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""


class RunFolder:
    """The folder of one run: `recipe.yaml`, `plan.json`, `metrics.jsonl`, `trace.jsonl`, `samples.jsonl`, `report.md`,
    and checkpoints.

    Args:
        path: an existing run folder; `create` makes one.
        writes: False (ranks other than 0) turns the appenders into no-ops.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._files: dict[str, IO[str]] = {}

    @classmethod
    def create(cls, path: str | Path, recipe: str, *, resume: bool = False, ranks: Ranks | None = None) -> RunFolder:
        """Make the folder with `recipe` as its recipe.yaml, or open the one to resume.

        Rank 0 does it, and every rank raises what it raised. Of two processes that create the same run, one fails.

        Args:
            recipe: YAML text. A resumed run keeps the recipe it has.
            resume: continue the run that is there; when none is there, one is begun.
            ranks: the `Runtime`, when there may be several ranks.

        Raises:
            UserError: if a run is there already and `resume` is False, or the folder can't be made.
        """
        folder = cls(path, writes=ranks is None or ranks.is_main)
        problem: tuple[str, str] | None = folder._begin(recipe, resume) if folder.writes else None
        if ranks is not None:
            problem = ranks.broadcast_object(problem)
        if problem is not None:
            raise UserError(problem[0], place=str(folder.path), hint=problem[1])
        return folder

    def require_free(self) -> None:
        """Stop early, before data and weights are loaded, where `create` would refuse to begin a run.

        Raises:
            UserError: the folder holds a run already.
        """
        problem = TAKEN if self.holds_run() else FOREIGN if self._holds_other_files() else None
        if problem is not None:
            raise UserError(problem[0], place=str(self.path), hint=problem[1])

    def _holds_other_files(self) -> bool:
        return self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir())

    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "metrics.jsonl").exists() or (self.path / "recipe.yaml").exists()

    def _begin(self, recipe: str, resume: bool) -> tuple[str, str] | None:
        """Create or resume; (what is wrong, what to do next) where that can't be."""
        if self.holds_run():
            return None if resume else TAKEN
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "recipe.yaml", recipe, replace=False)
        except FileExistsError:
            return TAKEN if self.path.is_dir() else ("is a file, not a folder", ANOTHER)
        except OSError as error:
            return f"can't be made a run folder: {error.strerror or error}", ANOTHER
        return None

    @property
    def recipe_text(self) -> str:
        """The YAML that the run was begun with.

        Raises:
            CheckpointError: if the folder has no recipe.yaml.
        """
        try:
            return (self.path / "recipe.yaml").read_text(encoding="utf-8")
        except OSError as error:
            message = f"is no run folder: recipe.yaml: {error.strerror or error}"
            raise CheckpointError(message, place=str(self.path), hint="give the folder of a run") from None

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write plan.json: what the run is going to do, as `chatwright plan --json` gives it."""
        if self.writes:
            write_whole(self.path / "plan.json", json.dumps(_plain(plan), ensure_ascii=False, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; a record of a step has the key `step`."""
        self._append("metrics.jsonl", record)

    def append_trace(self, record: Mapping[str, Any]) -> None:
        """Add one line to trace.jsonl (what each step trained on)."""
        self._append("trace.jsonl", record)

    def append_sample(self, record: Mapping[str, Any]) -> None:
        """Add one line to samples.jsonl: a reply of the model as it was after `step` steps."""
        self._append("samples.jsonl", record)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        if name not in self._files:
            self._files[name] = (self.path / name).open("a", encoding="utf-8", buffering=1)
        # line-buffered: the line is with the operating system before this returns
        self._files[name].write(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that is half written is left out.

        Raises:
            CheckpointError: naming a damaged line before the last one.
        """
        return self._read("metrics.jsonl")

    def read_samples(self) -> list[dict[str, Any]]:
        """The records of samples.jsonl, as `read_metrics` reads; none where the run keeps no samples."""
        return self._read("samples.jsonl")

    def _read(self, name: str) -> list[dict[str, Any]]:
        path, records = self.path / name, list[dict[str, Any]]()
        for number, (line, record) in enumerate(_lines(path) if path.exists() else (), start=1):
            if record is not None:
                records.append(record)
            elif line.endswith(b"\n"):
                hint = "resume the run (`--resume` drops damaged lines), or delete that line"
                raise CheckpointError(f"damaged: {line[:60]!r}", place=f"{path}, line {number}", hint=hint)
        return records

    def read_trace(self, step: int) -> dict[str, Any] | None:
        """The examples of one step (counted from 1) as they were written, or None."""
        path = self.path / "trace.jsonl"
        if not path.is_file():
            return None
        found = (record for _, record in _lines(path) if record is not None and record.get("step") == step)
        return next(found, None)

    def last_traced_step(self) -> int:
        """The newest step in the trace, 0 where there is none."""
        path = self.path / "trace.jsonl"
        steps = (record["step"] for _, record in _lines(path) if record) if path.is_file() else ()
        return max(steps, default=0)

    def truncate_after(self, step: int) -> int:
        """Drop the metrics, trace and sample records of every step > `step`, and lines that are half written.

        A record without `step` stays. Each file is written aside and renamed: a kill in here loses nothing.

        Returns:
            how many lines were dropped.
        """
        if not self.writes:
            return 0
        self.close()
        paths = [self.path / name for name in ("metrics.jsonl", "trace.jsonl", "samples.jsonl")]
        return sum(_truncate_lines(path, step) for path in paths if path.exists())

    def sync(self) -> None:
        """Force what was appended onto the disk: called before a checkpoint counts as saved."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files; a later append opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def write_whole(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a text file all at once: aside, synced, renamed. A reader sees the old file or the new one.

    Raises:
        FileExistsError: with `replace` False, if the file is there, also when another process made it just now.
    """
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            aside.replace(path)
        else:
            _rename_new(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _rename_new(aside: Path, path: Path) -> None:
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(str(path)) from None
        aside.replace(path)


def _plain(value: Any) -> Any:
    """JSON's own types: 0-d tensors and numpy numbers become numbers, a number that is not finite null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line and its record; None for a damaged line and for a last one without its line break."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            yield line, record if isinstance(record, dict) else None


def _truncate_lines(path: Path, step: int) -> int:
    dropped = 0
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with aside.open("wb") as target:
        for line, record in _lines(path):
            if record is None or record.get("step", step) > step:
                dropped += 1
            else:
                target.write(line)
        target.flush()
        os.fsync(target.fileno())
    aside.replace(path)
    return dropped
