"""A linear layer with a low-rank update beside its frozen weight.

T tokens · r rank. `weight` and `bias` keep their names: base parameters are called the same with or without it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class LoraLinear(nn.Linear):
    """y = x Wᵀ + b + scale · (dropout(x) Aᵀ) Bᵀ.

    Dropout draws from torch's generator, which the trainer seeds from (seed, step, pack) before each pack:
    nothing needs to be saved for an exact resume.

    Args:
        base: the layer to adapt; its parameters are taken over (shared, not copied) and frozen.
        rank: r. alpha: strength; scale is alpha/r, or alpha/√r with `rslora`.
        dropout: probability.

    Attributes:
        lora_A: `[r, in]`, lora_B: `[out, r]`, both 0 until `init_adapter` or loading.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, *, rslora: bool = False, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for parameter in (base.weight, base.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        self.alpha, self.rslora, self.dropout = alpha, rslora, dropout
        self.lora_A = nn.Parameter(self.weight.new_zeros(rank, self.in_features, dtype=self.adapter_dtype))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank, dtype=self.adapter_dtype))
        self.training = base.training

    @property
    def rank(self) -> int:
        """r, the width of the bottleneck."""
        return self.lora_A.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The dtype of A and B: the weight's."""
        return self.weight.dtype

    @property
    def learnable(self) -> bool:
        """Whether training can begin: with A = B = 0 each one's gradient is a product with the other, and so zero."""
        return bool(self.lora_A.any()) or bool(self.lora_B.any())

    def frozen_weight(self) -> torch.Tensor:
        """`[out, in]`, the weight beside which the adapter stands."""
        return self.weight

    def base_product(self, input: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]` without the adapter."""
        return F.linear(input, self.weight, self.bias)

    @torch.no_grad()
    def init_adapter(self, seed: int) -> None:
        """A uniform in ±1/√in (peft's kaiming_uniform with a = √5), B zero: the update starts as exactly nothing.

        B is the one to be zero: its gradient is dyᵀ (x Aᵀ), not zero from the first step on. Zero A and random B would
        start as nothing, too; with both zero, neither would ever get a gradient.
        """
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(self.lora_A.shape, generator=generator) * 2.0 - 1.0
        self.lora_A.copy_(uniform / math.sqrt(self.in_features))
        self.lora_B.zero_()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[T, in]` → `[T, out]`."""
        x = F.dropout(input, self.dropout, self.training) if self.dropout else input
        narrow = F.linear(x, self.lora_A) * self.scale  # [T, r]
        return self.base_product(input) + F.linear(narrow, self.lora_B)

    @torch.no_grad()
    def merged(self) -> tuple[nn.Linear, float]:
        """A plain layer with the update added to its weight, and the share of the update that rounding lost.

        The sum is made in float64 and rounded once to the weight's dtype.
        """
        wide = self.weight.device.type != "mps"
        exact = torch.float64 if wide else torch.float32
        update = (self.lora_B.to(exact) @ self.lora_A.to(exact)) * self.scale  # [out, in]
        total = self.weight.to(exact) + update
        stored = total.to(self.weight.dtype)
        size = update.norm().item()
        lost = (stored.to(exact) - total).norm().item() / size if size > 0 else 0.0
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(stored, requires_grad=False), self.bias
        plain.training = self.training
        return plain, lost

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"
