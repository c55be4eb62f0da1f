"""Mixture of experts: a router sends each token to k of E feed-forward blocks (Shazeer et al. 2017).

T flat tokens · D hidden size · E experts · k experts a token · N = T · k rows · S segments. Parameter names are those
of Hugging Face's files, a module an expert: adapters, optimizers and packed weights see plain linear layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.compact_linear import added
from chatwright.models.config import DecoderConfig, ExpertSpelling
from chatwright.models.elementwise import gated
from chatwright.models.expert_dispatch import Dispatch, grouped_linear, has_grouped_kernel, segment_sums
from chatwright.models.feed_forward import FeedForward

EXPERT_COUNTS, ROUTER_PROBS = "expert_counts", "router_probs"
"""What a model with experts returns beside its hidden states: both `[M, S, E]`, M layers with experts (`Routing`)."""


class Routing(NamedTuple):
    """What one layer's router did, in sums a segment, all that load-balance losses need.

    Args:
        counts: `[S, E]`, without a graph: how many of the segment's tokens chose each expert.
        probs: `[S, E]`, with a graph: the segment's router probabilities, added up.
    """

    counts: torch.Tensor
    probs: torch.Tensor


class Router(nn.Module):
    """Probabilities of the experts, in float32 at least, and the choice of k; not a linear layer that adapters see."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.top_k = config.moe.experts_per_token
        self.norm_weights = config.moe.norm_weights
        self.weight = nn.Parameter(torch.empty(config.moe.num_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[T, D]` → probabilities `[T, E]`; the chosen experts' weights `[T, k]` and numbers, int64 `[T, k]`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        probs = F.linear(x, self.weight).softmax(-1, dtype=wide)
        weights, chosen = probs.topk(self.top_k, dim=-1)
        if self.norm_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        return probs, weights, chosen


class MixtralExpert(nn.Module):
    """A gated feed-forward block by Mixtral's names: w1 is the gate, w3 goes up, w2 down."""

    PROJECTIONS = ("w1", "w3", "w2")

    def __init__(self, config: DecoderConfig, intermediate_size: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.w1 = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.gate_up_proj: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, D]` → `[rows, D]`."""
        gate, up = (self.w1(x), self.w3(x)) if self.gate_up_proj is None else self.gate_up_proj(x).chunk(2, dim=-1)
        return added(self.w2, gated(gate, up, self.activation), None)


class MoeFeedForward(nn.Module):
    """Router, experts, and those that every token shares, in place of a feed-forward block."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        kind: Any = MixtralExpert if moe.spelling is ExpertSpelling.BLOCK_SPARSE_MOE else FeedForward
        self.gate = Router(config)
        self.experts = nn.ModuleList(kind(config, moe.intermediate_size) for _ in range(moe.num_experts))
        if moe.num_shared:
            self.shared_experts = nn.ModuleList(FeedForward(config) for _ in range(moe.num_shared))
        self.activation, self.inner_size = config.activation, moe.intermediate_size
        self.num_shared = moe.num_shared

    def forward(
        self, x: torch.Tensor, layout: SegmentLayout, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Routing | None]:
        """`[T, D]` → `[T, D]`, added to `residual` if given; and the routing's sums where a gradient is wanted."""
        probs, weights, chosen = self.gate(x)
        dispatch = Dispatch.of(chosen, len(self.experts))
        out = dispatch.combined(self._through_experts(dispatch.rows(x), dispatch.counts), weights)
        if self.num_shared:
            for expert in self.shared_experts:
                out = out + expert(x)
        routing = _routing_sums(probs, chosen, layout) if torch.is_grad_enabled() else None
        return out if residual is None else residual + out, routing

    def _through_experts(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """`[N, D]` in expert order → `[N, D]`, each expert's own slice through it."""
        if has_grouped_kernel(rows, self.inner_size) and self._all_plain():
            return self.through_all_at_once(rows, counts)
        parts = rows.split(counts.tolist())
        if not torch.is_grad_enabled():
            used = [expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)]
            return torch.cat(used) if used else rows
        # With a gradient all take part: one without a token gets a gradient of zero, not none.
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])

    def through_all_at_once(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The same by one kernel a projection (`grouped_linear`)."""
        ends = counts.cumsum(0).to(torch.int32)
        gate, up, down = zip(*(self._projections(expert) for expert in self.experts), strict=True)
        inner = gated(
            grouped_linear(rows, ends, [layer.weight for layer in gate]),
            grouped_linear(rows, ends, [layer.weight for layer in up]),
            self.activation,
        )
        return grouped_linear(inner, ends, [layer.weight for layer in down])

    def _all_plain(self) -> bool:
        """Whether every projection is a linear layer of its own, without bias or adapter."""
        return all(
            type(layer) is nn.Linear and layer.bias is None
            for expert in self.experts
            for layer in self._projections(expert)
        )

    @staticmethod
    def _projections(expert: Any) -> tuple[Any, Any, Any]:
        gate, up, down = expert.PROJECTIONS
        return getattr(expert, gate), getattr(expert, up), getattr(expert, down)


def _routing_sums(probs: torch.Tensor, chosen: torch.Tensor, layout: SegmentLayout) -> Routing:
    """Add up `[T, E]` probabilities and choices a segment."""
    hit = torch.zeros_like(probs, requires_grad=False).scatter_(1, chosen, 1.0)  # [T, E]
    return Routing(segment_sums(hit, layout), segment_sums(probs, layout))
