"""The feed-forward block: gated, down(activation(gate(x)) · up(x)) (Shazeer 2020), or plain, fc2(max(fc1(x), 0)²)."""

from __future__ import annotations

import torch
from torch import nn

from chatwright.models.compact_linear import added
from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import gated, squared_relu


class FeedForward(nn.Module):
    """SwiGLU or its GELU form; parameter names are Hugging Face's (`gate_proj`, `up_proj`, `down_proj`).

    Args:
        intermediate_size: the inner size where it isn't the config's own (an expert's).

    Attributes:
        gate_up_proj: stands for `gate_proj` and `up_proj` in a model that only generates (`generation_weights`).
    """

    PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, config: DecoderConfig, intermediate_size: int | None = None) -> None:
        super().__init__()
        inner = intermediate_size or config.intermediate_size
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.gate_up_proj: nn.Module | None = None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `residual` if given."""
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return added(self.down_proj, gated(gate, up, self.activation), residual)


class PlainFeedForward(nn.Module):
    """Two layers with a squared ReLU between them (So et al. 2021), named as in transformers' NanoChat."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `residual` if given."""
        return added(self.fc2, squared_relu(self.fc1(x)), residual)
