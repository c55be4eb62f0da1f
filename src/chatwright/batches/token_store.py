"""Tokenized examples as flat arrays, in memory or memory-mapped.

Knows tokens and weights; refuses to know packs, steps, devices, templates, files and torch. Weights are kept as runs,
since a conversation has a few thousand tokens but only a few changes between given and trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chatwright.templates.rendered import ExampleKey, RenderedExample

EXAMPLES_AT_ONCE = 4096
_JOINED = (
    "ids",
    "run_lengths",
    "run_weights",
    "rows",
    "parts",
    "supervised_counts",
    "weight_sums",
    "prompt_lengths",
    "chosen_lengths",
)
"""The arrays that are simply put behind one another when stores are joined."""
SMALL_VOCABULARY = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenStore:
    """n examples in flat arrays; example i is `ids[offsets[i]:offsets[i + 1]]`.

    Args:
        ids: uint16 or int32 `[total]`.
        offsets: int64 `[n+1]`.
        run_lengths: int32 `[R]`, tokens of neighbouring equal weight. run_weights: float32 `[R]`; 0 = given, > 0 =
            trained. run_offsets: int64 `[n+1]`: the runs of example i are `run_offsets[i]:run_offsets[i + 1]`.
        sources: the distinct sources; source_index: int32 `[n]` points into them.
        rows: int64 `[n]`. parts: int32 `[n]`: with the source, each example's key.
        supervised_counts: int64 `[n]`, trained tokens of each example (its first token never is).
        weight_sums: float64 `[n]`, the sum of their weights.
        prompt_lengths, chosen_lengths: int32 `[n]`, of preference pairs the tokens of the prompt and of the better
            reply, behind which the worse one stands; 0 for other examples.
    """

    ids: np.ndarray
    offsets: np.ndarray
    run_lengths: np.ndarray
    run_weights: np.ndarray
    run_offsets: np.ndarray
    sources: tuple[str, ...]
    source_index: np.ndarray
    rows: np.ndarray
    parts: np.ndarray
    supervised_counts: np.ndarray
    weight_sums: np.ndarray
    prompt_lengths: np.ndarray
    chosen_lengths: np.ndarray

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
    def weights(self) -> np.ndarray:
        """float32 `[total]`, all weights written out, made anew at each call."""
        return np.repeat(self.run_weights, self.run_lengths)

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
        ids = self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)
        runs = slice(self.run_offsets[index], self.run_offsets[index + 1])
        return ids, np.repeat(self.run_weights[runs], self.run_lengths[runs])

    def supervised(self, index: int) -> int:
        """Trained tokens of one example."""
        return int(self.supervised_counts[index])

    def take(self, examples: np.ndarray) -> TokenStore:
        """A store of these examples (int64 numbers), in this order."""
        if len(examples) == len(self) and np.array_equal(examples, np.arange(len(self))):
            return self
        tokens, offsets = _gather(self.offsets, examples)
        runs, run_offsets = _gather(self.run_offsets, examples)
        return replace(
            self,
            ids=self.ids[tokens],
            offsets=offsets,
            run_lengths=self.run_lengths[runs],
            run_weights=self.run_weights[runs],
            run_offsets=run_offsets,
            source_index=self.source_index[examples],
            rows=self.rows[examples],
            parts=self.parts[examples],
            supervised_counts=self.supervised_counts[examples],
            weight_sums=self.weight_sums[examples],
            prompt_lengths=self.prompt_lengths[examples],
            chosen_lengths=self.chosen_lengths[examples],
        )

    def cut(self, examples: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> TokenStore:
        """A store of pieces: tokens `starts[p]:stops[p]` of `examples[p]`, in this order; they keep keys and weights.

        What the first token of a piece was trained with is not counted: nothing of its piece predicts it.

        Args:
            examples, starts, stops: int64 `[P]`.
        """
        lengths = stops - starts
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.repeat(self.offsets[examples] + starts - ends[:-1], lengths) + np.arange(ends[-1])
        none = np.zeros(len(examples), dtype=np.int32)  # a pair can't be cut: what is joined isn't one
        columns: dict[str, Any] = _weight_columns(
            self.weights[tokens], np.repeat(np.arange(len(examples)), lengths), ends
        )
        return replace(
            self,
            ids=self.ids[tokens],
            offsets=ends,
            source_index=self.source_index[examples],
            rows=self.rows[examples],
            parts=self.parts[examples],
            prompt_lengths=none,
            chosen_lengths=none,
            **columns,
        )

    @staticmethod
    def from_examples(examples: Iterable[RenderedExample], vocab_size: int | None = None) -> TokenStore:
        """Gather rendered examples, in their order.

        Args:
            vocab_size: with at most 65,536 token ids they are kept in two bytes each.

        Raises:
            ValueError: when ids and weights differ in length, or a weight is negative or not finite.
        """
        small = vocab_size is not None and vocab_size <= SMALL_VOCABULARY
        dtype = np.dtype(np.uint16 if small else np.int32)
        chunks = [_chunk(group, dtype) for group in _groups(examples)]
        return concatenate(chunks) if chunks else _chunk([], dtype)


def concatenate(stores: Sequence[TokenStore]) -> TokenStore:
    """One store of the examples of all, in order; in memory."""
    if len(stores) == 1:
        return stores[0]
    sources, index = merge_sources(stores)
    joined = {name: np.concatenate([getattr(store, name) for store in stores]) for name in _JOINED}
    return TokenStore(
        sources=sources,
        source_index=np.concatenate(index),
        offsets=chain_offsets([store.offsets for store in stores]),
        run_offsets=chain_offsets([store.run_offsets for store in stores]),
        **joined,
    )


def merge_sources(stores: Sequence[TokenStore]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The distinct sources of all stores, and each store's `source_index` into them."""
    place: dict[str, int] = {}
    index = []
    for store in stores:
        own = np.array([place.setdefault(source, len(place)) for source in store.sources], dtype=np.int32)
        index.append(own[store.source_index] if len(own) else store.source_index)
    return tuple(place), index


