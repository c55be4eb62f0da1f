"""Examples → PackedBatch, with the only label shift in the program.

Worked miniature: two examples in one pack, weights 1 on what the model must produce.

    example 0: ids 10 11 20 21 22 23 24   weights 0 0 1 1 1 1 1   (user says 10 11, assistant 20 … 24)
    example 1: ids 30 40                  weights 0 1

    flat position      0   1   2   3   4   5   6  |  7   8
    input_ids         10  11  20  21  22  23  24  | 30  40
    position_ids       0   1   2   3   4   5   6  |  0   1
    must predict       ·  20  21  22  23  24   ·  | 40   ·
    supervised_index = [1, 2, 3, 4, 5, 7],  targets = [20, 21, 22, 23, 24, 40]

The hidden state at p predicts token p + 1 of the same segment where that token's weight is > 0. Nothing
predicts a segment's first token (30), whatever its weight: no state of its own segment comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.layouts import SegmentLayout
from chatwright.templates.rendered import ExampleKey

PADDING_ID = 0
"""The id of padding tokens: any valid id does, since padding is a segment of its own and never supervised."""


class Collate(Protocol):
    """Examples of a store → a batch, as `collate` does it."""

    def __call__(
        self, store: TokenStore, members: Sequence[int] | np.ndarray, *, pad_to: int | None = None
    ) -> PackedBatch:
        """The batch of these examples; of none, a dummy pack."""
        ...


def collate(
    store: TokenStore, members: Sequence[int] | np.ndarray, *, pad_to: int | None = None, joined: bool = False
) -> PackedBatch:
    """Lay the examples `members` of `store` behind one another as segments, and shift the labels.

    Args:
        store: the tokenized examples.
        members: example numbers. None at all gives the dummy pack, of padding only, that a rank without a pack runs.
        pad_to: fill up to this many tokens with one more segment of weight 0.
        joined: all members are *one* segment and see each other; `keys` and `segment_of_target` still tell them apart.

    Returns:
        A batch on the CPU, T = the examples' tokens (+ padding).

    Raises:
        ValueError: when the examples have more than `pad_to` tokens, or one has none.
    """
    lengths = [int(store.offsets[index + 1] - store.offsets[index]) for index in members]
    if not all(lengths):
        raise ValueError(f"{store.name(int(members[lengths.index(0)]))} has no tokens")
    total = sum(lengths)
    if pad_to is not None and total > pad_to:
        raise ValueError(f"a pack of {total} tokens doesn't fit into {pad_to}")
    num_padding = pad_to - total if pad_to is not None else int(total == 0)

    segment_lengths = lengths + [num_padding] * (num_padding > 0)
    starts = np.cumsum([0, *segment_lengths])[:-1]  # [S]
    ids = np.full(total + num_padding, PADDING_ID, dtype=np.int64)  # [T]
    weights = np.zeros(total + num_padding, dtype=np.float32)  # [T]
    for index, start, length in zip(members, starts, lengths, strict=False):  # padding has a start but no member
        ids[start : start + length], weights[start : start + length] = store.example(int(index))
    weights[starts] = 0.0  # nothing comes before a segment's first token to predict it from
    owners = np.repeat(np.arange(len(segment_lengths)), segment_lengths)  # [T]
    laid_out = [total] * (total > 0) + [num_padding] * (num_padding > 0) if joined else segment_lengths
    begins = np.repeat(np.cumsum([0, *laid_out])[:-1], laid_out)  # [T], where each token's segment begins
    supervised = np.flatnonzero(weights)  # [N], where the targets stand
    keys: list[ExampleKey | None] = [store.key(int(index)) for index in members]
    return PackedBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(np.arange(len(ids)) - begins),
        layout=SegmentLayout.from_lengths(laid_out),
        supervised_index=torch.from_numpy(supervised - 1),
        targets=torch.from_numpy(ids[supervised]),
        weights=torch.from_numpy(weights[supervised]),
        segment_of_target=torch.from_numpy(owners[supervised]),
        keys=tuple(keys + [None] * (num_padding > 0)),
        num_padding=num_padding,
    )
