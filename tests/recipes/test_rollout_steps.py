"""Rollouts → steps: advantages by their formulas; any split into packs and ranks gives the naive gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches.loader import StepBatches
from chatwright.layouts import SegmentLayout
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import load_model
from chatwright.recipes.reinforcement_settings import RlSettings
from chatwright.recipes.rollout_steps import STD_FLOOR, RolloutStep, advantages_of, rollout_step
from chatwright.recipes.rollouts import DrawnRound, Rollout
from chatwright.templates.rendered import ExampleKey
from chatwright.train.objectives import policy_gradient

SAMPLES = 3


def test_advantages_are_rewards_less_their_mean() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.25, 0.0, 0.25]])
    assert advantages_of(rewards, "mean").tolist() == [[0.5, -0.5, -0.5, 0.5], [0.25, 0.0, -0.25, 0.0]]


def test_advantages_over_the_standard_deviation_are_those_of_grpo() -> None:
    """As TRL's GRPOTrainer computes them: (r − mean) / (std + 1e-4), std with n − 1."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.7, 0.3]], dtype=torch.float64)
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + STD_FLOOR)
    assert np.allclose(advantages_of(rewards.numpy(), "mean_std"), theirs.numpy(), rtol=1e-14)


@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_equal_rewards_are_no_signal_at_all(kind: str) -> None:
    assert not advantages_of(np.full((2, 3), 0.1), kind).any()  # 0.1 · 3 / 3 isn't 0.1


def drawn_rollouts(seed: int, groups: int, vocab: int) -> list[Rollout]:
    """Made-up replies: forced tokens within some, two rounds in some, equal rewards in some groups."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> list[int]:
        return rng.integers(0, vocab, count).tolist()

    def a_round() -> DrawnRound:
        drawn = rng.integers(1, 7)
        log_probs: list[float | None] = [float(-rng.random()) for _ in range(drawn)]
        if drawn > 3:
            log_probs[1] = log_probs[2] = None
        return DrawnRound(some(int(rng.integers(1, 6))), some(int(drawn)), log_probs)

    rollouts = []
    for place in range(groups):
        equal = rng.random() < 0.3
        for sample in range(SAMPLES):
            rounds = tuple(a_round() for _ in range(1 + (rng.random() < 0.3)))
            rollouts.append(Rollout(place, sample, 1.0 if equal else float(rng.random() < 0.5), True, 0, rounds))
    return rollouts


def step_of(rollouts: list[Rollout], chosen: RlSettings, **options: int) -> RolloutStep:
    keys = [ExampleKey("task", place, 0) for place in range(len(rollouts) // SAMPLES)]
    return rollout_step(rollouts, keys, chosen, step=0, epoch=0, **{"tokens_per_pack": 64, **options})


def gradient(model: CausalLM, batches: list[StepBatches]) -> torch.Tensor:
    """Σ over ranks and packs, divided once."""
    model.zero_grad()
    weight = batches[0].left_out
    for each in batches:
        for pack in each.packs:
            found = policy_gradient(model, pack)
            found.total.backward()
            weight += found.weight
    assert weight == pytest.approx(batches[0].weight, rel=1e-6)
    return _flat(model) / batches[0].weight


def naive_gradient(model: CausalLM, rollouts: list[Rollout], chosen: RlSettings) -> torch.Tensor:
    """Sample by sample from whole logits, by the formulas of the settings' docstring."""
    rewards = torch.tensor([each.reward for each in rollouts], dtype=torch.float64).view(-1, SAMPLES)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if chosen.advantage == "mean_std":
        advantages = advantages / (rewards.std(1, keepdim=True) + STD_FLOOR)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for rollout, advantage in zip(rollouts, advantages.float().double().view(-1), strict=True):
        own, count = torch.zeros((), dtype=torch.float64), 0
        for each in rollout.rounds:
            ids = torch.tensor([*each.prompt, *each.ids])
            logits = model.logits(ids, torch.arange(len(ids)), SegmentLayout.from_lengths([len(ids)]))
            for place, log_prob in enumerate(each.logprobs, len(each.prompt)):
                if log_prob is not None:
                    own = own - torch.log_softmax(logits[place - 1], -1)[ids[place]]
                    count += 1
        by = float(np.float32(1 / count)) if chosen.normalize == "sequence" else 1.0
        total, tokens = total + advantage * own * by, tokens + count
    model.zero_grad()
    total.backward()
    return _flat(model) / (len(rollouts) if chosen.normalize == "sequence" else tokens)


def _flat(model: CausalLM) -> torch.Tensor:
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> CausalLM:
    return load_model(tiny_model, dtype=torch.float64)


@pytest.mark.parametrize("normalize", ["token", "sequence"])
@pytest.mark.parametrize("advantage", ["mean", "mean_std"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), tokens_per_pack=st.sampled_from([1, 20, 4096]), world_size=st.integers(1, 3))
def test_any_split_gives_the_naive_gradient(
    model: CausalLM, advantage: str, normalize: str, seed: int, tokens_per_pack: int, world_size: int
) -> None:
    chosen = RlSettings.model_validate({"samples": SAMPLES, "advantage": advantage, "normalize": normalize})
    rollouts = drawn_rollouts(seed, 3, 300)
    ranks = [
        step_of(rollouts, chosen, tokens_per_pack=tokens_per_pack, rank=rank, world_size=world_size).batches
        for rank in range(world_size)
    ]
    assert len({len(each.packs) for each in ranks}) == 1  # no rank waits for another
    naive = naive_gradient(model, rollouts, chosen)
    bound = 1e-12 if normalize == "token" else 1e-7  # the plan's count of replies is exact, their weights are float32
    assert float((gradient(model, ranks) - naive).norm()) <= bound * max(float(naive.norm()), 1e-30)


def test_what_has_no_signal_is_counted_and_in_no_pack() -> None:
    chosen = RlSettings(samples=SAMPLES)
    log_probs: list[float | None] = [-1.0, None, -2.0]
    rollouts = [
        Rollout(place, sample, float(place == 1 and sample == 0), True, 1, (DrawnRound([5, 6], [1, 2, 3], log_probs),))
        for place in range(2)
        for sample in range(SAMPLES)
    ]
    made = step_of(rollouts, chosen)
    assert made.trained == ((1, 1, 5),) * 3 and made.silent == ((0, 1, 5),) * 3
    batches = made.batches
    assert (batches.weight, batches.left_out, batches.supervised_tokens, batches.num_tokens) == (12.0, 6.0, 6, 15)
    assert [key.part for key in batches.keys] == [0, 1, 2]
    values = {name: total / of for name, (total, of) in batches.metrics.items()}
    assert values == pytest.approx(
        {
            "reward": 1 / 6,
            "pass@3": 0.5,
            "groups_with_signal": 0.5,
            "finished_replies": 1.0,
            "reply_tokens": 3.0,
            "tool_calls": 1.0,
            "drawn_log_prob": -1.5,
        }
    )


def test_rollouts_travel_exactly() -> None:
    for rollout in drawn_rollouts(7, 2, 100):
        assert Rollout.from_line(rollout.to_line()) == rollout
