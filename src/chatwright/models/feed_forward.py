"""The gated feed-forward block: down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import nn

from chatwright.models.compact_linear import added
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import gated


class FeedForward(nn.Module):
    """SwiGLU or its GELU form; parameter names are Hugging Face's (`gate_proj`, `up_proj`, `down_proj`).

    Attributes:
        gate_up_proj: stands for `gate_proj` and `up_proj` in a model that only generates (`generation_weights`).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.gate_up_proj: nn.Module | None = None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `residual` if given."""
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return added(self.down_proj, gated(gate, up, self.activation), residual)
