"""RMSNorm as a module: a weight, an epsilon, and Gemma's 1 + weight."""

from __future__ import annotations

import torch
from torch import nn

from chatwright.models.elementwise import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019).

    Args:
        size: the last dimension.
        eps: added to the mean square.
        plus_one: multiply by 1 + weight instead (Gemma); the fresh weight is then 0.
    """

    def __init__(self, size: int, eps: float, plus_one: bool) -> None:
        super().__init__()
        self.eps, self.plus_one = eps, plus_one
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., size]` → `[..., size]` in the dtype of `x`."""
        return rms_norm(x, self.weight, self.eps, self.plus_one)
