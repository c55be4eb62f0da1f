"""How far a score can be trusted: intervals of proportions, means, differences and pass@k. Numbers only.

Every interval is of 95 % unless told otherwise. Whatever is drawn at random is drawn from a fixed seed, so that the
same results give the same interval on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
DRAWS = 10_000
"""Resamples of a bootstrap: enough for the ends of a 95 % interval to move by a few percent of its width at most."""
FEWEST_CHANGED = 6
"""Fewer problems than this on which two models differ prove nothing, even if one model is ahead on all of them: 5 of
5 is as rare as 2 · ½⁵ = 6 % by chance (sign test), 6 of 6 as 3 %."""
_CELLS = 4_000_000
"""Numbers of one block of resamples, which bounds the memory."""
_TIMES_DEARER = 8
"""What drawing a count costs in draws of single values (measured)."""


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """Both ends."""
        return Interval(self.low, self.high)


class Difference(NamedTuple):
    """By how much a second model is above a first on the same problems.

    Args:
        changed: problems on which they differ.
        significant: the interval leaves out 0, and enough problems differ.
    """

    value: float
    low: float
    high: float
    changed: int
    significant: bool

    @staticmethod
    def of(value: float, interval: Interval, changed: int) -> Difference:
        """A difference, told significant or not."""
        beyond = interval.low > 0 or interval.high < 0
        return Difference(value, *interval, changed, beyond and changed >= FEWEST_CHANGED)


def wilson(successes: float, total: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a proportion (Wilson 1927); holds its promise for few problems and near 0 and 1.

    Also for a mean of numbers between 0 and 1 (`successes` is their sum): of these, zeros and ones vary most, so
    that the interval is then rather too wide.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} trials")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2 = float(successes) / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # rounding leaves 1e-19 there
    high = 1.0 if successes == total else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap_means(values: ArrayLike, seed: int = 0, draws: int = DRAWS) -> NDArray[np.float64]:
    """The means of `draws` resamples of `values` (`[n]` or `[n, m]`: m columns resampled together).

    How often each distinct value comes in a resample is multinomial: where there are few of them, as with zeros and
    ones, their counts are drawn instead of one value after the other.

    Returns:
        float64 `[draws]` or `[draws, m]`.

    Raises:
        ValueError: there are no values.
    """
    columns = np.asarray(values, dtype=np.float64)
    if not len(columns):
        raise ValueError("no values to draw from")
    rng, total = np.random.default_rng(seed), len(columns)
    distinct, counts = np.unique(columns, axis=0, return_counts=True)
    few = len(distinct) * _TIMES_DEARER < total
    block = max(1, _CELLS // (len(distinct) if few else total))
    means = []
    for size in (min(block, draws - start) for start in range(0, draws, block)):
        if few:
            means.append(rng.multinomial(total, counts / total, size=size) @ distinct / total)
        else:
            means.append(columns[rng.integers(total, size=(size, total))].mean(axis=1))
    return np.concatenate(means)


def percentiles(drawn: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The interval that leaves out the same share of the draws on either side."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


def mean_interval(values: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of one number a problem, each in [0, 1], by the bootstrap over problems.

    Where all numbers are the same, as with 0 of 164, resampling shows no spread: Wilson's interval then.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size and np.all(numbers == numbers[0]):
        return wilson(float(numbers.sum()), len(numbers), confidence)
    return percentiles(bootstrap_means(numbers, seed), confidence)


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Difference:
    """How much the mean of `second` is above that of `first`, by the bootstrap over the problems both have seen.

    Args:
        first, second: `[n]`, one number a problem, the same problem at the same place.

    Raises:
        ValueError: not the same number of problems, or none.
    """
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"scores of {ours.shape} and {theirs.shape} problems can't be paired")
    change = theirs - ours
    interval = percentiles(bootstrap_means(change, seed), confidence)
    return Difference.of(float(change.mean()), interval, int(np.count_nonzero(change)))


def ratio(amounts: ArrayLike, units: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Σ amounts / Σ units, such as nats a token, with its interval by the bootstrap over problems.

    Args:
        amounts, units: `[n]`, of each problem.

    Raises:
        ValueError: there are no units.
    """
    pairs = np.stack([np.asarray(amounts, dtype=np.float64), np.asarray(units, dtype=np.float64)], axis=1)
    if not pairs[:, 1].sum() > 0:
        raise ValueError("nothing to divide by")
    drawn = bootstrap_means(pairs, seed)  # [draws, 2]
    drawn = drawn[drawn[:, 1] > 0]
    return Estimate(float(pairs[:, 0].sum() / pairs[:, 1].sum()), *percentiles(drawn[:, 0] / drawn[:, 1], confidence))


def ratio_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """How much the `ratio` of `second` (amounts, units) is above that of `first`, problems drawn in pairs.

    Raises:
        ValueError: not the same number of problems, or no units.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (*first, *second)]
    if len({column.shape for column in columns}) != 1:
        raise ValueError(f"ratios over {len(columns[0])} and {len(columns[2])} problems can't be paired")
    table = np.stack(columns, axis=1)  # [n, 4]
    sums = table.sum(axis=0)
    if not (sums[1] > 0 and sums[3] > 0):
        raise ValueError("nothing to divide by")
    drawn = bootstrap_means(table, seed)
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    interval = percentiles(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1], confidence)
    changed = int(np.count_nonzero(table[:, 0] * table[:, 3] != table[:, 2] * table[:, 1]))
    return Difference.of(float(sums[2] / sums[3] - sums[0] / sums[1]), interval, changed)


def pass_at_k(samples: ArrayLike, passed: ArrayLike, k: int) -> NDArray[np.float64]:
    """For each problem the unbiased estimate of the chance that one of k replies passes (Chen et al. 2021, eq. 1).

    1 − C(n − c, k) / C(n, k) with n samples of which c passed, as a product that neither overflows nor rounds to
    nothing.

    Args:
        samples, passed: `[p]`, n and c of each problem.

    Raises:
        ValueError: a problem has fewer than k samples, or more passes than samples.
    """
    totals, right = np.asarray(samples, dtype=np.int64), np.asarray(passed, dtype=np.int64)
    if k < 1 or np.any(totals < k) or np.any(right < 0) or np.any(right > totals):
        raise ValueError(f"pass@{k} needs {k} samples or more of every problem, and no more passes than samples")
    wrong = totals - right
    steps = np.arange(k)  # C(w, k) / C(n, k) = Π (w − i) / (n − i), 0 once w − i is
    factors = np.clip(wrong[:, None] - steps, 0, None) / (totals[:, None] - steps)
    return np.asarray(1.0 - factors.prod(axis=1))


def centred(accuracy: float, chance: float) -> float:
    """0 for guessing, 1 for all right, below 0 for worse than guessing."""
    return (accuracy - chance) / (1.0 - chance)


def combined(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Σ weight · part of independent estimates, its interval made from theirs (MOVER, Zou and Donner 2008).

    Each side adds up the squares of the parts' own distances to that side, so that a skewed interval, as of 0 of 24,
    stays skewed. A negative weight swaps a part's sides.
    """
    value = sum(weight * part.value for part, weight in zip(parts, weights, strict=True))
    below, above = 0.0, 0.0
    for part, weight in zip(parts, weights, strict=True):
        ends = sorted((weight * (part.low - part.value), weight * (part.high - part.value)))
        below, above = below + ends[0] ** 2, above + ends[1] ** 2
    return Estimate(value, value - math.sqrt(below), value + math.sqrt(above))
