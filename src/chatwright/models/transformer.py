"""The decoder: token ids in, hidden states out.

T flat tokens · D hidden size. Knows no loss, no optimizer, no path and no template. It computes in the dtype of its
parameters; nothing here looks at the device. Parameter names are exactly Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from chatwright.layouts import SegmentLayout
from chatwright.models.attention import Attention
from chatwright.models.cached_attention import CacheView
from chatwright.models.compact_linear import Int8Linear, PackedLinear
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import whole_tables
from chatwright.models.embedding import TokenEmbedding
from chatwright.models.feed_forward import FeedForward, PlainFeedForward
from chatwright.models.kv_cache import KVCache
from chatwright.models.moe import EXPERT_COUNTS, ROUTER_PROBS, MoeFeedForward, Routing
from chatwright.models.norm import RMSNorm
from chatwright.models.output_head import OutputHead
from chatwright.models.rope import Rope

Tables = tuple[torch.Tensor, torch.Tensor]


class DecoderLayer(nn.Module):
    """Attention and feed-forward with their norms around a residual stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config, config.hidden_size)

        self.sandwich = config.sandwich_norms
        self.self_attn = Attention(config, layer)
        sparse = config.moe is not None and layer in config.moe.layers
        self.block_name = config.moe.spelling.value if config.moe is not None and sparse else "mlp"
        dense = FeedForward if config.gated else PlainFeedForward
        self.add_module(self.block_name, MoeFeedForward(config) if sparse else dense(config))
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        if self.sandwich:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()

    def forward(
        self, x: torch.Tensor, tables: Tables, layout: SegmentLayout, view: CacheView | None
    ) -> tuple[torch.Tensor, Routing | None]:
        """`[T, D]` → `[T, D]`, and what the router did where the layer has experts and a gradient is wanted."""
        h = self.input_layernorm(x)
        if not self.sandwich:
            x = self.self_attn(h, tables, layout, view, residual=x)
            return self._feed_forward(self.post_attention_layernorm(x), layout, residual=x)
        x = x + self.post_attention_layernorm(self.self_attn(h, tables, layout, view))
        out, routing = self._feed_forward(self.pre_feedforward_layernorm(x), layout, residual=None)
        return x + self.post_feedforward_layernorm(out), routing

    def _feed_forward(
        self, h: torch.Tensor, layout: SegmentLayout, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, Routing | None]:
        block: Any = getattr(self, self.block_name)
        if isinstance(block, MoeFeedForward):
            out, routing = block(h, layout, residual)
            return out, routing
        return block(h, residual=residual), None


class Decoder(nn.Module):
    """Embedding, layers and final norm (Hugging Face's `model.` prefix)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config, config.hidden_size)


class CausalLM(nn.Module):
    """A decoder-only language model over flat segments.

    Attributes:
        config: its shapes; replaced by `weights.resize_vocab`.
        checkpoint_activations: recompute each layer in the backward instead of keeping its activations.
        packed_head: multiplies by the output embedding in a model that only generates (`generation_weights`).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.ropes = tuple(Rope(rope, config.head_dim, config.max_positions) for rope in config.ropes)
        self.model = Decoder(config)
        self.packed_head: PackedLinear | Int8Linear | None = None
        self.lm_head: nn.Linear | None = None
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        layout: SegmentLayout,
        cache: KVCache | None = None,
        cache_rows: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Hidden states after the final norm; `output_head()` turns them into logits.

        Args:
            input_ids: int64 `[T]`. position_ids: int64 `[T]`, 0 at each segment's first token.
            layout: the segments. With a cache only `lengths_q` is read: the new tokens of each row.
            cache: earlier tokens; the new ones are appended to it. No gradient flows with a cache.
            cache_rows: for each segment its row in the cache.

        Returns:
            hidden `[T, D]`, and sums for auxiliary losses by name: `moe.Routing` stacked over the layers with experts
            where a gradient is wanted; none in a dense model, without a gradient, and with a cache.

        Raises:
            ModelError: if a cache row overflows, or a segment is too long for a dynamic rotary embedding.
        """
        if cache is None:
            self._check_lengths(layout.lengths_k)
            hidden, routings = self._run(input_ids, position_ids, layout, None)
            return hidden, _stacked(routings)
        rows = tuple(cache_rows if cache_rows is not None else range(layout.num_segments))
        cache.check_room(rows, layout.lengths_q)
        self._check_lengths([cache.lengths[row] + new for row, new in zip(rows, layout.lengths_q, strict=True)])
        with torch.no_grad():
            hidden, _ = self._run(input_ids, position_ids, layout, CacheView(cache, rows, layout.lengths_q))
        cache.advance(rows, layout.lengths_q)
        return hidden, {}

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        for rope in self.ropes:
            rope.check_length(max(lengths, default=0))

    def _run(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, layout: SegmentLayout, view: CacheView | None
    ) -> tuple[torch.Tensor, list[Routing]]:
        x = self.model.embed_tokens(input_ids)  # [T, D]
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device=x.device)
        if self.config.embed_norm:
            x = self.model.norm(x)
        tables = [rope.tables(position_ids, x.dtype) for rope in self.ropes]
        if view is not None:
            tables = [whole_tables(*pair) for pair in tables]
        routings: list[Routing] = []
        for layer, index in zip(self.model.layers, self.config.layer_ropes, strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, routing = checkpoint(layer, x, tables[index], layout, view, use_reentrant=False)
            else:
                x, routing = layer(x, tables[index], layout, view)
            if routing is not None:
                routings.append(routing)
        return self.model.norm(x), routings

    @property
    def max_positions(self) -> int:
        """Tokens of its context."""
        return self.config.max_positions

    def cache_token_bytes(self) -> int:
        """Memory for the keys and values of one token."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.model.embed_tokens.weight.itemsize

    def new_cache(self, num_rows: int, capacity: int) -> KVCache:
        """An empty cache in the model's dtype and on its device."""
        weight = self.model.embed_tokens.weight
        return KVCache(self.config, num_rows, capacity, weight.dtype, weight.device)

    def output_head(self) -> OutputHead:
        """What makes logits of the hidden states; trained token rows (adapters) stand in for the rows they replace."""
        owner = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return OutputHead(
            owner.weight,
            soft_cap=self.config.final_soft_cap,
            rows=getattr(owner, "token_ids", None),
            row_weights=getattr(owner, "token_rows", None),
            compact=self.packed_head,
        )

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
        """`[T, V]`: the naive form, for tests and small inputs."""
        return self.output_head().logits(self(input_ids, position_ids, layout)[0])


def _stacked(routings: list[Routing]) -> dict[str, torch.Tensor]:
    """The layers' sums by name, each `[M, S, E]`."""
    if not routings:
        return {}
    counts, probs = zip(*routings, strict=True)
    return {EXPERT_COUNTS: torch.stack(counts), ROUTER_PROBS: torch.stack(probs)}
