"""Attention over flat segments: projections, rotation, and the choice of a kernel.

T flat tokens · H query heads · G key/value heads · D head_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.cached_attention import CacheView, attend_cached
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import apply_rope
from chatwright.models.few_rows import project
from chatwright.models.norm import RMSNorm
from chatwright.models.segment_attention import Scores, attend_segments


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
        q = project(self.q_proj, x).unflatten(-1, (-1, self.head_dim))  # [T, H, D]
        k = project(self.k_proj, x).unflatten(-1, (-1, self.head_dim))  # [T, G, D]
        v = project(self.v_proj, x).unflatten(-1, (-1, self.head_dim))  # [T, G, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *tables), apply_rope(k, *tables)
        mixed = self._attend(q, k, v, layout) if view is None else attend_cached(q, k, v, view, self.layer, self.scores)
        return project(self.o_proj, mixed.flatten(-2))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
        if layout.kv_gather is not None:
            k, v = k.index_select(0, layout.kv_gather), v.index_select(0, layout.kv_gather)
        return attend_segments(q, k, v, layout, self.scores)
