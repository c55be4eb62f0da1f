"""Pack by examples: n conversations a step, as TRL and the Hugging Face trainer count.

Their step is per_device_train_batch_size · gradient_accumulation_steps · ranks conversations, and the last
step of an epoch has what is left. Only the cut into packs differs: it doesn't change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatwright.packing.pack_plan import EpochPacks, PackingSettings
from chatwright.packing.shuffling import permutation


class PackByExamples:
    """A unit is a step's examples, cut in order into packs; no step crosses the end of an epoch."""

    def units_per_step(self, settings: PackingSettings) -> int:
        """One: a unit is a step."""
        return 1

    def whole_units(self, epoch: EpochPacks, settings: PackingSettings) -> int:
        """All steps but a last one with fewer examples."""
        return len(epoch.members) // settings.examples_per_step

    def pack_epoch(
        self, lengths: np.ndarray, groups: Sequence[np.ndarray], settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Pack groups of examples one after another, each shuffled or in its own order; steps run across groups."""
        order = np.concatenate([_shuffled(group, settings, seed, epoch, part) for part, group in enumerate(groups)])
        sizes = lengths[order].tolist()
        pack_starts, unit_starts = [0], [0]
        for start in range(0, len(order), settings.examples_per_step):
            stop = min(start + settings.examples_per_step, len(order))
            room = settings.tokens_per_pack
            for place in range(start, stop):
                if sizes[place] > room:
                    pack_starts.append(place)
                    room = settings.tokens_per_pack
                room -= sizes[place]
            pack_starts.append(stop)
            unit_starts.append(len(pack_starts) - 1)
        return EpochPacks(order.astype(np.int64), np.array(pack_starts), np.array(unit_starts))


def _shuffled(group: np.ndarray, settings: PackingSettings, seed: int, epoch: int, part: int) -> np.ndarray:
    return group[permutation(len(group), seed, epoch, "examples", part)] if settings.shuffle else group
