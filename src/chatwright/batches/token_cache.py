"""Tokenized examples as flat arrays, in memory or memory-mapped, and their cache on disk.

Knows tokens and weights; refuses to know packs, steps, devices, templates and torch.
A cache folder is written aside and renamed, so it is either complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatwright.errors import DataError
from chatwright.templates.rendered import ExampleKey, RenderedExample

CACHE_FORMAT = 1
"""Raised whenever the files change, which makes every older cache stale."""

_DTYPES: dict[str, type] = {
    "ids": np.int32,
    "weights": np.float32,
    "offsets": np.int64,
    "source_index": np.int32,
    "rows": np.int64,
    "parts": np.int32,
    "supervised_counts": np.int64,
    "weight_sums": np.float64,
}
_META = "meta.json"


def cache_key(**parts: Any) -> str:
    """sha256 that changes with any of `parts` (JSON values): data fingerprint, tokenizer, template, policy, versions.

    Raises:
        TypeError: for a part that isn't a JSON value.
    """
    text = json.dumps({"cache_format": CACHE_FORMAT, "parts": parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenStore:
    """n examples in flat arrays; example i is `ids[offsets[i]:offsets[i + 1]]`.

    Args:
        ids: int32 `[total]`. weights: float32 `[total]`; 0 = given, > 0 = trained.
        offsets: int64 `[n+1]`.
        sources: the distinct sources; source_index: int32 `[n]` points into them.
        rows: int64 `[n]`. parts: int32 `[n]`: with the source, each example's key.
        supervised_counts: int64 `[n]`, trained tokens of each example (its first token never is).
        weight_sums: float64 `[n]`, the sum of their weights.
    """

    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    sources: tuple[str, ...]
    source_index: np.ndarray
    rows: np.ndarray
    parts: np.ndarray
    supervised_counts: np.ndarray
    weight_sums: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[n]`, tokens of each example."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.offsets[-1])

    @property
    def keys(self) -> list[ExampleKey]:
        """The n keys, made anew at each call."""
        return [self.key(index) for index in range(len(self))]

    def key(self, index: int) -> ExampleKey:
        """The key of one example."""
        return ExampleKey(self.sources[self.source_index[index]], int(self.rows[index]), int(self.parts[index]))

    def name(self, index: int) -> str:
        """The user's name for an example: `file.jsonl row 3`, and the part where it isn't the first."""
        source, row, part = self.key(index)
        return f"{source} row {row}" + (f" part {part}" if part else "")

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 `[n]` and weights float32 `[n]` of one example."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.weights[span]

    def supervised(self, index: int) -> int:
        """Trained tokens of one example."""
        return int(self.supervised_counts[index])

    @staticmethod
    def from_examples(examples: Iterable[RenderedExample]) -> TokenStore:
        """Gather rendered examples, in their order.

        Raises:
            ValueError: when ids and weights differ in length, or a weight is negative or not finite.
        """
        ids: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        sources: dict[str, int] = {}
        keys: list[tuple[int, int, int]] = []
        sums: list[float] = []
        counts: list[int] = []
        for example in examples:
            _check_example(example)
            trained = example.weights[1:]
            ids.append(example.ids)
            weights.append(example.weights)
            counts.append(int(np.count_nonzero(trained)))
            sums.append(float(trained.sum(dtype=np.float64)))
            keys.append((sources.setdefault(example.key.source, len(sources)), example.key.row, example.key.part))
        columns = np.array(keys, dtype=np.int64).reshape(-1, 3)
        return TokenStore(
            ids=np.concatenate([np.empty(0, np.int32), *ids]).astype(np.int32, copy=False),
            weights=np.concatenate([np.empty(0, np.float32), *weights]).astype(np.float32, copy=False),
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            sources=tuple(sources),
            source_index=columns[:, 0].astype(np.int32),
            rows=columns[:, 1].copy(),
            parts=columns[:, 2].astype(np.int32),
            supervised_counts=np.array(counts, dtype=np.int64),
            weight_sums=np.array(sums, dtype=np.float64),
        )

    def save(self, folder: Path, key: str = "") -> None:
        """Write the arrays to `folder`, replacing what was there; complete or not at all.

        Args:
            folder: the cache's own folder.
            key: what `cache_key` gave, checked again by `load`.
        """
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in _DTYPES:
            with (aside / f"{name}.npy").open("wb") as file:
                np.save(file, getattr(self, name))
                file.flush()
                os.fsync(file.fileno())
        meta = {"cache_format": CACHE_FORMAT, "key": key, "examples": len(self), "tokens": self.num_tokens}
        with (aside / _META).open("w", encoding="utf-8") as text_file:
            json.dump(meta | {"sources": self.sources}, text_file)
            text_file.flush()
            os.fsync(text_file.fileno())
        _replace_folder(aside, folder)

    @staticmethod
    def load(folder: Path, key: str | None = None) -> TokenStore:
        """Open a saved store; the arrays are memory-mapped and read-only.

        Args:
            folder: what `save` wrote.
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


def _check_example(example: RenderedExample) -> None:
    if example.ids.shape != example.weights.shape or example.ids.ndim != 1:
        raise ValueError(f"{example.key}: ids {example.ids.shape} but weights {example.weights.shape}")
    if not (np.isfinite(example.weights).all() and (example.weights >= 0).all()):
        raise ValueError(f"{example.key}: weights must be finite and not negative")


def _problem(meta: dict[str, Any], arrays: dict[str, np.ndarray], key: str | None) -> str | None:
    """What is wrong with a loaded cache, in words."""
    if meta["cache_format"] != CACHE_FORMAT:
        return f"its format is {meta['cache_format']}, this version writes {CACHE_FORMAT}"
    if key is not None and meta["key"] != key:
        return "it was made from other data, tokenizer, template or settings"
    examples, tokens = meta["examples"], meta["tokens"]
    for name, array in arrays.items():
        expected = tokens if name in ("ids", "weights") else examples + (name == "offsets")
        if array.shape != (expected,) or array.dtype != _DTYPES[name]:
            return f"{name}.npy holds {array.dtype}{list(array.shape)}, expected {_DTYPES[name].__name__}[{expected}]"
    if arrays["offsets"][0] != 0 or arrays["offsets"][-1] != tokens:
        return "its offsets don't cover its tokens"
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
