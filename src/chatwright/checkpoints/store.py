"""Checkpoints of a run: written aside, synced, named by rename; found again, verified; kept or deleted.

    runs/demo/step-000100/   manifest.json, model.safetensors, …   complete, or damaged by the disk alone
    runs/demo/.step-000200.tmp-4711/                               being written, or left by a kill
    runs/demo/best.json                                            which step is the best, and by what

One process writes a run (rank 0 of its training); any number may read it meanwhile.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pydantic
from pydantic import BaseModel

from chatwright.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    Verify,
    find_damage,
    in_threads,
    read_manifest,
    record_files,
)
from chatwright.errors import CheckpointError
from chatwright.run_folder import write_whole

BEST_NAME = "best.json"
_NAME = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(r"\.(step-\d{6,})\.(tmp|old|gone)-\d+")


class _Best(BaseModel):
    """What best.json holds."""

    checkpoint: str
    metric: str
    value: float


def save_checkpoint(run: Path, manifest: Manifest, write: Callable[[Path], None]) -> Path:
    """Save the checkpoint of `manifest.step`: a kill at any moment leaves all earlier ones as they were.

    Args:
        run: the run folder. manifest: without `files` and `created`, which are filled in here.
        write: fills the empty folder that it gets with every file of the checkpoint.

    Returns:
        the folder `step-000100`; one of the same step that stood there is replaced.

    Raises:
        CheckpointError: if the disk refuses (full, no permission); nothing half-written is left.
    """
    clean_leftovers(run)
    folder = run / f"step-{manifest.step:06d}"
    aside = run / f".{folder.name}.tmp-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        write(aside)
        seal_folder(aside, manifest)
        _rename_over(aside, folder)
    except OSError as error:
        raise CheckpointError(
            f"can't be saved: {error.strerror or error}",
            place=str(folder),
            hint="free some space or change the permissions, then go on with `--resume`; earlier ones are intact",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def seal_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the files that are in `folder`, and force everything onto the disk."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = manifest.model_copy(update={"files": record_files(folder), "created": created})
    write_whole(folder / MANIFEST_NAME, manifest.to_json())
    paths = [folder / name for name in manifest.files]
    for path in paths:
        shutil.copymode(folder / MANIFEST_NAME, path)  # safetensors makes files that only their owner may read
    in_threads(_sync, [*paths, *{path.parent for path in paths}, folder])
    return manifest


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_over(aside: Path, folder: Path) -> None:
    """Rename to a name that may be taken; `clean_leftovers` undoes what a kill between the renames leaves."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)
    _sync(folder.parent)


def clean_leftovers(run: Path) -> list[str]:
    """Delete what killed processes left half-written; for the one process that writes the run.

    Returns:
        the names of what was deleted.
    """
    cleaned = []
    for path in sorted(run.glob(".step-*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        if match[2] == "old" and not (run / match[1]).exists():
            path.rename(run / match[1])
        else:
            shutil.rmtree(path, ignore_errors=True)
            cleaned.append(path.name)
    return cleaned


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, damaged ones included, by rising step."""
    return sorted((path for path in run.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def latest_checkpoint(
    run: Path, *, verify: Verify = "sizes", on_skip: Callable[[str], None] | None = None
) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    Args:
        verify: "full" compares every sha256, as resuming does.
        on_skip: gets a message for each damaged one passed over; by default it goes to the error output.
    """
    for folder in reversed(list_checkpoints(run)):
        damage = find_damage(folder, verify)
        if damage is None:
            return folder
        message = f"skipping checkpoint {folder.name}: {damage}"
        if on_skip is None:
            print(message, file=sys.stderr)
        else:
            on_skip(message)
    return None


def mark_best(run: Path, checkpoint: Path, metric: str, *, higher_is_better: bool = False) -> bool:
    """Make `checkpoint` the best of its run if its manifest's `metric` beats the best so far.

    Returns:
        whether it's the best now.

    Raises:
        CheckpointError: if its manifest has no such metric.
    """
    metrics = read_manifest(checkpoint).metrics
    if metric not in metrics:
        known = ", ".join(metrics) or "none"
        raise CheckpointError(f"has no metric {metric!r}; it has: {known}", place=str(checkpoint))
    value, best = metrics[metric], _read_best(run)
    if best is not None and best.metric == metric and (run / best.checkpoint).is_dir():
        better = value > best.value if higher_is_better else value < best.value
        if not better and best.checkpoint != checkpoint.name:
            return False
    marked = _Best(checkpoint=checkpoint.name, metric=metric, value=value)
    write_whole(run / BEST_NAME, marked.model_dump_json() + "\n")
    return True


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint marked as the best one of a run, or None."""
    best = _read_best(run)
    folder = run / best.checkpoint if best else None
    return folder if folder is not None and folder.is_dir() else None


def _read_best(run: Path) -> _Best | None:
    path = run / BEST_NAME
    try:
        return _Best.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, pydantic.ValidationError) as error:
        hint = "delete it: the next evaluation writes it anew"
        raise CheckpointError(f"can't be read: {error}", place=str(path), hint=hint) from None


def keep(run: Path, *, last: int) -> list[Path]:
    """Delete all checkpoints but the newest `last` complete ones and the best.

    Damaged ones don't count, and go once a complete one is newer. Each is renamed before it's emptied, so that a
    kill in here leaves no half-empty checkpoint.

    Returns:
        the folders deleted.
    """
    assert last >= 1, "the newest checkpoint is never deleted"
    complete = [folder for folder in list_checkpoints(run) if find_damage(folder) is None]
    kept = {*complete[-last:], best_checkpoint(run)}
    newest = step_of(complete[-1]) if complete else -1
    deleted = [folder for folder in list_checkpoints(run) if folder not in kept and step_of(folder) < newest]
    for folder in deleted:
        gone = folder.with_name(f".{folder.name}.gone-{os.getpid()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return deleted
