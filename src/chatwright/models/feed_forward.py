"""The gated feed-forward block: down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import nn

from chatwright.models.config import DecoderConfig
from chatwright.models.elementwise import gated
from chatwright.models.few_rows import linear, project
from chatwright.models.joined import Joined, join


class FeedForward(nn.Module):
    """SwiGLU or its GELU form; parameter names are Hugging Face's (`gate_proj`, `up_proj`, `down_proj`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.joined: Joined | None = None

    def join_projections(self) -> None:
        """Make gate and up one product where no gradient is wanted; see `joined`."""
        self.joined = join((self.gate_proj, self.up_proj))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, hidden]` → `[T, hidden]`."""
        joined = None if torch.is_grad_enabled() else self.joined
        if joined is not None and joined.holds((self.gate_proj, self.up_proj)):
            gate, up = linear(x, joined.weight, joined.bias).split(self.gate_proj.out_features, dim=-1)
        else:
            gate, up = project(self.gate_proj, x), project(self.up_proj, x)
        return project(self.down_proj, gated(gate, up, self.activation))
