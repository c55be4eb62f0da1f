"""Random preference pairs as token stores, and what a plain program makes of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from chatwright.batches.token_store import TokenStore
from chatwright.templates.rendered import ExampleKey, RenderedExample

Sizes = tuple[int, int, int]
"""Tokens of the prompt, the better and the worse reply."""

SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


def pair_store(sizes: Sequence[Sizes], vocab_size: int = 131, seed: int = 0, *, gaps: bool = True) -> TokenStore:
    """Pairs of random tokens; with `gaps` some tokens of a reply are given (a tool's output), never its last."""
    random = np.random.default_rng(seed)
    examples = []
    for row, (prompt, chosen, rejected) in enumerate(sizes):
        ids = random.integers(0, vocab_size, prompt + chosen + rejected).astype(np.int32)
        weights = np.ones(len(ids), np.float32)
        if gaps:
            weights[random.random(len(ids)) < 0.3] = 0
        weights[:prompt] = 0
        weights[[prompt + chosen - 1, -1]] = 1
        key = ExampleKey("pairs.jsonl", row, 0)
        examples.append(RenderedExample(ids, weights, (), key, prompt, chosen))
    return TokenStore.from_examples(examples, vocab_size)


def plain_sides(store: TokenStore, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, weights) of prompt and better reply, and of prompt and worse reply."""
    ids, weights = store.example(index)
    prompt, chosen = int(store.prompt_lengths[index]), int(store.chosen_lengths[index])
    worse = np.r_[0:prompt, prompt + chosen : len(ids)]
    return [(ids[: prompt + chosen], weights[: prompt + chosen]), (ids[worse], weights[worse])]
