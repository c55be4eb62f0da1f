"""Which texts hold an n-gram: sorted 64-bit hashes with postings, and a table of where each hash may stand.

Knows numbers only; refuses to know words, texts and evaluations. Plain arrays, so it can be memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SLOTS_PER_GRAM = 4
"""Least size of the table: at most a fifth of the unknown n-grams meet a known one in their slot."""


@dataclass(frozen=True, slots=True)
class GramIndex:
    """g n-grams and the texts that hold them.

    Args:
        hashes: uint64 `[g]`, ascending. offsets: int64 `[g+1]`; texts: int32 `[p]`; n-gram i is in the texts
            `texts[offsets[i]:offsets[i + 1]]`.
        slots: int32 `[2^k]`; for the top k bits of a hash the first n-gram that begins with them, or −1.
        per_text: int32 `[t]`, how many of the index's n-grams each text holds.
    """

    hashes: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray
    slots: np.ndarray
    per_text: np.ndarray

    @staticmethod
    def build(grams: np.ndarray, owners: np.ndarray, num_texts: int, most_texts: int) -> GramIndex:
        """Index n-grams by the texts that hold them, leaving out those that more than `most_texts` texts hold.

        Args:
            grams: uint64 `[m]`, of all texts; one that a text repeats counts once.
            owners: int64 `[m]`, the text (0 to `num_texts` − 1) of each.
            most_texts: an n-gram in more texts is how such texts are phrased, and tells nothing.
        """
        order = np.lexsort((owners, grams))
        grams, owners = grams[order], owners[order]
        again = np.zeros(len(grams), dtype=bool)
        again[1:] = (grams[1:] == grams[:-1]) & (owners[1:] == owners[:-1])
        grams, owners = grams[~again], owners[~again]
        hashes, holders = np.unique(grams, return_counts=True)
        telling = holders <= most_texts
        posted = owners[np.repeat(telling, holders)].astype(np.int32)
        hashes, holders = hashes[telling], holders[telling]
        per_text = np.bincount(posted, minlength=num_texts).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(holders)]).astype(np.int64)
        return GramIndex(hashes, offsets, posted, _slots(hashes), per_text)

    def find(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places in `grams` (uint64) that are indexed, and the number of the n-gram found at each: int64, int64."""
        slot = self.slots[grams >> _shift(len(self.slots))]
        places = np.flatnonzero(slot >= 0)
        wanted, at = grams[places], slot[places].astype(np.int64)
        behind = np.flatnonzero(self.hashes[at] < wanted)
        while len(behind):  # slots are shared by few, so a step or two is enough
            behind = behind[at[behind] + 1 < len(self.hashes)]
            at[behind] += 1
            behind = behind[self.hashes[at[behind]] < wanted[behind]]
        found = self.hashes[at] == wanted
        return places[found], at[found]

    def shared(self, owners: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many distinct n-grams each queried text shares with each indexed text.

        Args:
            owners: int64, the queried text of each find. numbers: int64, the n-gram found, as from `find`.

        Returns:
            owner, text and count of every pair that shares any, ordered by owner and text: int64 each.
        """
        distinct = np.unique(owners * len(self.hashes) + numbers)
        owners, numbers = np.divmod(distinct, max(len(self.hashes), 1))
        first = self.offsets[numbers]
        counts = self.offsets[numbers + 1] - first
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        texts = self.texts[np.repeat(first, counts) + within].astype(np.int64)
        num_texts = max(len(self.per_text), 1)
        pairs, shared = np.unique(np.repeat(owners, counts) * num_texts + texts, return_counts=True)
        return pairs // num_texts, pairs % num_texts, shared


def _slots(hashes: np.ndarray) -> np.ndarray:
    """The table of ascending hashes."""
    slots = np.full(1 << max(8, (SLOTS_PER_GRAM * len(hashes)).bit_length()), -1, dtype=np.int32)
    first = hashes >> _shift(len(slots))
    slots[first[::-1]] = np.arange(len(hashes), dtype=np.int32)[::-1]  # the first of several is written last
    return slots


def _shift(num_slots: int) -> np.uint64:
    """How far a hash is shifted to leave the number of its slot."""
    return np.uint64(65 - num_slots.bit_length())
