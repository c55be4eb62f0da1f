"""Cross-entropy straight from hidden states, in chunks of rows: the whole `[N, V]` logits never exist.

`weighted_nll` makes the gradient in the forward (each chunk's logits are needed once only);
`token_log_probs` is for objectives that don't know their weights yet, and recomputes in the backward.
Both walk the rows through `logit_chunks.ChunkedPass`. Sums, never means: the caller divides, once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from chatwright.losses.logit_chunks import ChunkedPass, Gradients, Wanted
from chatwright.losses.loss_sum import LossSum
from chatwright.models.output_head import OutputHead

CPU_CHUNK_BYTES = 64 * 2**20
"""Default budget of a chunk's logits on the CPU (measured: bench/loss.py)."""
ACCELERATOR_CHUNK_BYTES = 512 * 2**20
"""Default budget on an accelerator, where larger products fill the device."""


def weighted_nll(
    hidden: torch.Tensor,
    head: OutputHead,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    chunk_bytes: int | None = None,
) -> LossSum:
    """Σ weights · −log p(target), with gradients for hidden, head weight, bias and trained rows.

    Args:
        hidden: `[N, D]`, the hidden states of the supervised positions. Softmax and sums are float32
            (float64 for float64 hidden states); low precision enters only the matrix products.
        head: what makes the logits; a part that needs no gradient costs none.
        targets: int64 `[N]`, in `[0, V)`.
        weights: `[N]`, 0 for a token that must not train; no gradient flows to it.
        chunk_bytes: budget for one chunk's logits; None is 64 MiB on the CPU, 512 MiB elsewhere.

    Returns:
        The sum and its weight; `per_token` is the unweighted loss of each row. With N = 0 or all weights 0
        the total is exactly 0 and still has a graph.

    Raises:
        ValueError: if the shapes don't agree.
    """
    _check_shapes(hidden, head, targets, weights)
    on_host = weights.detach().cpu().double()
    grad = torch.is_grad_enabled()
    total, per_token = _WeightedNll.apply(
        hidden, head.weight, head.bias, head.row_weights, head, targets, weights.detach(), chunk_bytes, grad
    )
    return LossSum(
        total=total,
        weight=float(on_host.sum()),
        supervised_tokens=int((on_host > 0).sum()),
        per_token=per_token.float(),
    )


def token_log_probs(
    hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor, *, chunk_bytes: int | None = None
) -> torch.Tensor:
    """log p(target) of each row, `[N]`, differentiable; logits are recomputed chunk by chunk in the backward.

    Args:
        hidden: `[N, D]`.
        head: what makes the logits.
        targets: int64 `[N]`, in `[0, V)`.
        chunk_bytes: as in `weighted_nll`.

    Returns:
        float32 `[N]` (float64 for float64 hidden states).

    Raises:
        ValueError: if the shapes don't agree.
    """
    _check_shapes(hidden, head, targets, targets)
    result: torch.Tensor = _TokenLogProbs.apply(
        hidden, head.weight, head.bias, head.row_weights, head, targets, chunk_bytes
    )
    return result


def _check_shapes(hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor, weights: torch.Tensor) -> None:
    if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(f"hidden must be [N, {head.weight.shape[1]}], found {list(hidden.shape)}")
    if targets.shape != hidden.shape[:1] or weights.shape != hidden.shape[:1]:
        found = f"targets {list(targets.shape)} and weights {list(weights.shape)}"
        raise ValueError(f"hidden has {hidden.shape[0]} rows, but found {found}")


def _budget(hidden: torch.Tensor, chunk_bytes: int | None) -> int:
    if chunk_bytes is not None:
        return chunk_bytes
    return CPU_CHUNK_BYTES if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES


def _detached(head: OutputHead, *tensors: torch.Tensor | None) -> OutputHead:
    weight, bias, row_weights = (None if t is None else t.detach() for t in tensors)
    assert weight is not None
    return OutputHead(weight, bias, head.scale, head.soft_cap, head.rows, row_weights)


class _WeightedNll(torch.autograd.Function):
    """The gradient is made in the forward and kept until the backward, which only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        row_weights: torch.Tensor | None,
        head: OutputHead,
        targets: torch.Tensor,
        weights: torch.Tensor,
        chunk_bytes: int | None,
        grad_enabled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = Wanted(*ctx.needs_input_grad[:4]) if grad_enabled else Wanted()
        chunks = ChunkedPass(hidden.detach(), _detached(head, weight, bias, row_weights), targets, wanted)
        nll, gradients = chunks.run(weights, _budget(hidden, chunk_bytes))
        ctx.gradients = gradients
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, row_weights)]
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor, _grad_nll: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *_scaled(ctx.gradients, ctx.dtypes, grad_total), None, None, None, None, None


class _TokenLogProbs(torch.autograd.Function):
    """Keeps hidden states and head only; the backward is a `weighted_nll` pass with weights −gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        row_weights: torch.Tensor | None,
        head: OutputHead,
        targets: torch.Tensor,
        chunk_bytes: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, bias, row_weights, targets)
        ctx.head, ctx.chunk_bytes = head, chunk_bytes
        chunks = ChunkedPass(hidden.detach(), _detached(head, weight, bias, row_weights), targets, Wanted())
        nll, _ = chunks.run(None, _budget(hidden, chunk_bytes))
        return nll.neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *parts, targets = ctx.saved_tensors
        hidden = parts[0]
        head = _detached(ctx.head, *parts[1:])
        chunks = ChunkedPass(hidden.detach(), head, targets, Wanted(*ctx.needs_input_grad[:4]))
        _, gradients = chunks.run(-grad, _budget(hidden, ctx.chunk_bytes))
        dtypes = [None if t is None else t.dtype for t in parts]
        return *_scaled(gradients, dtypes, None), None, None, None


def _scaled(
    gradients: Gradients, dtypes: list[torch.dtype | None], factor: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """Each gradient times the incoming one, then cast to its tensor's dtype (float16 must be scaled first)."""
    found = (gradients.hidden, gradients.weight, gradients.bias, gradients.row_weights)
    if factor is not None and factor.device.type == "cpu" and factor.item() == 1.0:
        factor = None  # `total.backward()`: saves a pass over the weight's gradient
    return [
        None if value is None else (value if factor is None else value * factor.to(value.dtype)).to(dtype)
        for value, dtype in zip(found, dtypes, strict=True)
    ]
