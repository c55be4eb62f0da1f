"""Which rows are held out: rows that say the same, or come of one tree, stay on one side.

Pure functions of arrays over all examples; labels are numbers that mean nothing but "the same".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def linked(kinds: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The groups of items that share a label of any kind, directly or through others: int64 `[size]`.

    Args:
        kinds: int64 `[size]` each: an item's label of that kind, from 0 to below `size`; -1 for none.
    """
    group = np.arange(size, dtype=np.int64)
    while True:
        before = group
        for labels in kinds:
            labelled = np.flatnonzero(labels >= 0)
            lowest = np.full(size, size, dtype=np.int64)
            np.minimum.at(lowest, labels[labelled], group[labelled])
            group = group.copy()
            group[labelled] = lowest[labels[labelled]]
        group = group[group]
        if np.array_equal(group, before):
            return group


def draw_groups(groups: np.ndarray, draws: np.ndarray, share: float) -> np.ndarray:
    """The groups to hold out: those of the lowest draws that fit into the share, at least one on either side.

    Args:
        groups: int64 `[n]`, each row's group. draws: uint64 `[n]`, each row's draw.
        share: the part of the rows to hold out. One group that is larger is taken where none fits; of a single group
            none is.
    """
    found, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(found) < 2:
        return found[:0]
    lowest = np.full(len(found), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, inverse, draws)
    order = np.lexsort((found, lowest))
    left = min(max(1, round(share * len(groups))), len(groups) - 1)
    chosen: list[int] = []
    for place, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= left:
            chosen.append(place)
            left -= size
        if not left:
            break
    if not chosen:
        chosen = [int(order[np.argmin(sizes[order])])]
    return found[np.sort(np.array(chosen, dtype=np.int64))]
