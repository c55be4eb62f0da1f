"""Linear layers over a few rows in bf16 on a CPU: what decoding does at every layer and step.

B rows · I inputs · O outputs. `F.linear` hands oneDNN the weight as the second matrix, which it repacks at every call;
with few rows that takes longer than the product. Here blocks of the weight are the *first* matrix, which is read as it
lies: no copy of the weight is kept. Measured with one thread of a 2-core AMX machine (torch 2.13), 49,152 × 576, ms a
call through `F.linear` / here: 1 row 10.3 / 3.9, 4 rows 10.9 / 7.1, 32 rows 14.0 / 6.4, 64 rows 18.1 / 11.7; a layer of
1,536 × 576, µs: 1 row 456 / 308, 32 rows 440 / 389. In float32 `F.linear` is the faster one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

MOST_ROWS = 48
"""Beyond, the repacking no longer counts (a prompt of 64 tokens: 82 ms here, 74 through `F.linear`)."""
_BLOCK = 768
"""Rows of the weight that a core works on at a time."""
_LEAST = 128
"""Outputs below which `F.linear` is as fast."""


@lru_cache(maxsize=1)
def _has_bf16_kernels() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def project(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`layer(x)`, through `linear` where the layer is a plain `nn.Linear`: `[B, I]` → `[B, O]`."""
    if type(layer) is nn.Linear and not torch.is_grad_enabled():
        return linear(x, layer.weight, layer.bias)
    out: torch.Tensor = layer(x)
    return out


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, faster where no gradient is wanted and the rows are few: `[B, I]`, `[O, I]` → `[B, O]`."""
    if torch.is_grad_enabled() or not _pays(x, weight):
        return F.linear(x, weight, bias)
    (num_out, num_in), rows = weight.shape, x.shape[0]
    blocks, size = _cut(num_out)
    columns = x.t()  # [I, B]
    if blocks * size == num_out:
        out = torch.bmm(weight.view(blocks, size, num_in), columns.expand(blocks, num_in, rows)).view(num_out, rows)
    else:
        out = x.new_empty(num_out, rows)
        whole = blocks * size
        head, tail = out[:whole].view(blocks, size, rows), out[whole:]
        torch.bmm(weight[:whole].view(blocks, size, num_in), columns.expand(blocks, num_in, rows), out=head)
        torch.mm(weight[whole:], columns, out=tail)
    out = out.view(1, num_out) if rows == 1 else out.t()
    return out if bias is None else out + bias


def _pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.device.type == "cpu"
        and x.dim() == 2
        and 0 < x.shape[0] <= MOST_ROWS
        and weight.shape[0] >= _LEAST
        and weight.is_contiguous()
        and _has_bf16_kernels()
    )


@lru_cache(maxsize=256)
def _cut(num_out: int) -> tuple[int, int]:
    """How many blocks of how many outputs; what they leave over is the tail."""
    blocks = -(-num_out // _BLOCK)
    return (blocks, num_out // blocks) if num_out % blocks == 0 else (num_out // _BLOCK, _BLOCK)
