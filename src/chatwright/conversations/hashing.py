"""Numbers that look random and never change, on any machine and with any numpy: the mixing of SplitMix64.

Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators".
"""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ divided by the golden ratio, made odd: SplitMix64's step."""


def finalized(values: np.ndarray) -> np.ndarray:
    """Each uint64 scattered over all 64 bits, one to one; 0 stays 0."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return result


def scattered(values: np.ndarray) -> np.ndarray:
    """What a SplitMix64 generator that stands at each uint64 gives next, one to one."""
    return finalized(values + np.uint64(GOLDEN))
