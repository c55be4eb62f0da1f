"""Pack by tokens: windows of shuffled examples, best fit decreasing inside each, packs in random order.

Best fit decreasing: longest example first, each into the fullest pack that still has room for it
(Johnson 1974; for language models: Ding et al. 2024, "Fewer Truncations Improve Language Modeling").
"""

from __future__ import annotations

from bisect import bisect_left, insort

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

    def pack_epoch(
        self, lengths: np.ndarray, examples: np.ndarray, settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Pack `examples` (int64 numbers into `lengths`), each exactly once.

        It ends: each round takes `window` fresh examples, carries at most a quarter of a window over
        to the next round, and the last round carries nothing.
        """
        order = examples[permutation(len(examples), seed, epoch, "examples")] if settings.shuffle else examples
        packs: list[list[int]] = []
        carried: list[int] = []
        for start in range(0, len(order), settings.window):
            stop = start + settings.window
            made = best_fit_decreasing(lengths, carried + order[start:stop].tolist(), settings.tokens_per_pack)
            carried = []
            if stop < len(order):
                made, carried = _set_thin_aside(lengths, made, settings)
            packs += made
        if settings.shuffle:
            packs = [packs[index] for index in permutation(len(packs), seed, epoch, "packs")]
        else:
            packs = sorted(sorted(pack) for pack in packs)
        return _as_epoch(packs)


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


def _as_epoch(packs: list[list[int]]) -> EpochPacks:
    members = np.array([example for pack in packs for example in pack], dtype=np.int64)
    pack_starts = np.cumsum([0, *map(len, packs)], dtype=np.int64)
    return EpochPacks(members, pack_starts, np.arange(len(packs) + 1, dtype=np.int64))
