"""The one result type of every loss: sums, never means. The trainer divides, once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class LossSum:
    """Sums over one micro-batch.

    Args:
        total: scalar with a graph: Σ weight · loss. Not divided by anything.
        weight: Σ weight, as a Python float (the divisor's share of this micro-batch).
        supervised_tokens: how many tokens had a weight > 0.
        per_token: float32 `[N]`, detached and unweighted loss of each supervised token.
        metrics: name → (sum, weight), summed over micro-batches and ranks, then divided.
    """

    total: torch.Tensor
    weight: float
    supervised_tokens: int
    per_token: torch.Tensor
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
