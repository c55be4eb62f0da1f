"""The flat buffer: any split adds up to the same sum; nothing bypasses it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chatwright.optim.flat_gradients import FlatGradients


def model_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=3), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_any_split_gives_the_same_sum(cuts: list[int], dtype: torch.dtype) -> None:
    model = model_of(dtype)
    x = torch.randn(12, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    reference = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    gradients = FlatGradients(list(model.parameters()))
    edges = sorted({0, 12, *cuts})
    for start, stop in pairwise(edges):
        model(x[start:stop]).square().sum().backward()
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for view, expected in zip(gradients.views, reference, strict=True):
        assert (view - expected).norm() <= bound * expected.norm()
    expected_norm = torch.cat([g.flatten() for g in reference]).double().norm().item()
    assert gradients.norm() == pytest.approx(expected_norm, rel=1e-5)
    assert gradients.flat.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradients_add_up_in_float32(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=dtype))
    gradients = FlatGradients([parameter])
    for _ in range(300):
        (parameter * 1.0).sum().backward()
    assert parameter.grad is None
    assert gradients.views[0].tolist() == [300.0] * 3  # bf16 would stick at 256


def test_zero_connects_again_and_a_cut_is_noticed() -> None:
    model = model_of(torch.float32)
    gradients = FlatGradients(list(model.parameters()))
    model.zero_grad(set_to_none=True)
    with pytest.raises(AssertionError, match="behind the buffer"):
        gradients.require_connected()
    gradients.zero()
    gradients.require_connected()
    model(torch.ones(1, 5)).sum().backward()
    assert gradients.norm() > 0
    gradients.close()
    assert all(p.grad is None for p in model.parameters())


def test_padding_stays_zero() -> None:
    model = model_of(torch.float32)
    gradients = FlatGradients(list(model.parameters()))
    model(torch.ones(2, 5)).sum().backward()
    in_views = sum(int(torch.count_nonzero(view)) for view in gradients.views)
    assert int(torch.count_nonzero(gradients.flat)) == in_views


def test_a_parameter_that_got_no_gradient_counts_as_zero() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    gradients = FlatGradients([used, unused])
    used.sum().backward()
    assert gradients.views[1].tolist() == [0.0, 0.0]
    assert gradients.norm() == pytest.approx(2**0.5)
