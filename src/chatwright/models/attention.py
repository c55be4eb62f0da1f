"""Attention over flat segments: projections, rotation, and the choice of a kernel.

T flat tokens · H query heads · G key/value heads · D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import apply_rope
from chatwright.models.kv_cache import KVCache
from chatwright.models.norm import RMSNorm
from chatwright.models.segment_attention import Scores, attend_decode, attend_segments


@dataclass(frozen=True, slots=True)
class CacheView:
    """The cache of one pass, and the row of each segment."""

    cache: KVCache
    rows: tuple[int, ...]


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; parameter names are Hugging Face's."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.scores = Scores(config.attention_scale, config.layer_windows[layer], config.attention_soft_cap)
        hidden, q_size, kv_size = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(hidden, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=config.o_bias)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_plus_one)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_plus_one)

    def forward(
        self,
        x: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        layout: SegmentLayout,
        view: CacheView | None = None,
    ) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`; `tables` are cos and sin `[T, D/2]`."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, H, D]
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, G, D]
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, G, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *tables), apply_rope(k, *tables)
        mixed = self._attend(q, k, v, layout) if view is None else self._attend_cached(q, k, v, layout.lengths_q, view)
        return self.o_proj(mixed.flatten(-2))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
        if layout.kv_gather is not None:
            k, v = k.index_select(0, layout.kv_gather), v.index_select(0, layout.kv_gather)
        return attend_segments(q, k, v, layout, self.scores)

    def _attend_cached(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths_q: Sequence[int], view: CacheView
    ) -> torch.Tensor:
        """Append to the cache, then let each segment's tokens see their whole row."""
        cache, rows = view.cache, view.rows
        cache.append(self.layer, rows, lengths_q, k, v)
        past = [cache.lengths[row] for row in rows]
        if not any(past):  # a prefill: the row is the segment
            return attend_segments(q, k, v, SegmentLayout.from_lengths(lengths_q, device=q.device), self.scores)
        lengths = [before + new for before, new in zip(past, lengths_q, strict=True)]
        keys, values = cache.keys[self.layer], cache.values[self.layer]
        if all(new == 1 for new in lengths_q):
            return attend_decode(q, keys, values, rows, lengths, self.scores)
        k = torch.cat([keys[row, :length] for row, length in zip(rows, lengths, strict=True)])
        v = torch.cat([values[row, :length] for row, length in zip(rows, lengths, strict=True)])
        return attend_segments(q, k, v, SegmentLayout.from_lengths(lengths_q, lengths, q.device), self.scores)
