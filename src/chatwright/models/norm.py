"""RMSNorm as a module: a weight or none, an epsilon, and Gemma's 1 + weight."""

from __future__ import annotations

import torch
from torch import nn

from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019).

    Args:
        config: gives the epsilon added to the mean square, whether there is a weight at all (nanochat has none), and
            whether to multiply by 1 + weight (Gemma; the fresh weight is then 0).
        size: the last dimension.
    """

    def __init__(self, config: DecoderConfig, size: int) -> None:
        super().__init__()
        self.eps, self.plus_one = config.norm_eps, config.norm_plus_one
        self.weight: nn.Parameter | None = None
        if config.norm_weights:
            self.weight = nn.Parameter(torch.zeros(size) if self.plus_one else torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., size]` → `[..., size]` in the dtype of `x`."""
        return rms_norm(x, self.weight, self.eps, self.plus_one)
