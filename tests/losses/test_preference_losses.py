"""Losses over pairs against closed forms, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.errors import ConfigError
from chatwright.losses.preference import dpo_loss, ipo_loss, reward_loss, sigmoid_loss
from chatwright.losses.settings import DpoSettings
from chatwright.settings import build

NUMBERS = st.floats(-30, 30)
BETAS = st.floats(0.01, 2)
LENGTHS = torch.tensor([[4, 2], [1, 8]])


def sides(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (-20 * torch.rand(2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy.requires_grad_(), reference


@settings(deadline=None)
@given(NUMBERS, BETAS, st.floats(0, 0.49))
def test_sigmoid_is_the_cross_entropy_of_a_smoothed_label(advantage, beta, smoothing):
    scores = torch.tensor([beta * advantage, 0.0], dtype=torch.float64)
    label = torch.tensor([1 - smoothing, smoothing], dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(scores[None], label[None])
    found = sigmoid_loss(torch.tensor([advantage], dtype=torch.float64), beta, smoothing)
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


@settings(deadline=None)
@given(BETAS, st.floats(0.01, 0.49))
def test_the_minimum_is_where_the_labels_say(beta, smoothing):
    """Smoothed: σ(β a) = 1 − ε. IPO: a = 1 / (2 β). Plain DPO has none."""
    at = math.log((1 - smoothing) / smoothing) / beta
    for loss, best in ((lambda a: sigmoid_loss(a, beta, smoothing), at), (lambda a: ipo_loss(a, beta), 0.5 / beta)):
        a = torch.tensor([best], dtype=torch.float64, requires_grad=True)
        loss(a).sum().backward()
        assert abs(float(a.grad)) < 1e-9
    a = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    sigmoid_loss(a, beta).sum().backward()
    assert float(a.grad) < 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_a_policy_that_is_its_reference_pays_log_2(seed):
    policy, _ = sides(seed)
    for smoothing in (0.0, 0.2):
        found = dpo_loss(policy, policy.detach(), LENGTHS, beta=0.1, label_smoothing=smoothing)
        assert found.total.item() == pytest.approx(2 * math.log(2), rel=1e-12)
        assert found.metrics["accuracy"] == 1.0 and found.metrics["margin"] == 0.0, "a draw counts half"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), BETAS)
def test_the_gradient_is_that_of_the_paper(seed, beta):
    """Eq. 7: −β σ(−β a) on log p(better), the opposite on log p(worse)."""
    policy, reference = sides(seed)
    dpo_loss(policy, reference, LENGTHS, beta=beta).total.backward()
    a = ((policy - reference) @ torch.tensor([1.0, -1.0], dtype=torch.float64)).detach()
    wanted = -beta * torch.sigmoid(-beta * a)
    assert torch.allclose(policy.grad, torch.stack([wanted, -wanted], 1), rtol=1e-12, atol=0)


def test_beta_near_zero_pulls_everything_apart_alike():
    """β → 0: every pair has the gradient β / 2, however well it is told apart already."""
    policy, reference = sides(3)
    dpo_loss(policy, reference, LENGTHS, beta=1e-6).total.backward()
    assert torch.allclose(policy.grad / 1e-6, torch.tensor([[-0.5, 0.5]] * 2, dtype=torch.float64), rtol=1e-4)


def test_ipo_compares_means_over_tokens():
    policy, reference = sides(4)
    found = dpo_loss(policy, reference, LENGTHS, beta=0.25, loss="ipo")
    r = ((policy - reference) / LENGTHS).detach()
    assert found.total.item() == pytest.approx(float(((r[:, 0] - r[:, 1] - 2.0) ** 2).sum()), rel=1e-12)


def test_the_sft_term_is_the_better_replys_mean_loss():
    policy, reference = sides(5)
    plain = dpo_loss(policy, reference, LENGTHS, beta=0.1)
    both = dpo_loss(policy, reference, LENGTHS, beta=0.1, sft_weight=0.5)
    added = (-policy[:, 0] / LENGTHS[:, 0]).sum().item() / 2
    assert (both.total - plain.total).item() == pytest.approx(added, rel=1e-9)


def test_metrics_are_sums_over_pairs():
    policy = torch.tensor([[-1.0, -5.0], [-6.0, -2.0]])
    reference = torch.tensor([[-2.0, -2.0], [-2.0, -2.0]])
    found = dpo_loss(policy, reference, LENGTHS, beta=0.5).metrics
    assert found == {
        "accuracy": 1.0,
        "margin": 0.5 * (1 + 3) + 0.5 * (-4 - 0),
        "reward_chosen": 0.5 * (1 - 4),
        "reward_rejected": 0.5 * (-3 + 0),
        "log_prob_chosen": -7.0,
        "log_prob_rejected": -7.0,
    }


@settings(deadline=None)
@given(NUMBERS, NUMBERS, st.floats(0, 3))
def test_the_reward_loss_is_bradley_terry_with_a_margin(better, worse, margin):
    found = reward_loss(torch.tensor([[better, worse]], dtype=torch.float64), margin=margin)
    difference = better - worse - margin
    wanted = math.log1p(math.exp(-abs(difference))) + max(-difference, 0)
    assert found.total.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert found.metrics["accuracy"] == (better > worse) + (better == worse) / 2


def test_smoothing_is_refused_where_it_has_no_effect():
    with pytest.raises(ConfigError, match="label_smoothing belongs to loss: sigmoid"):
        build(DpoSettings, {"loss": "ipo", "label_smoothing": 0.1}, "test")
    with pytest.raises(ConfigError, match="beta"):
        build(DpoSettings, {"beta": 0}, "test")