def chain_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    """Chain offset lists: [0, 2, 3] and [0, 1] → [0, 2, 3, 4]."""
    sizes = np.concatenate([np.diff(each) for each in offsets])
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _gather(offsets: np.ndarray, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all items of `examples`, and their offsets when they stand behind one another."""
    lengths = offsets[examples + 1] - offsets[examples]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.repeat(offsets[examples] - ends[:-1], lengths) + np.arange(ends[-1]), ends


def _groups(examples: Iterable[RenderedExample]) -> Iterator[list[RenderedExample]]:
    group: list[RenderedExample] = []
    for example in examples:
        group.append(example)
        if len(group) == EXAMPLES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _chunk(examples: Sequence[RenderedExample], dtype: np.dtype) -> TokenStore:
    for example in examples:
        if example.ids.shape != example.weights.shape or example.ids.ndim != 1:
            raise ValueError(f"{example.key}: ids {example.ids.shape} but weights {example.weights.shape}")
    lengths = [len(example.ids) for example in examples]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    owner = np.repeat(np.arange(len(examples)), lengths)
    weights = np.concatenate([np.empty(0, np.float32), *(example.weights for example in examples)])
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise ValueError(f"{examples[owner[bad[0]]].key}: weights must be finite and not negative")
    sources: dict[str, int] = {}
    keys = [(sources.setdefault(e.key.source, len(sources)), e.key.row, e.key.part) for e in examples]
    columns = np.array(keys, dtype=np.int64).reshape(-1, 3)
    sides = np.array([(e.prompt_length, e.chosen_length) for e in examples], dtype=np.int32).reshape(-1, 2)
    return TokenStore(
        ids=np.concatenate([np.empty(0, np.int32), *(example.ids for example in examples)]).astype(dtype),
        offsets=offsets,
        sources=tuple(sources),
        source_index=columns[:, 0].astype(np.int32),
        rows=columns[:, 1].copy(),
        parts=columns[:, 2].astype(np.int32),
        prompt_lengths=sides[:, 0].copy(),
        chosen_lengths=sides[:, 1].copy(),
        **_weight_columns(weights.astype(np.float32, copy=False), owner, offsets),
    )


def _weight_columns(weights: np.ndarray, owner: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Runs of equal weight within each example, and each example's supervised tokens and sum of weights.

    Example: one example of weights 0 0 1 1 1 → run_lengths [2, 3], run_weights [0, 1], run_offsets [0, 2].
    """
    count = len(offsets) - 1
    new = np.ones(len(weights), dtype=bool)
    new[1:] = (weights[1:] != weights[:-1]) | (owner[1:] != owner[:-1])
    starts = np.flatnonzero(new)
    trained = weights.astype(np.float64)
    trained[offsets[:-1][np.diff(offsets) > 0]] = 0.0  # nothing comes before a first token to predict it from
    runs = np.bincount(owner[starts], minlength=count)
    return {
        "run_lengths": np.diff(np.append(starts, len(weights))).astype(np.int32),
        "run_weights": weights[starts],
        "run_offsets": np.concatenate([[0], np.cumsum(runs)]).astype(np.int64),
        "supervised_counts": np.bincount(owner, weights=trained > 0, minlength=count).astype(np.int64),
        "weight_sums": np.bincount(owner, weights=trained, minlength=count).astype(np.float64),
    }
