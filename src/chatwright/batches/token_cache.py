"""Token stores on disk: memory-mapped arrays in a folder that is complete or absent.

A folder is written aside and renamed. Several stores can be written as one without holding their tokens in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from chatwright.batches.token_store import TokenStore
from chatwright.errors import DataError

CACHE_FORMAT = 3
"""Raised whenever the files change, which makes every older cache stale."""

_DTYPES: dict[str, tuple[type, ...]] = {
    "ids": (np.uint16, np.int32),
    "run_lengths": (np.int32,),
    "run_weights": (np.float32,),
    "offsets": (np.int64,),
    "run_offsets": (np.int64,),
    "source_index": (np.int32,),
    "rows": (np.int64,),
    "parts": (np.int32,),
    "supervised_counts": (np.int64,),
    "weight_sums": (np.float64,),
    "prompt_lengths": (np.int32,),
    "chosen_lengths": (np.int32,),
}
_META = "meta.json"


def cache_key(**parts: Any) -> str:
    """sha256 that changes with any of `parts` (JSON values): data fingerprint, tokenizer, template, policy, versions.

    Raises:
        TypeError: for a part that isn't a JSON value.
    """
    text = json.dumps({"cache_format": CACHE_FORMAT, "parts": parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_store(store: TokenStore, folder: Path, key: str = "") -> None:
    """Write a store to `folder`, replacing what was there; complete or not at all.

    Args:
        folder: the store's own folder.
        key: what `cache_key` gave, checked again by `load_store`.

    Raises:
        OSError: the folder can't be written; what was there before is still there.
    """
    save_stores([lambda: store], folder, key)


def save_stores(parts: Sequence[Callable[[], TokenStore]], folder: Path, key: str = "") -> None:
    """Write the examples of many stores as one, in their order, holding the tokens of one at a time.

    Args:
        parts: each gives one store when called, once.
        folder, key: see `save_store`.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        meta = _write_arrays(aside, parts)
        with (aside / _META).open("w", encoding="utf-8") as file:
            json.dump({"cache_format": CACHE_FORMAT, "key": key, **meta}, file)
            file.flush()
            os.fsync(file.fileno())
        _replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_arrays(folder: Path, parts: Iterable[Callable[[], TokenStore]]) -> dict[str, Any]:
    """One .npy file an array, over all parts; returns what the reader has to know of them."""
    sources: dict[str, int] = {}
    totals = {"offsets": 0, "run_offsets": 0}
    with ExitStack() as files:
        into = {
            name: files.enter_context(_ArrayFile(folder / f"{name}.npy", kinds[-1])) for name, kinds in _DTYPES.items()
        }
        for name in totals:
            into[name].write(np.zeros(1, dtype=np.int64))
        for part in parts:
            store = part()
            place = np.array([sources.setdefault(each, len(sources)) for each in store.sources], dtype=np.int32)
            for name in _DTYPES:
                array = getattr(store, name)
                if name in totals:
                    into[name].write(array[1:] + totals[name])
                    totals[name] += int(array[-1])
                else:
                    into[name].write(place[array] if name == "source_index" and len(place) else array)
        examples = into["rows"].length
    return {
        "examples": examples,
        "tokens": totals["offsets"],
        "runs": totals["run_offsets"],
        "sources": list(sources),
    }


class _ArrayFile:
    """A one-dimensional .npy file that grows; its length is written into the header when it is closed."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)

    def write(self, array: np.ndarray) -> None:
        """Add values; the first ones decide the type."""
        if not self.length:
            self.dtype = array.dtype
        if len(array):
            self._file.write(np.ascontiguousarray(array, dtype=self.dtype).data.cast("B"))
            self.length += len(array)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file as file:
            file.seek(0)
            file.write(_npy_header(self.dtype, self.length))
            file.flush()
            os.fsync(file.fileno())


_HEADER_BYTES = 128


def _npy_header(dtype: np.dtype, length: int) -> bytes:
    """The .npy header of a one-dimensional array, filled up to 128 bytes (format 1.0 of numpy.lib.format)."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    body = text.ljust(_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("latin1")


def load_store(folder: Path, key: str | None = None) -> TokenStore:
    """Open a saved store; the arrays are memory-mapped and read-only.

    Args:
        folder: what `save_store` wrote.
        key: the key it must have been saved under; None accepts any.

    Raises:
        DataError: when a file is missing, cut short or of another key.
    """
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _DTYPES}
        problem = _problem(meta, arrays, key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    if problem:
        raise DataError(
            f"this token cache can't be used: {problem}",
            source=str(folder),
            hint="delete this folder; it is made again from the data",
        )
    return TokenStore(sources=tuple(meta["sources"]), **arrays)


def _problem(meta: dict[str, Any], arrays: dict[str, np.ndarray], key: str | None) -> str | None:
    """What is wrong with a loaded cache, in words."""
    if meta["cache_format"] != CACHE_FORMAT:
        return f"its format is {meta['cache_format']}, this version writes {CACHE_FORMAT}"
    if key is not None and meta["key"] != key:
        return "it was made from other data, tokenizer, template or settings"
    examples = meta["examples"]
    lengths = {"ids": meta["tokens"], "run_lengths": meta["runs"], "run_weights": meta["runs"]}
    lengths |= {"offsets": examples + 1, "run_offsets": examples + 1}
    for name, array in arrays.items():
        expected = lengths.get(name, examples)
        if array.shape != (expected,) or array.dtype not in _DTYPES[name]:
            return (
                f"{name}.npy holds {array.dtype}{list(array.shape)}, expected {_DTYPES[name][-1].__name__}[{expected}]"
            )
    for offsets, total in (("offsets", meta["tokens"]), ("run_offsets", meta["runs"])):
        if arrays[offsets][0] != 0 or arrays[offsets][-1] != total:
            return f"its {offsets} don't cover its arrays"
    if arrays["source_index"].max(initial=-1) >= len(meta["sources"]):
        return "a row names a source that isn't listed"
    return None


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older `folder` steps aside first and is removed."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
