"""The elementwise parts of a layer: RMSNorm, rotation, gated activation.

T flat tokens · H heads · D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from chatwright.models.config import Activation


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    """x / rms(x) · weight over the last dimension, in float32 at least; Gemma's form with 1 + weight.

    Zhang & Sennrich 2019; the rounding order is transformers': plain norms round before the weight, Gemma's after.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide = x.to(wide)
    normed = x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    if plus_one:
        return (normed * (1.0 + weight.to(wide))).to(x.dtype)
    return weight * normed.to(x.dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[T, H, D]` by the tables `[T, D/2]`."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(gate) · up (Shazeer 2020)."""
    if activation is Activation.SILU:
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh") * up
