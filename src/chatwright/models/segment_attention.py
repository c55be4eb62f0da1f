"""Attention kernels for flat segments: per segment through SDPA, never a T × T mask.

T flat tokens · L one segment's tokens · H query heads · G key/value heads · D head_dim · R cache rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made: soft_cap(scale · q·k), over the last `window` positions (None = all)."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None


def attend_segments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout, scores: Scores
) -> torch.Tensor:
    """Causal attention inside each segment; queries are the last q of the k positions.

    Args:
        q: `[Tq, H, D]`. k, v: `[Tk, G, D]`.

    Returns:
        `[Tq, H, D]`.
    """
    parts = zip(q.split(layout.lengths_q), k.split(layout.lengths_k), v.split(layout.lengths_k), strict=True)
    return torch.cat([_attend_one(*part, scores) for part in parts])


def _attend_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores) -> torch.Tensor:
    """One segment: `[Lq, H, D]`, `[Lk, G, D]` → `[Lq, H, D]`."""
    num_q, num_k = q.shape[0], k.shape[0]
    mask = None
    if num_q != num_k or (scores.window is not None and scores.window < num_k) or scores.soft_cap is not None:
        mask = visible(num_q, num_k, scores.window, q.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, L, D]
    if scores.soft_cap is not None:
        return capped_attention(q, k, v, mask, scores)[0].transpose(0, 1)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and num_q > 1,
        scale=scores.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def visible(num_q: int, num_k: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool `[Lq, Lk]`: which keys each of the last Lq of Lk positions sees."""
    distance = torch.arange(num_k - num_q, num_k, device=device)[:, None] - torch.arange(num_k, device=device)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """Attention with c · tanh(scores / c), written out: `[B, H, Lq, D]`, `[B, G, Lk, D]` → `[B, H, Lq, D]`."""
    assert scores.soft_cap is not None
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = scores.soft_cap * torch.tanh(q @ k.transpose(-1, -2) * (scores.scale / scores.soft_cap))
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    wide = torch.promote_types(q.dtype, torch.float32)
    return logits.softmax(-1, dtype=wide).to(q.dtype) @ v


def attend_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Sequence[int],
    lengths: Sequence[int],
    scores: Scores,
) -> torch.Tensor:
    """One new token a row against the cache.

    Args:
        q: `[R, H, D]`. keys, values: `[all rows, capacity, G, D]`.
        rows: the cache row of each query. lengths: tokens in it, the new one included.

    Returns:
        `[R, H, D]`.
    """
    out = []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = 0 if scores.window is None else max(0, length - scores.window)
        seen = slice(start, length)
        out.append(
            _attend_one(q[i : i + 1], keys[row, seen], values[row, seen], Scores(scores.scale, None, scores.soft_cap))
        )
    return torch.cat(out)
