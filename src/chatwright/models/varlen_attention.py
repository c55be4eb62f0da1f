"""Attention over flat segments on CUDA through torch's variable-length kernel (torch ≥ 2.10).

T flat tokens · H query heads · G key/value heads · D head_dim. What the kernel can't do (float32, soft caps, an older
torch) goes segment by segment through `segment_attention`, which is right on every device.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

from chatwright.layouts import SegmentLayout


@cache
def _varlen_kernel() -> Any | None:
    """`torch.nn.attention.varlen.varlen_attn` if this torch has it with scale, window and grouped heads, else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(known) else None


def can_run_varlen(q: torch.Tensor, soft_cap: float | None) -> bool:
    """Whether the kernel takes these queries: half precision, a head of at most 256 dimensions, no soft cap."""
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    return fits and soft_cap is None and q.shape[0] > 0 and _varlen_kernel() is not None


def varlen_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout, scale: float, window: int | None
) -> torch.Tensor:
    """Causal attention inside each segment: `[Tq, H, D]`, `[Tk, G, D]` → `[Tq, H, D]`.

    Flash attention aligns the causal mask to the last key, as a layout whose keys outnumber its queries needs;
    `window_size` counts the positions before a token, so a window of w is (w − 1, 0).
    """
    kernel = _varlen_kernel()
    assert kernel is not None
    left = -1 if window is None else window - 1
    grouped = q.shape[1] != k.shape[1]
    return kernel(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        layout.cu_q,
        layout.cu_k,
        layout.max_q,
        layout.max_k,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=grouped,
    )
