"""Random packed batches, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chatwright.layouts import SegmentLayout

Batch = tuple[torch.Tensor, torch.Tensor, SegmentLayout]


def packed(lengths: Sequence[int], vocab_size: int = 131, seed: int = 0) -> Batch:
    """Random ids, positions that restart in each segment, and the layout."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ids, positions, SegmentLayout.from_lengths(lengths)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))
