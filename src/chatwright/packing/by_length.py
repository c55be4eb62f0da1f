"""Examples of like length together, for forwards whose order means nothing: scoring and measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def groups_of_like_length(lengths: np.ndarray, members: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """The members, the shortest first, in groups of up to `most_tokens` tokens; a longer one has its own.

    Args:
        lengths: `[n]` tokens of every example. members: which of them are wanted.
    """
    group: list[int] = []
    tokens = 0
    for index in sorted(members, key=lambda index: int(lengths[index])):
        if group and tokens + int(lengths[index]) > most_tokens:
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += int(lengths[index])
    if group:
        yield group
