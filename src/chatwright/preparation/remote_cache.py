"""Tokens in a place that all machines reach: fetched before they are made, put there once they are.

A manifest with every file's size and sha256 is written last, so half an upload is never taken for a whole one. Nothing
in here stops a run: a store that fails is told of, and the tokens are made on this machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from chatwright.console import note
from chatwright.conversations.stores import OBJECT_STORES, connect, store_errors
from chatwright.errors import UserError
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.cache import aside_of, install, read_rendered

MANIFEST = "manifest.json"
VERSION = 1


class _Damage(UserError):
    """A file isn't what the manifest says."""


class RemoteCache:
    """The tokens of one key in a store.

    Args:
        url: a folder of a store that fsspec reads (`s3://bucket/tokens`), or of this machine.
        key: what `cache_key` gave.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url.rstrip("/"), key
        self.place = f"{self.url}/{key[:32]}"
        self._damaged = False

    def fetch(self, folder: Path) -> Rendered | None:
        """Bring the tokens to `folder`, whole and checked; None where the store has none, or can't be used."""
        aside = aside_of(folder)
        problem = "it doesn't hold what this version writes"
        try:
            store, root = connect(self.place)
            manifest = self._manifest(store, root)
            if manifest is None:
                return None
            note(f"fetching tokens from {self.place}")
            for name, wanted in manifest.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                store.get_file(f"{root}/{name}", str(aside / name))
                if _facts(aside / name) != wanted:
                    raise _Damage(f"{name} is damaged")
            install(aside, folder)
            if rendered := read_rendered(folder, self.key):
                return rendered
        except (FileNotFoundError, _Damage) as error:
            problem = _reason(error)
        except _troubles() as error:
            note(f"the tokens can't be fetched from {self.place}, so they are made here: {_reason(error)}")
            return None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._damaged = True
        note(f"the tokens in {self.place} can't be used, so they are made here: {problem}")
        return None

    def upload(self, folder: Path) -> bool:
        """Put what is in `folder` into the store, unless it is there already; False where that fails, with a note."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        try:
            wanted = {name: _facts(path) for name, path in files.items()}
            store, root = connect(self.place)
            if not self._damaged and self._manifest(store, root) == wanted:
                return True
            _remove(store, f"{root}/{MANIFEST}")
            for name, path in files.items():
                _make_folder(store, self.place, f"{root}/{name}")
                store.put_file(str(path), f"{root}/{name}")
            with store.open(f"{root}/{MANIFEST}", "wb") as file:
                file.write(json.dumps({"version": VERSION, "key": self.key, "files": wanted}).encode())
        except _troubles() as error:
            note(f"the tokens can't be put into {self.place}: {_reason(error)}")
            return False
        note(f"the tokens are in {self.place}")
        return True

    def _manifest(self, store: Any, root: str) -> dict[str, Any] | None:
        """The files of a complete upload with their sizes and sha256; None where there is none."""
        try:
            read = json.loads(store.cat_file(f"{root}/{MANIFEST}"))
            if read["version"] != VERSION or read["key"] != self.key:
                return None
            files = dict(read["files"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self._damaged = True
            return None
        return None if any(_leads_out(name) for name in files) else files


def _troubles() -> tuple[type[Exception], ...]:
    return (UserError, *store_errors())


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name


def _facts(path: Path) -> dict[str, Any]:
    """A file's size and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _remove(store: Any, path: str) -> None:
    try:
        store.rm_file(path)
    except FileNotFoundError:
        return


def _make_folder(store: Any, url: str, path: str) -> None:
    """Make the folder of a file, where the store has folders; in an object store that might make a bucket."""
    if url.partition("://")[0] not in OBJECT_STORES:
        store.makedirs(str(PurePosixPath(path).parent), exist_ok=True)


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
