"""One walk over the rows of a batch, a chunk of logits at a time: losses, and gradients if wanted.

N rows, D hidden size, V vocabulary, C rows in a chunk, R trained rows.
Softmax, losses and accumulated gradients are float32 (float64 for float64 hidden states).
Low-precision hidden states enter the matrix products as they are; the weight gradient of a chunk is added
to the float32 sum inside the product (oneDNN in bf16 mode on the CPU), so no `[V, D]` copy is made per chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from chatwright.models.output_head import OutputHead

ROWS_MULTIPLE = 32
"""Chunks are cut at multiples of this: the tile height of matrix units."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which gradients a pass makes; with none of them it only computes losses."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    row_weights: bool = False

    @property
    def any(self) -> bool:
        """Whether there is any gradient to make."""
        return self.hidden or self.weight or self.bias or self.row_weights


@dataclass(slots=True)
class Gradients:
    """Gradients of Σ weights · loss; None for what was not wanted."""

    hidden: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    row_weights: torch.Tensor | None = None


def rows_per_chunk(num_rows: int, bytes_per_row: int, chunk_bytes: int) -> int:
    """How many rows fit in the budget: at least 1, a multiple of `ROWS_MULTIPLE` where that many fit."""
    fit = max(1, chunk_bytes // max(1, bytes_per_row))
    if fit > ROWS_MULTIPLE:
        fit -= fit % ROWS_MULTIPLE
    return max(1, min(num_rows, fit))


class ChunkedPass:
    """Losses and gradients of detached hidden states under a detached head.

    Args:
        hidden: `[N, D]`.
        head: the output head; `head.rows` are replaced by `head.row_weights`.
        targets: int64 `[N]`.
        wanted: the gradients to make.
    """

    def __init__(self, hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor, wanted: Wanted) -> None:
        self.math = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        on_cpu = hidden.device.type == "cpu"
        # float16 products are slow on CPUs; bf16 ones are what matrix units are made for.
        product = self.math if on_cpu and hidden.dtype == torch.float16 else hidden.dtype
        self.hidden = hidden.to(product)
        self.weight = head.weight.to(product)
        self.row_weights = None if head.row_weights is None or head.rows is None else head.row_weights.to(product)
        self.bias = None if head.bias is None else head.bias.to(self.math)
        self.head, self.targets, self.wanted = head, targets, wanted
        self.low_precision = product != self.math

    def run(self, weights: torch.Tensor | None, chunk_bytes: int) -> tuple[torch.Tensor, Gradients]:
        """Walk all rows.

        Args:
            weights: `[N]`, the factor of each row's loss in the gradients; None when no gradient is wanted.
            chunk_bytes: budget for a chunk's buffers.

        Returns:
            The unweighted losses `[N]` and the gradients of Σ weights · loss.
        """
        num_rows, vocab = self.hidden.shape[0], self.weight.shape[0]
        size = torch.finfo(self.math).bits // 8
        buffers = size + (2 if self.low_precision else 0) + (size if self.head.soft_cap is not None else 0)
        rows = rows_per_chunk(num_rows, vocab * buffers, chunk_bytes)
        nll = self.hidden.new_empty(num_rows, dtype=self.math)
        gradients = self._zero_gradients()
        logits = self.hidden.new_empty(rows, vocab, dtype=self.math)
        low = self.hidden.new_empty(rows, vocab) if self.low_precision else None
        for start in range(0, num_rows, rows):
            part = slice(start, min(start + rows, num_rows))
            count = part.stop - start
            low_part = None if low is None else low[:count]
            z, slope = self._logits(self.hidden[part], logits[:count], low_part)
            nll[part] = _softmax_and_loss(z, self.targets[part])
            if self.wanted.any:
                assert weights is not None
                self._add_gradients(part, z, slope, weights[part], low_part, gradients)
        if gradients.weight is not None and self.head.weight.dtype == torch.bfloat16:
            gradients.weight = gradients.weight.to(torch.bfloat16)  # same range as float32: safe before scaling
        return nll, gradients

    def _zero_gradients(self) -> Gradients:
        wanted, head = self.wanted, self.head
        bias, row_weights = head.bias, head.row_weights
        return Gradients(
            hidden=torch.zeros_like(self.hidden, dtype=self.math) if wanted.hidden else None,
            weight=torch.zeros_like(head.weight, dtype=self.math) if wanted.weight else None,
            bias=torch.zeros_like(bias, dtype=self.math) if wanted.bias and bias is not None else None,
            row_weights=torch.zeros_like(row_weights, dtype=self.math)
            if wanted.row_weights and row_weights is not None
            else None,
        )

    def _logits(
        self, hidden: torch.Tensor, out: torch.Tensor, low: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits `[C, V]` in `out`, and d logits / d (scale · linear) `[C, V]` where a soft cap bends them."""
        z = _product_into(hidden, self.weight.t(), out, low)
        if self.bias is not None:
            z.add_(self.bias)
        if self.row_weights is not None:
            assert self.head.rows is not None
            trained = torch.mm(hidden, self.row_weights.t()).to(self.math)  # [C, R]
            if self.bias is not None:
                trained += self.bias[self.head.rows]
            z.index_copy_(1, self.head.rows, trained)
        cap = self.head.soft_cap
        if cap is None:
            return (z if self.head.scale == 1.0 else z.mul_(self.head.scale)), None
        z.mul_(self.head.scale / cap).tanh_()
        slope = torch.square(z).neg_().add_(1.0) if self.wanted.any else None
        return z.mul_(cap), slope

    def _add_gradients(
        self,
        part: slice,
        probs: torch.Tensor,
        slope: torch.Tensor | None,
        weights: torch.Tensor,
        low: torch.Tensor | None,
        gradients: Gradients,
    ) -> None:
        """Add one chunk. Row weights and scale go to the `[C, D]` side, never over `[C, V]`."""
        hot = self.targets[part, None]
        probs.scatter_(1, hot, probs.gather(1, hot) - 1.0)
        if slope is not None:
            probs.mul_(slope)
        factor = (weights.to(self.math) * self.head.scale)[:, None]  # [C, 1]
        scaled_hidden = self.hidden[part].to(self.math) * factor  # [C, D]
        if gradients.bias is not None:
            gradients.bias.add_(torch.mv(probs.t(), factor[:, 0]))
        if self.row_weights is not None:
            self._add_trained_rows(part, probs, factor, scaled_hidden, gradients)
        if gradients.hidden is not None:
            probs_low = probs if low is None else low.copy_(probs)
            gradients.hidden[part] += torch.mm(probs_low, self.weight).to(self.math).mul_(factor)
        if gradients.weight is not None:
            if self.low_precision and probs.device.type == "cuda":
                low_probs = probs.to(self.hidden.dtype)
                low_hidden = scaled_hidden.to(self.hidden.dtype)
                gradients.weight.add_(torch.mm(low_probs.t(), low_hidden, out_dtype=self.math))
            else:
                with _bf16_products(self.hidden.dtype):
                    gradients.weight.addmm_(probs.t(), scaled_hidden)

    def _add_trained_rows(
        self, part: slice, probs: torch.Tensor, factor: torch.Tensor, scaled_hidden: torch.Tensor, gradients: Gradients
    ) -> None:
        """Move the gradient of the replaced columns from the base weight to the trained rows."""
        rows, row_weights = self.head.rows, self.row_weights
        assert rows is not None and row_weights is not None
        trained = probs.index_select(1, rows)  # [C, R]
        if gradients.row_weights is not None:
            gradients.row_weights.addmm_(trained.t(), scaled_hidden)
        if gradients.hidden is not None:
            gradients.hidden[part] += torch.mm(trained, row_weights.to(self.math)).mul_(factor)
        probs.index_fill_(1, rows, 0.0)


def _softmax_and_loss(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Turn logits `[C, V]` into probabilities in place; returns the loss of each row `[C]`.

    Four streaming passes; `torch.logsumexp` and `softmax` together cost three times as much (bench/loss.py).
    """
    largest = z.amax(dim=-1, keepdim=True)  # [C, 1]
    target = z.gather(1, targets[:, None])  # [C, 1]
    z.sub_(largest).exp_()
    total = z.sum(dim=-1, keepdim=True)  # [C, 1]
    z.mul_(total.reciprocal())
    return (total.log() - (target - largest)).squeeze(1)


def _product_into(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
    """`left @ right` in `out`, accumulated in float32; low-precision CPU products are rounded once."""
    if low is None:
        return torch.mm(left, right, out=out)
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(left, right, out=low))


@contextmanager
def _bf16_products(dtype: torch.dtype) -> Iterator[None]:
    """Let float32 CPU products of bf16-precise operands run on bf16 matrix units (no effect without them)."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
