"""Counter-based random order: a pure function of seed, epoch and purpose, with no state to save."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["examples", "packs", "rows"]
_STREAMS: dict[Purpose, int] = {"examples": 0, "packs": 1, "rows": 2}


def permutation(count: int, seed: int, epoch: int, purpose: Purpose, part: int = 0) -> np.ndarray:
    """int64 `[count]`, the numbers 0 … count − 1 in an order fixed by (seed, epoch, purpose, part).

    Raises:
        ValueError: for a negative seed or epoch.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed {seed} and epoch {epoch} must not be negative")
    words = np.random.SeedSequence([seed, epoch, _STREAMS[purpose]], spawn_key=(part,) if part else ())
    return np.random.Generator(np.random.Philox(words)).permutation(count).astype(np.int64, copy=False)
