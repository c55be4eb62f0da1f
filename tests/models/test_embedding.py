"""The gradient of a token met many times."""

from __future__ import annotations

import pytest
import torch
from random_segments import distance

from chatwright.models.embedding import lookup


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_gradients_of_repeated_tokens_add_up(dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 16, generator=generator).to(dtype).requires_grad_()
    ids = torch.cat([torch.full((400,), 7), torch.randint(0, 50, (100,), generator=generator)])
    grad = (torch.rand(500, 16, generator=generator) + 0.5).to(dtype)
    out = lookup(ids, weight)
    assert torch.equal(out, weight[ids])
    (found,) = torch.autograd.grad(out, weight, grad)
    expected = torch.zeros(50, 16, dtype=torch.float64).index_add_(0, ids, grad.double())
    assert found.dtype == dtype and distance(found[7], expected[7]) < bound and distance(found, expected) < bound
