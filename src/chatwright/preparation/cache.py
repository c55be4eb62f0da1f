"""Rendered data on disk: complete or absent, and made by one process or crew at a time."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from chatwright.batches.token_cache import load_store
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.work import EntryInfo

STALE_DAYS = 7
"""What an interrupted preparation has left is kept so long after it was last written to."""
_LEFT_BEHIND = ("*.shards", "*.crew-shards", ".*.tmp-*")


def write_account(rendered: Rendered, folder: Path) -> None:
    """Write what stands beside the two stores that `assemble` has written to `folder`."""
    facts: dict[str, Any] = {
        "entries": [asdict(entry) for entry in rendered.entries],
        "heldout_entries": [asdict(entry) for entry in rendered.heldout_entries],
        "ledger": rendered.ledger.to_dict(),
    }
    facts["contamination"] = rendered.contamination
    np.save(folder / "entry_index.npy", rendered.entry_index)
    text = json.dumps(facts, ensure_ascii=False)
    (folder / "facts.json").write_text(text, encoding="utf-8", errors="surrogatepass")


def read_rendered(folder: Path, key: str) -> Rendered | None:
    """What was cached under this key; None where it is absent, damaged or of another version."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8", errors="surrogatepass"))
        store, heldout = load_store(folder / "train", key), load_store(folder / "heldout", key)
        entries = tuple(EntryInfo.from_dict(entry) for entry in facts["entries"])
        measured = tuple(EntryInfo.from_dict(entry) for entry in facts["heldout_entries"])
        ledger, owner = Ledger.from_dict(facts["ledger"]), np.load(folder / "entry_index.npy")
        contamination = facts["contamination"]
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None  # rendered anew, and written over
    if len(owner) != len(store) or (len(owner) and not 0 <= owner.min() <= owner.max() < len(entries)):
        return None
    return Rendered(store, heldout, entries, owner, ledger, contamination, measured)


def install(aside: Path, folder: Path) -> None:
    """Put a finished folder in its place; what another process has put there meanwhile is as good.

    Raises:
        OSError: the place can't be written.
    """
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)  # damaged or half-written: a good one would have been read
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a folder that several may want; the end of a process frees it."""
    lock = folder.with_name(f".{folder.name}.lock")
    held = _lock(lock, wait=True)
    try:
        yield
    finally:
        _unlock(lock, held)


def _lock(path: Path, *, wait: bool) -> BinaryIO | None:
    """A lock file, opened and locked; None where another process has it (and `wait` is off), or there are no locks.

    A lock counts only while its file stands under its name: who waits for a file that its holder then removes
    would else share the place with whoever makes the next one.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes that prepare the same data at once do the work twice
        return None
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_file_at(file, path):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()


def _is_file_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that now stands at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unlock(path: Path, held: BinaryIO | None) -> None:
    """Remove the lock file while it is still locked, so that nobody has it meanwhile; then free it."""
    if held is not None:
        with held:
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what ended preparations have left in a folder of tokens: half-made shards, stores and locks.

    What was touched in the last `STALE_DAYS` days stays: an interrupted preparation may go on.
    """
    oldest = time.time() - STALE_DAYS * 86400
    for pattern in _LEFT_BEHIND:
        for path in folder.glob(pattern):
            if _touched(path) < oldest:
                shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.lock"):
        if _touched(path) < oldest and (held := _lock(path, wait=False)) is not None:
            _unlock(path, held)


def _touched(path: Path) -> float:
    """When a file, or a folder or anything right inside it, was written last; now, where that can't be told."""
    try:
        return max(each.stat().st_mtime for each in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:
        return time.time()


def aside_of(folder: Path) -> Path:
    """Where this process writes before `install`; machines that share a folder may have equal process numbers."""
    return folder.with_name(f".{folder.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
