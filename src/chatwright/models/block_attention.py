"""Training attention on a CPU in bfloat16: blocks of scores through batched matmuls, one autograd function for all.

T flat tokens · H query heads · G key/value heads · R = H / G · D head_dim · n segments of a block.

The scores and their softmax are float32 (float32 matmul of the rounded q and k); the probabilities are kept in bfloat16
for the backward, whose matmuls then all run on the matrix units. Against torch's own flash kernel this is faster
(`bench/attention.py`) and its gradients are closer to the exact ones (relative L2 of dq, dk, dv against float64:
0.0033, 0.0034, 0.0024; flash 0.0026, 0.0050, 0.0049).
"""

from __future__ import annotations

from typing import Any

import torch

from chatwright.models.block_plan import Block, BlockPlan


def block_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: BlockPlan, scale: float) -> torch.Tensor:
    """Causal attention inside each segment of the plan: `[T, H, D]`, `[T, G, D]`, `[T, G, D]` → `[T, H, D]`."""
    return _BlockAttention.apply(q, k, v, plan, scale)


class _BlockAttention(torch.autograd.Function):
    """Keeps q, k, v in the order of the blocks, and the probabilities (memory: 2 bytes a score)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: BlockPlan, scale: float
    ) -> torch.Tensor:
        num_heads, head_dim = q.shape[1:]
        q_rows = q.reshape(-1, head_dim).index_select(0, plan.q_index)
        k_rows = k.reshape(-1, head_dim).index_select(0, plan.k_index)
        v_rows = v.reshape(-1, head_dim).index_select(0, plan.k_index)
        out = torch.empty_like(q_rows)
        probabilities = q.new_empty(plan.num_scores)
        q_wide, k_wide = q_rows.float().mul_(scale), k_rows.float()
        scores, softmax = _scratch(plan, torch.float32)
        for block in plan.blocks:
            shape = _score_shape(block, num_heads, k.shape[1])
            size = shape.numel()
            s = torch.bmm(
                _queries(q_wide, block, shape), _keys(k_wide, block).transpose(1, 2), out=scores[:size].view(shape)
            )
            s.unflatten(1, (-1, block.last_row - block.first_row))[..., -block.mask.shape[1] :].add_(block.mask)
            torch.ops.aten._softmax.out(s, -1, False, out=softmax[:size].view(shape))
            p = probabilities[block.p_start : block.p_start + size].view(shape)
            p.copy_(softmax[:size].view(shape))
            torch.bmm(p, _keys(v_rows, block), out=_queries(out, block, shape))
        ctx.save_for_backward(q_rows, k_rows, v_rows, probabilities)
        ctx.plan, ctx.scale, ctx.shapes = plan, scale, (q.shape, k.shape)
        return out.index_select(0, plan.q_inverse).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_rows, k_rows, v_rows, probabilities = ctx.saved_tensors
        plan: BlockPlan = ctx.plan
        q_shape, k_shape = ctx.shapes
        g_rows = grad.reshape(-1, q_shape[2]).index_select(0, plan.q_index)
        g_rows.index_fill_(0, plan.q_padding, 0)
        dq, dk, dv = torch.empty_like(q_rows), torch.empty_like(k_rows), torch.empty_like(v_rows)
        scratch = _scratch(plan, grad.dtype)
        for block in plan.blocks:
            shape = _score_shape(block, q_shape[1], k_shape[1])
            size = shape.numel()
            p = probabilities[block.p_start : block.p_start + size].view(shape)
            g, keys = _queries(g_rows, block, shape), _keys(k_rows, block)
            dp = torch.bmm(g, _keys(v_rows, block).transpose(1, 2), out=scratch[0][:size].view(shape))
            ds = scratch[1][:size].view(shape)
            torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=ds)
            torch.bmm(ds, keys, out=_queries(dq, block, shape))
            _add_product(_keys(dv, block), p, g, block)
            _add_product(_keys(dk, block), ds, _queries(q_rows, block, shape), block)
        dq = dq.index_select(0, plan.q_inverse).mul_(ctx.scale).view(q_shape)
        dk = dk.index_select(0, plan.k_inverse).mul_(ctx.scale).view(k_shape)
        return dq, dk, dv.index_select(0, plan.k_inverse).view(k_shape), None, None


def _scratch(plan: BlockPlan, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two buffers that hold the largest block's scores."""
    ends = [block.p_start for block in plan.blocks[1:]] + [plan.num_scores]
    size = max(end - block.p_start for block, end in zip(plan.blocks, ends, strict=True))
    return torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)


def _score_shape(block: Block, num_heads: int, num_kv_heads: int) -> torch.Size:
    """`[n · G, R · rows, keys]`."""
    rows = num_heads // num_kv_heads * (block.last_row - block.first_row)
    return torch.Size((block.batch, rows, block.last_row - block.first_key))


def _queries(rows: torch.Tensor, block: Block, shape: torch.Size) -> torch.Tensor:
    """The block's part of gathered query rows: `[n · G, R · rows, D]`."""
    size = shape[0] * shape[1]
    return rows[block.q_start : block.q_start + size].view(shape[0], shape[1], -1)


def _keys(rows: torch.Tensor, block: Block) -> torch.Tensor:
    """The block's visible part of gathered key rows: `[n · G, keys, D]`."""
    whole = rows[block.k_start : block.k_start + block.batch * block.length].view(block.batch, block.length, -1)
    return whole[:, block.first_key : block.last_row]


def _add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor, block: Block) -> None:
    """target += leftᵀ @ right, where the rows' own keys are met here for the first time: those are written."""
    left = left.transpose(1, 2)
    seen = block.first_row - block.first_key
    if seen:
        target[:, :seen].baddbmm_(left[:, :seen], right)
    torch.bmm(left[:, seen:], right, out=target[:, seen:])
