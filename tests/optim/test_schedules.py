"""Schedules: MiniMind's published numbers, bounds, warmup, and independence of how steps are split."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.errors import ConfigError
from chatwright.optim.schedules import SHAPES, lr_multiplier, multipliers
from chatwright.optim.settings import ScheduleSettings
from chatwright.settings import build

weights = st.lists(st.floats(0.5, 500), min_size=1, max_size=40)


def test_minimind_notebook_prints_these_five_rates() -> None:
    settings = ScheduleSettings(name="minimind_notebook_cosine", counted_from="end")
    rates = [5e-4 * m for m in multipliers(settings, [7.0] * 5)]
    assert [f"{rate:.8f}" for rate in rates] == ["0.00050225", "0.00037725", "0.00022275", "0.00009775", "0.00005000"]


@given(progress=st.floats(0, 1))
def test_minimind_trainer_form(progress: float) -> None:
    expected = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
    assert lr_multiplier(ScheduleSettings(name="minimind_cosine"), progress) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
@given(min_ratio=st.floats(0, 1), progress=st.floats(0, 1), warmup=st.floats(0, 0.9))
def test_stays_between_zero_and_one_and_above_the_floor_after_warmup(
    name: str, min_ratio: float, progress: float, warmup: float
) -> None:
    settings = ScheduleSettings(name=name, min_ratio=min_ratio, warmup_fraction=warmup)  # type: ignore[arg-type]
    multiplier = lr_multiplier(settings, progress)
    assert 0 <= multiplier <= 1 + 1e-12
    if progress >= warmup:
        assert multiplier >= min(min_ratio, 1) - 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_ends_at_the_floor(name: str) -> None:
    settings = ScheduleSettings(name=name, min_ratio=0.05, counted_from="end")  # type: ignore[arg-type]
    assert multipliers(settings, [3, 1, 2])[-1] == pytest.approx(0.05)


def test_wsd_is_flat_and_then_linear() -> None:
    settings = ScheduleSettings(name="wsd", decay_fraction=0.5)
    assert [lr_multiplier(settings, p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([1, 1, 1, 0.5, 0])


@given(weights=weights, steps=st.integers(1, 50))
def test_warmup_moves_at_once_and_rises(weights: list[float], steps: int) -> None:
    found = multipliers(ScheduleSettings(name="constant", warmup_steps=steps), weights)
    assert found[0] > 0
    assert all(b >= a for a, b in pairwise(found))
    if steps <= len(weights):
        assert found[steps - 1] == pytest.approx(1)
        assert all(m == 1 for m in found[steps:])


def test_equal_warmup_steps_rise_evenly() -> None:
    found = multipliers(ScheduleSettings(name="constant", warmup_steps=4), [10] * 8)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


@given(weights=weights, name=st.sampled_from(sorted(SHAPES)))
def test_halving_every_step_keeps_the_horizon(weights: list[float], name: str) -> None:
    """A step of twice as many tokens moves progress twice as far: starts are where the plan says."""
    settings = ScheduleSettings(name=name)  # type: ignore[arg-type]
    halves = [part for w in weights for part in (w / 2, w / 2)]
    assert multipliers(settings, halves)[::2] == pytest.approx(multipliers(settings, weights))


def test_an_empty_plan_has_no_multipliers_and_a_weightless_one_is_refused() -> None:
    assert multipliers(ScheduleSettings(), []) == []
    with pytest.raises(ValueError, match="nothing to train on"):
        multipliers(ScheduleSettings(), [0.0, 0.0])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"warmup_fraction": 0.1, "warmup_steps": 3}, "not both"),
        ({"name": "minimind_cosine", "min_ratio": 0.2}, "min_ratio can't be set"),
        ({"name": "cosin"}, "cosine"),
    ],
)
def test_impossible_settings_are_named(data: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(ScheduleSettings, data, "recipe")
