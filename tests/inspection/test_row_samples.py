"""Samples of streams: every row alike, a pure function of the seed, and no more held than asked for."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from chatwright.inspection.sampling import EvenRows, RowSample


def drawn(counts: list[int], number: int, seed: int) -> list[list[int]]:
    sample: RowSample[int] = RowSample(number, seed)
    for entry, count in enumerate(counts):
        for place in range(count):
            sample.offer(entry, place, place)
    return sample.chosen(len(counts))


@given(st.lists(st.integers(0, 30), max_size=4), st.integers(0, 40), st.integers(0, 5))
def test_a_sample_holds_distinct_rows_in_order(counts: list[int], number: int, seed: int) -> None:
    chosen = drawn(counts, number, seed)
    assert [len(rows) <= count for rows, count in zip(chosen, counts, strict=True)] == [True] * len(counts)
    assert sum(map(len, chosen)) == min(number, sum(counts))
    assert all(
        rows == sorted(set(rows)) and all(row < count for row in rows)
        for rows, count in zip(chosen, counts, strict=True)
    )
    assert chosen == drawn(counts, number, seed)


def test_every_row_is_drawn_alike() -> None:
    seen = [0] * 10
    for seed in range(2000):
        (rows, others) = drawn([4, 6], 2, seed)
        for place in (*rows, *(4 + other for other in others)):
            seen[place] += 1
    expected = 2000 * 2 / 10
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in seen)
    assert drawn([1000], 5, 1) != drawn([1000], 5, 2)


@given(st.integers(0, 500), st.integers(1, 20))
def test_even_rows_are_spread_over_the_stream(count: int, most: int) -> None:
    even: EvenRows[int] = EvenRows(most)
    for row in range(count):
        even.offer(row)
    assert even.seen == count and len(even.rows) <= most
    steps = {later - earlier for earlier, later in zip(even.rows, even.rows[1:], strict=False)}
    assert len(steps) <= 1
    assert len(even.rows) >= min(count, math.ceil(most / 2))
    if even.rows:
        assert count - even.rows[-1] <= max(steps, default=1) if len(even.rows) > 1 else True
