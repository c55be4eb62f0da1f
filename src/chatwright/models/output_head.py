"""What turns hidden states into logits, handed to the losses and the sampler as one record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from chatwright.models.compact_linear import Int8Linear, PackedLinear


@dataclass(frozen=True, slots=True)
class OutputHead:
    """logits = soft_cap(scale · (hidden @ weightᵀ + bias)).

    Args:
        weight: `[V, D]`. bias: `[V]` or None.
        scale: multiplies the logits (1 for most families).
        soft_cap: c in `c · tanh(logits / c)`, or None.
        rows: int64 `[R]` or None: rows replaced by trained ones (token-row adapters).
        row_weights: `[R, D]`, the trained rows that stand in for `weight[rows]`.
        compact: multiplies by `weight` in a model that only generates, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    rows: torch.Tensor | None = None
    row_weights: torch.Tensor | None = None
    compact: PackedLinear | Int8Linear | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[N, D]` → `[N, V]` in the hidden dtype: the naive form; for small N (sampling, tests)."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        if self.compact is None:
            out = F.linear(hidden, self.weight.to(hidden.dtype), bias)
        else:
            out = self.compact(hidden) if bias is None else self.compact(hidden) + bias
        if self.rows is not None and self.row_weights is not None:
            trained = F.linear(hidden, self.row_weights.to(hidden.dtype))
            if self.bias is not None:
                trained = trained + self.bias[self.rows].to(hidden.dtype)
            out = out.index_copy(-1, self.rows, trained)
        if self.scale != 1.0:
            out = out * self.scale
        if self.soft_cap is not None:
            out = self.soft_cap * torch.tanh(out / self.soft_cap)
        return out
