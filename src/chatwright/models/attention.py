"""Attention over flat segments: projections, rotation, and the choice of a kernel.

T flat tokens · H query heads · G key/value heads · D head_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.cached_attention import CacheView, attend_cached
from chatwright.models.compact_linear import added
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import apply_rope
from chatwright.models.norm import RMSNorm
from chatwright.models.segment_attention import Scores, attend_segments


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; parameter names are Hugging Face's.

    Attributes:
        qkv_proj: stands for `q_proj`, `k_proj` and `v_proj` in a model that only generates (`generation_weights`).
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
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
        self.qkv_proj: nn.Module | None = None
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(config, config.head_dim), RMSNorm(config, config.head_dim)
        self.norm_last = config.qk_norm_last

    def forward(
        self,
        x: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        layout: SegmentLayout,
        view: CacheView | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `residual` if given; `tables` are cos and sin (`Rope.tables`)."""
        q, k, v = self._project(x, tables) if self.qkv_proj is None else self._project_at_once(x, tables, self.qkv_proj)
        mixed = self._attend(q, k, v, layout) if view is None else attend_cached(q, k, v, view, self.layer, self.scores)
        return added(self.o_proj, mixed.flatten(-2), residual)

    def _project(
        self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[T, hidden]` → `[T, H, D]`, `[T, G, D]`, `[T, G, D]`, queries and keys normalized and rotated."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return self._place(q, self.q_norm, tables), self._place(k, self.k_norm, tables), v

    def _project_at_once(
        self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], qkv_proj: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same in one product."""
        heads = qkv_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, H + 2 G, D]
        num_q, num_kv = self.num_heads, self.num_kv_heads
        if self.q_norm is not None and self.q_norm.weight is not None:
            q, k, v = heads.split((num_q, num_kv, num_kv), dim=1)
            return self._place(q, self.q_norm, tables), self._place(k, self.k_norm, tables), v
        placed = self._place(heads[:, : num_q + num_kv], self.q_norm, tables)
        return placed[:, :num_q], placed[:, num_q:], heads[:, num_q + num_kv :]

    def _place(
        self, heads: torch.Tensor, norm: RMSNorm | None, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Queries or keys `[T, heads, D]` normalized and rotated, in the family's order."""
        if norm is None:
            return apply_rope(heads, *tables)
        out: torch.Tensor = norm(apply_rope(heads, *tables)) if self.norm_last else apply_rope(norm(heads), *tables)
        return out

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
        if layout.kv_gather is not None:
            k, v = k.index_select(0, layout.kv_gather), v.index_select(0, layout.kv_gather)
        return attend_segments(q, k, v, layout, self.scores)
