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
from chatwright.models.few_rows import linear, project
from chatwright.models.joined import Joined, join
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
        self.joined: Joined | None = None
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
        joined = None if torch.is_grad_enabled() else self._joined()
        q, k, v = self._project(x, tables) if joined is None else self._project_at_once(x, tables, joined)
        mixed = self._attend(q, k, v, layout) if view is None else attend_cached(q, k, v, view, self.layer, self.scores)
        return project(self.o_proj, mixed.flatten(-2))

    def _project(
        self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[T, hidden]` → `[T, H, D]`, `[T, G, D]`, `[T, G, D]`, queries and keys normalized and rotated."""
        q = project(self.q_proj, x).unflatten(-1, (-1, self.head_dim))
        k = project(self.k_proj, x).unflatten(-1, (-1, self.head_dim))
        v = project(self.v_proj, x).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return apply_rope(q, *tables), apply_rope(k, *tables), v

    def _project_at_once(
        self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], joined: Joined
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same in one product."""
        heads = linear(x, joined.weight, joined.bias).unflatten(-1, (-1, self.head_dim))  # [T, H + 2 G, D]
        num_kv = self.k_proj.out_features // self.head_dim
        num_q = heads.shape[1] - 2 * num_kv
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = heads.split((num_q, num_kv, num_kv), dim=1)
            return apply_rope(self.q_norm(q), *tables), apply_rope(self.k_norm(k), *tables), v
        turned = apply_rope(heads[:, :-num_kv], *tables)
        return turned[:, :num_q], turned[:, num_q:], heads[:, -num_kv:]

    def join_projections(self) -> None:
        """Make q, k and v one product where no gradient is wanted; see `joined`."""
        self.joined = join((self.q_proj, self.k_proj, self.v_proj))

    def _joined(self) -> Joined | None:
        joined = self.joined
        return joined if joined is not None and joined.holds((self.q_proj, self.k_proj, self.v_proj)) else None

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
        if layout.kv_gather is not None:
            k, v = k.index_select(0, layout.kv_gather), v.index_select(0, layout.kv_gather)
        return attend_segments(q, k, v, layout, self.scores)
