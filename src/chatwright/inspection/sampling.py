"""Choose rows to look at: a random sample over all data entries, fixed by the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STREAM = 7
"""Keeps these draws apart from every other use of the same seed."""


def sample_rows(counts: Sequence[int], number: int, seed: int) -> list[list[int]]:
    """Draw rows without replacement, every row of every entry alike; a pure function of its arguments.

    Example: counts [3, 1000], number 2 → most often [[], [17, 804]].

    Args:
        counts: how many rows each entry has.
        number: how many to draw in all; all of them where there are fewer.
        seed: ≥ 0; the same seed draws the same rows.

    Returns:
        for each entry the places of its drawn rows, ascending.
    """
    ends = np.cumsum([0, *counts])
    total = int(ends[-1])
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _STREAM])))
    drawn = np.sort(generator.choice(total, size=min(number, total), replace=False)) if total else np.empty(0, np.int64)
    cuts = np.searchsorted(drawn, ends)
    return [(drawn[cuts[i] : cuts[i + 1]] - ends[i]).tolist() for i in range(len(counts))]
