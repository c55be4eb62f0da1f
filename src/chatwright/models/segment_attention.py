"""Which attention kernel runs where, and those that work segment by segment: never a T × T mask.

T flat tokens · L one segment's tokens · H query heads · G key/value heads · D head_dim.

The rule, measured with `bench/attention.py` (SmolLM2-135M shapes, T = 2,048, forward + backward, ms a layer on one
thread of a 2-core AMX machine, torch 2.13):

    segment lengths     flash bf16   flash float32   blocks bf16   flash bf16, forward alone
    mixed 30–500              61.9            40.6          27.9         8.5
    64 × 32                   49.0            11.0           7.1         2.5
    32 × 64                   52.5            17.6          11.5         2.7
    16 × 128                  58.1            26.5          19.0         3.5
    8 × 256                   47.4            41.4          26.4         5.6
    4 × 512                   62.0            73.1          50.2         9.0
    2 × 1,024                 74.2           105.0          85.3        13.6

Hence: bf16 training on a CPU goes through blocks unless a segment is longer than `BLOCKS_UP_TO` tokens; all else on a
CPU goes through flash (`F.scaled_dot_product_attention`), which takes grouped heads without repeating them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout
from chatwright.models.block_attention import block_attention
from chatwright.models.block_plan import plan_blocks
from chatwright.models.varlen_attention import can_run_varlen, varlen_attention

BLOCKS_UP_TO = 768
"""Tokens; beyond, blocks are no faster than flash and keep more memory (2 bytes a score)."""


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
    if q.is_cuda and can_run_varlen(q, scores.soft_cap):
        return varlen_attention(q, k, v, layout, scores.scale, scores.window)
    whole = _whole_segments(layout)
    if not _blocks_are_faster(q, layout.lengths_k[:whole], scores):
        return attend_runs(q, k, v, layout, scores)
    lengths = layout.lengths_q[:whole]
    tokens, window = sum(lengths), scores.window
    plan = plan_blocks(lengths, q.shape[1], k.shape[1], window if window and window < max(lengths) else None)
    if whole == layout.num_segments:
        return block_attention(q, k, v, plan, scores.scale)
    first = block_attention(q[:tokens], k[:tokens], v[:tokens], plan, scores.scale)
    rest = SegmentLayout.from_lengths(layout.lengths_q[whole:], layout.lengths_k[whole:])
    return torch.cat([first, attend_runs(q[tokens:], k[tokens:], v[tokens:], rest, scores)])


def _whole_segments(layout: SegmentLayout) -> int:
    """How many segments at the beginning hold all of their keys; those behind them share a prefix with others."""
    if layout.lengths_q == layout.lengths_k:
        return layout.num_segments
    pairs = enumerate(zip(layout.lengths_q, layout.lengths_k, strict=True))
    return next(place for place, (num_q, num_k) in pairs if num_q != num_k)


def _blocks_are_faster(q: torch.Tensor, lengths: tuple[int, ...], scores: Scores) -> bool:
    """The measured rule of this file's head, for whole segments of these lengths."""
    trains = torch.is_grad_enabled() and q.requires_grad and q.dtype is torch.bfloat16 and q.device.type == "cpu"
    return trains and scores.soft_cap is None and 0 < max(lengths, default=0) <= BLOCKS_UP_TO


def attend_runs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout, scores: Scores
) -> torch.Tensor:
    """The same through torch's own kernels: one call for each run of neighbours with equal lengths."""
    runs = [(lengths, len(list(run))) for lengths, run in groupby(zip(layout.lengths_q, layout.lengths_k, strict=True))]
    sizes_k = [num_k * n for (_, num_k), n in runs]
    q_parts = q.split([num_q * n for (num_q, _), n in runs])
    parts = zip(q_parts, k.split(sizes_k), v.split(sizes_k), runs, strict=True)
    out = [_attend_equal(q_, k_, v_, n, scores) for q_, k_, v_, (_, n) in parts if q_.shape[0]]
    return torch.cat(out) if out else q.clone()


def _attend_equal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n: int, scores: Scores) -> torch.Tensor:
    """n segments of one length: `[n · Lq, H, D]`, `[n · Lk, G, D]` → `[n · Lq, H, D]`."""
    q, k, v = (x.unflatten(0, (n, -1)).transpose(1, 2) for x in (q, k, v))  # [n, H, L, D]
    num_q, num_k = q.shape[2], k.shape[2]
    mask = None
    if num_q != num_k or (scores.window is not None and scores.window < num_k) or scores.soft_cap is not None:
        mask = visible(num_q, num_k, scores.window, q.device)
    return scaled_attention(q, k, v, mask, scores).transpose(1, 2).flatten(0, 1)


def scaled_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """`[B, H, Lq, D]`, `[B, G, Lk, D]` → `[B, H, Lq, D]`; no mask means causal."""
    if scores.soft_cap is not None:
        return capped_attention(q, k, v, mask, scores)
    causal, grouped = mask is None and q.shape[2] > 1, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scores.scale, enable_gqa=grouped
    )


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
