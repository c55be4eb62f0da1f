"""The sample of rows: seeded, without repeats, over all entries alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatwright.inspection.sampling import sample_rows


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(0, 80), st.integers(0, 2**40))
def test_every_drawn_row_exists_once(counts, number, seed):
    drawn = sample_rows(counts, number, seed)
    assert len(drawn) == len(counts)
    assert sum(map(len, drawn)) == min(number, sum(counts))
    for count, rows in zip(counts, drawn, strict=True):
        assert rows == sorted(set(rows)) and all(0 <= row < count for row in rows)
    assert drawn == sample_rows(counts, number, seed)


def test_the_seed_decides_and_every_row_has_its_chance():
    seen = {row for seed in range(200) for row in sample_rows([3, 0, 7], 1, seed)[2]}
    assert seen == set(range(7))
    assert sample_rows([1000], 5, 1) != sample_rows([1000], 5, 2)
