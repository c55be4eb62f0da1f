"""Pack by examples: n conversations a step, as TRL and the Hugging Face trainer count.

Their step is per_device_train_batch_size · gradient_accumulation_steps · ranks conversations, and the last
step of an epoch has what is left. Only the cut into packs differs: it doesn't change the gradient.
"""

from __future__ import annotations

import numpy as np

from chatwright.packing.pack_plan import EpochPacks, PackingSettings
from chatwright.packing.shuffling import permutation


class PackByExamples:
    """A unit is a step's examples, cut in order into packs; no step crosses the end of an epoch."""

    def units_per_step(self, settings: PackingSettings) -> int:
        """One: a unit is a step."""
        return 1

    def pack_epoch(
        self, lengths: np.ndarray, examples: np.ndarray, settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Pack `examples` (int64 numbers into `lengths`), each exactly once, in shuffled or data order."""
        order = examples[permutation(len(examples), seed, epoch, "examples")] if settings.shuffle else examples
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
