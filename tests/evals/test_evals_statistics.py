"""Intervals and estimates of evals/statistics.py, against scipy, exact counting and simulation."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # comes with datasketch

from chatwright.evals.statistics import (
    FEWEST_CHANGED,
    Estimate,
    bootstrap_means,
    centred,
    combined,
    mean_interval,
    paired_difference,
    pass_at_k,
    ratio,
    ratio_difference,
    wilson,
)


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_wilson_is_that_of_scipy(total: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, total))
    theirs = stats.binomtest(passed, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(passed, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_none_and_all_stays_within_0_and_1() -> None:
    low, high = wilson(0, 164)
    assert low == 0.0 and high == pytest.approx(0.02289, abs=1e-5)
    assert wilson(164, 164) == pytest.approx((1 - high, 1.0))
    assert wilson(1, 3, confidence=0.5)[0] > wilson(1, 3)[0]


@pytest.mark.parametrize(("passed", "total"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(passed: int, total: int) -> None:
    with pytest.raises(ValueError):
        wilson(passed, total)


def test_bootstrap_means_have_the_right_mean_and_spread() -> None:
    values = np.array([0.0, 0.0, 1.0, 0.5, 3.0, 0.25, 9.0])
    for numbers in (values, np.repeat(values, 40)):  # drawn one by one, and by counts
        drawn = bootstrap_means(numbers)
        assert drawn.mean() == pytest.approx(numbers.mean(), abs=4 * numbers.std() / math.sqrt(len(numbers) * 10_000))
        assert drawn.std() == pytest.approx(numbers.std() / math.sqrt(len(numbers)), rel=0.04)
        assert np.array_equal(drawn, bootstrap_means(numbers))
        assert not np.array_equal(drawn, bootstrap_means(numbers, seed=1))


def test_bootstrap_draws_columns_together() -> None:
    drawn = bootstrap_means(np.stack([np.arange(30.0), 2 * np.arange(30.0)], axis=1))
    assert np.allclose(drawn[:, 1], 2 * drawn[:, 0])


def test_the_bootstrap_of_two_values_is_the_binomial() -> None:
    low, high = mean_interval([0.0] * 60 + [1.0] * 40)
    expected = stats.binom(100, 0.4).ppf([0.025, 0.975]) / 100
    assert (low, high) == pytest.approx(tuple(expected), abs=0.0101)


def test_the_mean_of_equal_numbers_still_has_an_interval() -> None:
    assert mean_interval([0.0] * 164) == wilson(0, 164)
    assert mean_interval([0.5] * 10) == wilson(5, 10)


def test_a_paired_difference_knows_which_problems_differ() -> None:
    first = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1] * 5)
    second = np.array([1, 0, 0, 0, 0, 0, 0, 1, 1, 1] * 5)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.2) and found.changed == 10 and found.significant
    assert found.low == pytest.approx(0.1, abs=0.03) and found.high == pytest.approx(0.32, abs=0.03)
    back = paired_difference(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.021)


def test_pairing_is_finer_than_comparing_two_proportions() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    second = first | (rng.random(400) < 0.06)
    assert wilson(first.sum(), 400).high > wilson(second.sum(), 400).low  # the two intervals overlap
    assert paired_difference(first, second).significant


def test_few_problems_that_differ_prove_nothing() -> None:
    for changed in range(1, FEWEST_CHANGED + 1):
        found = paired_difference([0] * changed, [1] * changed)
        assert found.low > 0 and found.significant == (changed == FEWEST_CHANGED)
    same = paired_difference([1, 0, 1], [1, 0, 1])
    assert (same.value, same.low, same.high, same.significant) == (0.0, 0.0, 0.0, False)


def test_scores_of_other_problems_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_difference([0, 1], [0, 1, 1])


def test_a_ratio_weighs_by_units_and_draws_whole_problems() -> None:
    found = ratio([10.0, 1.0], [5.0, 1.0])
    assert found.value == pytest.approx(11 / 6)
    assert (found.low, found.high) == pytest.approx((1.0, 2.0))  # only the one, or only the other
    with pytest.raises(ValueError):
        ratio([0.0], [0.0])


def test_a_ratio_difference_is_paired() -> None:
    rng = np.random.default_rng(1)
    units = rng.integers(5, 50, 300).astype(float)
    nats = units * rng.normal(2.0, 0.6, 300)
    better = nats - 0.05 * units + rng.normal(0, 0.2, 300)
    found = ratio_difference((nats, units), (better, units))
    assert found.value == pytest.approx(-0.05, abs=0.01) and found.significant
    assert found.high - found.low < 0.2 * (ratio(nats, units).high - ratio(nats, units).low)
    assert not ratio_difference((nats, units), (nats, units)).significant


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (6, 6, 2), (4, 3, 2), (3, 3, 3)])
def test_pass_at_k_counts_the_draws_that_hold_a_pass(n: int, c: int, k: int) -> None:
    marks = [True] * c + [False] * (n - c)
    draws = list(combinations(marks, k))
    assert pass_at_k([n], [c], k)[0] == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased() -> None:
    chance, n, k = 0.3, 6, 3
    mean = sum(
        pass_at_k([n], [sum(marks)], k)[0] * math.prod(chance if mark else 1 - chance for mark in marks)
        for marks in product((0, 1), repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - chance) ** k)


def test_pass_at_k_of_many_samples_stays_exact() -> None:
    exact = 1 - math.comb(990, 100) / math.comb(1000, 100)
    assert pass_at_k([1000, 1000], [10, 0], 100).tolist() == pytest.approx([exact, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k([4, 2], [1, 1], 3)


def test_centred_is_0_for_guessing_and_1_for_all_right() -> None:
    assert [centred(x, 0.25) for x in (0.25, 1.0, 0.625, 0.0)] == pytest.approx([0, 1, 0.5, -1 / 3])
    assert centred(0.4, 0.0) == 0.4


def test_combined_intervals_add_squares_side_by_side() -> None:
    parts = [Estimate(0.5, 0.4, 0.6), Estimate(0.0, 0.0, 0.3)]
    found = combined(parts, [0.5, 0.5])
    assert found == pytest.approx((0.25, 0.25 - 0.05, 0.25 + math.hypot(0.05, 0.15)))
    turned = combined(parts, [1.0, -1.0])
    assert turned == pytest.approx((0.5, 0.5 - math.hypot(0.1, 0.3), 0.6))


@pytest.mark.slow
@pytest.mark.parametrize("chance", [0.02, 0.25, 0.5])
def test_intervals_hold_what_they_promise(chance: float) -> None:
    """Of simulated evaluations with a known truth, about 95 % have it inside the interval."""
    rng, rounds, n = np.random.default_rng(0), 600, 164
    wilson_hits = boot_hits = pair_hits = pass_hits = 0
    for _ in range(rounds):
        right = rng.random(n) < chance
        wilson_hits += _inside(chance, wilson(right.sum(), n))
        skill = rng.beta(2, 2 / chance - 2, n)  # problems of different difficulty, mean `chance`
        samples = rng.random((n, 10)) < skill[:, None]
        boot_hits += _inside(chance, mean_interval(samples.mean(axis=1)))
        truth = 1 - _mean_power(2, 2 / chance - 2, 4)
        pass_hits += _inside(truth, mean_interval(pass_at_k([10] * n, samples.sum(axis=1), 4)))
        better = right | (rng.random(n) < 0.2)
        found = paired_difference(right, better)
        pair_hits += _inside(0.2 * (1 - chance), found[1:3])
    for hits in (wilson_hits, boot_hits, pair_hits, pass_hits):
        assert 0.92 <= hits / rounds <= 0.985, (wilson_hits, boot_hits, pair_hits, pass_hits)


def _inside(truth: float, interval: tuple[float, ...]) -> bool:
    return interval[0] <= truth <= interval[1]


def _mean_power(a: float, b: float, k: int) -> float:
    """E[(1 − p)^k] of a Beta(a, b) distributed p."""
    return math.prod((b + i) / (a + b + i) for i in range(k))
