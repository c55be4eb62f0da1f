"""Tokens to their experts and back: one sort, then every expert reads a slice of rows that lie together.

T flat tokens · D hidden size · E experts · k experts a token · N = T · k rows. Nothing here is ever `[T, E, D]`.
Worked miniature, k = 1: tokens 0 1 2 3 go to experts 1 0 1 0. `order` = [1, 3, 0, 2], so that expert 0 reads rows 0 and
1, expert 1 rows 2 and 3; `place` = [2, 0, 3, 1] says where each token's row went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from chatwright.layouts import SegmentLayout


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Where the rows of a batch go.

    Args:
        counts: int64 `[E]`, rows of each expert.
        order: int64 `[N]`: for each row in expert order, which of the N (token, choice) pairs it is.
        place: int64 `[N]`, its inverse: for each pair, its row.
        tokens: int64 `[N]`: for each row in expert order, its token.
    """

    counts: torch.Tensor
    order: torch.Tensor
    place: torch.Tensor
    tokens: torch.Tensor

    @staticmethod
    def of(chosen: torch.Tensor, num_experts: int) -> Dispatch:
        """Sort the choices int64 `[T, k]` by expert; within an expert the tokens keep their order."""
        flat = chosen.reshape(-1)  # [N]
        order = flat.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        counts = torch.zeros(num_experts, dtype=torch.int64, device=flat.device)
        counts.scatter_add_(0, flat, torch.ones_like(flat))  # integers: the same in any order
        return Dispatch(counts, order, place, order // chosen.shape[1])

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, D]` → `[N, D]` in expert order."""
        result: torch.Tensor = _Rows.apply(x, self.tokens, self.place)
        return result

    def combined(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`[N, D]` in expert order and `[T, k]` → `[T, D]`, the weighted sum of each token's k rows."""
        result: torch.Tensor = _Combined.apply(rows, weights, self)
        return result


class _Rows(torch.autograd.Function):
    """A gather whose backward is a gather and a sum of k terms: repeatable, where an index_add is not on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.num_tokens = x.shape[0]
        return x[tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return _sum_of_choices(grad, place, ctx.num_tokens), None, None


class _Combined(torch.autograd.Function):
    """Keeps the experts' rows and the weights."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weights: torch.Tensor, dispatch: Dispatch) -> torch.Tensor:
        scale = weights.reshape(-1)[dispatch.order].to(rows.dtype)[:, None]  # [N, 1]
        ctx.save_for_backward(rows, scale, dispatch.place, dispatch.tokens)
        ctx.weights = weights.shape, weights.dtype
        return _sum_of_choices(rows * scale, dispatch.place, weights.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, scale, place, tokens = ctx.saved_tensors
        shape, dtype = ctx.weights
        spread = grad[tokens]  # [N, D]
        grad_weights = torch.linalg.vecdot(rows, spread)[place].view(shape).to(dtype)
        return spread.mul_(scale), grad_weights, None


def _sum_of_choices(rows: torch.Tensor, place: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """`[N, D]` in expert order → `[T, D]`: each token's k rows added up, first choice first."""
    choices = len(place) // max(1, num_tokens)
    return rows[place].view(num_tokens, choices, rows.shape[1]).sum(1)


def segment_sums(x: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
    """`[T, E]` → `[S, E]`, each segment's rows added up, in the same order wherever it lies in the pack."""
    if x.device.type in ("cpu", "cuda"):
        return torch.segment_reduce(x, "sum", offsets=layout.cu_q.long(), axis=0)
    return sums_by_splitting(x, layout)


def sums_by_splitting(x: torch.Tensor, layout: SegmentLayout) -> torch.Tensor:
    """The same for devices without that operator."""
    return torch.stack([part.sum(0) for part in x.split(layout.lengths_q)])


def has_grouped_kernel(x: torch.Tensor, inner_size: int) -> bool:
    """Whether all experts' products can be one kernel here: bf16 on a CUDA device of compute capability 9 or more.

    Args:
        x: `[N, D]`, their input. inner_size: of one expert. The kernel wants rows of whole 16 bytes.
    """
    if x.device.type != "cuda" or x.dtype is not torch.bfloat16 or not hasattr(F, "grouped_mm"):
        return False
    aligned = x.shape[1] % 8 == 0 and inner_size % 8 == 0
    return aligned and torch.cuda.get_device_capability(x.device)[0] >= 9


def grouped_linear(rows: torch.Tensor, ends: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Each expert's rows times its weight: `[N, I]` in expert order, E weights `[O, I]` → `[N, O]`, as one kernel.

    Args:
        ends: int32 `[E]`, where each expert's rows end. It stays on the device: no expert's count is waited for.
    """
    result: torch.Tensor = _GroupedLinear.apply(rows, ends, *weights)
    return result


class _GroupedLinear(torch.autograd.Function):
    """The kernel wants the weights in one tensor; that copy lives for one product only and is made again behind."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ends: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, ends, *weights)
        return F.grouped_mm(rows, torch.stack(weights).transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, ends, *weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = F.grouped_mm(grad, torch.stack(weights), offs=ends) if ctx.needs_input_grad[0] else None
        grad_weights: tuple[torch.Tensor | None, ...] = (None,) * len(weights)
        if any(ctx.needs_input_grad[2:]):
            found = F.grouped_mm(grad.t(), rows, offs=ends)  # [E, O, I]
            # some GPUs leave an expert without a row whatever the memory held (pytorch 172439)
            empty = ends.diff(prepend=ends.new_zeros(1)) == 0
            grad_weights = found.masked_fill_(empty[:, None, None], 0.0).unbind()
        return grad_rows, None, *grad_weights
