"""Linear layers for a model that only generates: weights laid out once as the kernels read them, or held in int8.

B rows · I inputs · O outputs. `F.linear` hands oneDNN a plain weight, which it lays out anew at every call; with few
rows that takes longer than the product. Measured (two threads of a 2-core AVX-512 machine without AMX, torch 2.13,
3,072 × 576, µs a call, plain / packed / int8): bf16 1 row 208 / 131 / 99, 4 rows 239 / 118 / 171, 32 rows
452 / 328 / 933, 256 rows 2,231 / 2,114; float32 1 row 584 / 274, 32 rows 1,130 / 611.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

INT8_ROWS = 2
"""Rows of bf16 up to which the int8 kernel is faster than making the weight plain and multiplying."""


class PackedLinear(nn.Module):
    """x Wᵀ + b with W in oneDNN's layout; has no parameters.

    Args:
        weight: `[O, I]`, bf16 or float32, on a CPU. bias: `[O]` or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self.run: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default
        self.run_with: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.binary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, I]` → `[B, O]`."""
        return self.run(x, self.weight, self.bias, "none", [], "")

    __call__ = forward  # no hooks: torch's own call takes longer than a small product's overhead

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + x Wᵀ + b in one call: `[B, O]`, `[B, I]` → `[B, O]`."""
        return self.run_with(x, residual, self.weight, self.bias, "add")


class Int8Linear(nn.Module):
    """x Wᵀ + b with W in int8 and a scale an output (round to nearest of W · 127 / max |row|); has no parameters.

    Args:
        weight: `[O, I]`, bf16 or float32, on a CPU. bias: `[O]` or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with torch.no_grad():
            wide = weight.detach().float()
            largest = wide.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12)  # [O, 1]
            self.scales = (largest[:, 0] / 127.0).to(weight.dtype)  # [O]
            self.numbers = (wide / self.scales[:, None].float()).round_().clamp_(-127, 127).to(torch.int8)  # [O, I]
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, I]` → `[B, O]`."""
        if x.dtype is torch.bfloat16 and x.shape[0] <= INT8_ROWS:
            out = torch._weight_int8pack_mm(x, self.numbers, self.scales)
        else:
            out = F.linear(x, self.numbers.to(x.dtype)).mul_(self.scales)
        return out if self.bias is None else out + self.bias


def added(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """residual + layer(x), in one call where the layer can; layer(x) alone without a residual."""
    if residual is None:
        out: torch.Tensor = layer(x)
        return out
    return layer.added_to(residual, x) if isinstance(layer, PackedLinear) else residual + layer(x)
