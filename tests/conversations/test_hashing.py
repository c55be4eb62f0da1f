"""The mixing of numbers: SplitMix64's published outputs, and one to one."""

from __future__ import annotations

import numpy as np

from chatwright.conversations.hashing import GOLDEN, finalized, scattered


def test_the_mixing_is_splitmix64s() -> None:
    """The first outputs for the seed 1234567, as in Vigna's reference implementation."""
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(GOLDEN)
    assert scattered(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert finalized(np.zeros(1, dtype=np.uint64)).tolist() == [0]


def test_no_two_numbers_meet() -> None:
    assert len(np.unique(finalized(np.arange(100_000, dtype=np.uint64)))) == 100_000
