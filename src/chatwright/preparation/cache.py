"""Rendered data on disk: complete or absent, and made by one process or crew at a time."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.batches.token_cache import load_store
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.work import EntryInfo


def write_account(rendered: Rendered, folder: Path) -> None:
    """Write what stands beside the two stores that `assemble` has written to `folder`."""
    facts: dict[str, Any] = {
        "entries": [asdict(entry) for entry in rendered.entries],
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
        ledger, owner = Ledger.from_dict(facts["ledger"]), np.load(folder / "entry_index.npy")
        contamination = facts["contamination"]
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None  # rendered anew, and written over
    return Rendered(store, heldout, entries, owner, ledger, contamination)


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
    try:
        import fcntl
    except ImportError:  # Windows: two processes that prepare the same data at once do the work twice
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)


def aside_of(folder: Path) -> Path:
    """Where this process writes before `install`; machines that share a folder may have equal process numbers."""
    return folder.with_name(f".{folder.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
