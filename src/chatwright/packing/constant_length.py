"""Pack at a constant length: examples one behind the other as one stream, cut every T tokens wherever that falls.

The baseline that TRL's ConstantLengthDataset and nanochat's mid-training buffer stand for. No token is wasted and every
pack is full, but conversations in a pack see each other, and one that is cut goes on without its beginning: what is
trained is *not* the sum over conversations (`PackingSettings.exact` is False).

Example: lengths 3, 4, 2 in that order at T = 4 → pieces (0, 0:3) (1, 0:1) | (1, 1:4) (2, 0:1) | (2, 1:2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chatwright.packing.by_tokens import PackByTokens
from chatwright.packing.pack_plan import EpochPacks, PackingSettings
from chatwright.packing.shuffling import permutation


class Pieces(NamedTuple):
    """P pieces in the order of the stream; piece p is tokens `starts[p]:stops[p]` of `examples[p]`.

    Args:
        examples, starts, stops: int64 `[P]`.
        repeats: bool `[P]`, pieces of an example that stood in the stream before.
        blocks: int64 `[P]`, the block that each piece is in.
    """

    examples: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    repeats: np.ndarray
    blocks: np.ndarray


def cut_stream(lengths: np.ndarray, groups: Sequence[np.ndarray], settings: PackingSettings, seed: int) -> Pieces:
    """Lay examples behind one another and cut the stream at every multiple of `tokens_per_pack`.

    Args:
        lengths: int `[n]`. groups: int64 arrays of numbers into `lengths`, one after the other in the stream, each in a
            seeded order; a number may come several times. An example without tokens is a piece without tokens.
    """
    orders = [
        group[permutation(len(group), seed, 0, "examples", part)] if settings.shuffle else group
        for part, group in enumerate(groups)
    ]
    order = np.concatenate([*orders, np.empty(0, dtype=np.int64)]).astype(np.int64)
    sizes = np.asarray(lengths, dtype=np.int64)[order]
    ends = np.cumsum(sizes)
    begins = ends - sizes
    capacity = settings.tokens_per_pack
    # an example spans the blocks from that of its first token to that of its last
    first, last = begins // capacity, np.maximum(ends - 1, begins) // capacity
    counts = last - first + 1
    place = np.repeat(np.arange(len(order)), counts)
    block = np.repeat(first, counts) + _within(counts)
    starts = np.maximum(block * capacity, begins[place]) - begins[place]
    stops = np.minimum((block + 1) * capacity, ends[place]) - begins[place]
    _, first_time = np.unique(order, return_index=True)
    repeated = np.ones(len(order), dtype=bool)
    repeated[first_time] = False
    return Pieces(order[place], starts, stops, repeated[place], block)


def _within(counts: np.ndarray) -> np.ndarray:
    """0 … count − 1 for each count: [2, 1] → [0, 1, 0]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


class PackConstantLength(PackByTokens):
    """A unit is one block of pieces that follow one another; blocks come in a new order each epoch."""

    def pack_epoch(
        self, lengths: np.ndarray, groups: Sequence[np.ndarray], settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Neighbours share a pack as long as they fit: for pieces of `cut_stream`, exactly its blocks."""
        members: list[np.ndarray] = []
        for part, group in enumerate(groups):
            packs = np.split(group, _block_starts(lengths[group], settings.tokens_per_pack))
            order = permutation(len(packs), seed, epoch, "packs", part) if settings.shuffle else range(len(packs))
            members += [packs[index] for index in order]
        starts = np.cumsum([0, *map(len, members)]).astype(np.int64)
        return EpochPacks(np.concatenate(members), starts, np.arange(len(starts), dtype=np.int64))


def _block_starts(sizes: np.ndarray, capacity: int) -> list[int]:
    """Where a new pack begins, behind the first."""
    starts, room = [], capacity
    for place, size in enumerate(sizes.tolist()):
        if size > room:
            starts.append(place)
            room = capacity
        room -= size
    return starts
