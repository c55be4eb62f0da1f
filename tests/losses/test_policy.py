"""The policy gradient against its formula, written out with the whole logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatwright.losses.policy import policy_gradient_loss
from chatwright.models.output_head import OutputHead


@given(seed=st.integers(0, 10_000), rows=st.integers(0, 9), chunk_bytes=st.sampled_from([None, 200]))
def test_values_and_gradients_are_those_of_the_formula(seed: int, rows: int, chunk_bytes: int | None) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (rows,), generator=draw)
    weights = torch.rand(rows, generator=draw) + 0.1
    advantages = torch.randn(rows, generator=draw)
    ours = policy_gradient_loss(hidden, OutputHead(weight), targets, weights, advantages, chunk_bytes=chunk_bytes)
    log_probs = torch.log_softmax(hidden @ weight.t(), dim=-1)[torch.arange(rows), targets]
    theirs = -(weights.double() * advantages.double() * log_probs).sum()
    assert torch.allclose(ours.total, theirs, rtol=1e-12, atol=1e-12)
    assert torch.allclose(ours.per_token, -log_probs.float())
    assert ours.weight == pytest.approx(float(weights.double().sum()), rel=1e-12)  # the advantages have no part in it
    assert ours.supervised_tokens == rows
    own = torch.autograd.grad(ours.total, (hidden, weight))
    reference = torch.autograd.grad(theirs, (hidden, weight))
    for mine, other in zip(own, reference, strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_other_shapes_are_refused() -> None:
    head = OutputHead(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="advantages"):
        policy_gradient_loss(torch.zeros(2, 2), head, torch.zeros(2, dtype=torch.long), torch.ones(2), torch.ones(1))
