"""Pack by tokens: windows of shuffled examples, best fit decreasing inside each, packs in random order.

Best fit decreasing: longest example first, each into the fullest pack that still has room for it
(Johnson 1974; for language models: Ding et al. 2024, "Fewer Truncations Improve Language Modeling").
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

import numpy as np

from chatwright.packing.pack_plan import EpochPacks, PackingSettings
from chatwright.packing.shuffling import permutation

THIN_BELOW = 0.97
"""A pack less full than this waits for the next window, which may have what fills it."""


class PackByTokens:
    """A unit is one pack; a step is `packs_per_step` of them, wherever an epoch ends."""

    def units_per_step(self, settings: PackingSettings) -> int:
        """Packs a step."""
        return settings.packs_per_step

    def whole_units(self, epoch: EpochPacks, settings: PackingSettings) -> int:
        """All of them: an incomplete step is filled up by the next epoch."""
        return epoch.num_units

    def pack_epoch(
        self, lengths: np.ndarray, groups: Sequence[np.ndarray], settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Pack groups of examples (int64 numbers into `lengths`) one after another; no pack has two groups."""
        made = [_pack_group(lengths, group, settings, seed, epoch, part) for part, group in enumerate(groups)]
        pack_starts = np.concatenate([[0], np.cumsum(np.concatenate([sizes for _, sizes in made]))])
        members = np.concatenate([members for members, _ in made])
        return EpochPacks(members, pack_starts.astype(np.int64), np.arange(len(pack_starts), dtype=np.int64))


def _pack_group(
    lengths: np.ndarray, group: np.ndarray, settings: PackingSettings, seed: int, epoch: int, part: int
) -> tuple[np.ndarray, np.ndarray]:
    """The members, pack after pack, and the number of examples of each pack.

    It ends: each round takes `window` fresh examples, carries at most a quarter of a window over
    to the next round, and the last round carries nothing. Until the end packs hold places in `order`,
    as an example may be there more than once.
    """
    order = group[permutation(len(group), seed, epoch, "examples", part)] if settings.shuffle else group
    sizes = lengths[order]
    packs: list[list[int]] = []
    carried: list[int] = []
    for start in range(0, len(order), settings.window):
        stop = min(start + settings.window, len(order))
        made = best_fit_decreasing(sizes, carried + list(range(start, stop)), settings.tokens_per_pack)
        carried = []
        if stop < len(order):
            made, carried = _set_thin_aside(sizes, made, settings)
        packs += made
    if settings.shuffle:
        packs = [packs[index] for index in permutation(len(packs), seed, epoch, "packs", part)]
    else:
        packs = sorted(sorted(pack) for pack in packs)
    places = np.fromiter(chain.from_iterable(packs), dtype=np.int64, count=len(order))
    return order[places], np.fromiter(map(len, packs), dtype=np.int64, count=len(packs))


def best_fit_decreasing(lengths: np.ndarray, examples: list[int], capacity: int) -> list[list[int]]:
    """Put examples, none longer than `capacity`, into few packs. O(n log n) but for moving list entries.

    Example: capacity 10, lengths 6, 5, 4, 3 → [6, 4] and [5, 3].
    """
    sizes = lengths[examples]
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, pack number) of packs that aren't full, sorted
    for place in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[place])
        found = bisect_left(rooms, (size, -1))
        if found < len(rooms):
            room, pack = rooms.pop(found)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(examples[place])
        if room > size:
            insort(rooms, (room - size, pack))
    return packs


def _set_thin_aside(
    lengths: np.ndarray, packs: list[list[int]], settings: PackingSettings
) -> tuple[list[list[int]], list[int]]:
    """Split packs into those to keep and the examples of the thinnest, at most a quarter of a window of them."""
    tokens = [int(lengths[pack].sum()) for pack in packs]
    budget = settings.window // 4
    aside: set[int] = set()
    for index in np.argsort(tokens, kind="stable").tolist():
        budget -= len(packs[index])
        if budget < 0 or tokens[index] >= THIN_BELOW * settings.tokens_per_pack:
            break
        aside.add(index)
    kept = [pack for index, pack in enumerate(packs) if index not in aside]
    return kept, [example for index in sorted(aside) for example in packs[index]]
