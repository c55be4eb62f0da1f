"""Groups of like length: every member once, the shortest first, within the bound unless alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatwright.packing.by_length import groups_of_like_length


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 80))
def test_every_member_has_one_place_within_the_bound(lengths: list[int], most: int) -> None:
    members = [index for index in range(len(lengths)) if index % 3]
    groups = list(groups_of_like_length(np.array(lengths, dtype=np.int64), members, most))
    placed = [index for group in groups for index in group]
    assert sorted(placed) == members and [lengths[index] for index in placed] == sorted(lengths[i] for i in members)
    assert all(group and (len(group) == 1 or sum(lengths[i] for i in group) <= most) for group in groups)
    for group, after in pairwise(groups):
        assert sum(lengths[i] for i in group) + lengths[after[0]] > most, "no group ends early"
