"""The label shift: golden example, segment borders, padding, and a property test against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.templates.rendered import ExampleKey, RenderedExample


def example(ids, weights, row=0):
    return RenderedExample(np.array(ids, np.int32), np.array(weights, np.float32), (), ExampleKey("a.jsonl", row, 0))


GOLDEN = example([10, 11, 20, 21, 22, 23, 24], [0, 0, 1, 1, 1, 1, 1])


def test_the_worked_example_of_the_articles():
    """User 10 11, assistant 20 … 24: inputs ids[:-1], targets −1 20 21 22 23 24 (there −1 is the ignored label)."""
    batch = collate(TokenStore.from_examples([GOLDEN]), [0])
    assert batch.input_ids.tolist() == [10, 11, 20, 21, 22, 23, 24]
    assert batch.labels().tolist() == [-100, -100, 20, 21, 22, 23, 24]
    shifted = [-1] * 6
    for place, target in zip(batch.supervised_index.tolist(), batch.targets.tolist(), strict=True):
        shifted[place] = target
    assert shifted == [-1, 20, 21, 22, 23, 24]


def test_the_docstring_miniature():
    batch = collate(TokenStore.from_examples([GOLDEN, example([30, 40], [0, 1], 1)]), [0, 1])
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert batch.supervised_index.tolist() == [1, 2, 3, 4, 5, 7]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 40]
    assert batch.segment_of_target.tolist() == [0, 0, 0, 0, 0, 1]
    assert batch.layout.cu_q.tolist() == [0, 7, 9]
    assert [key.row for key in batch.keys] == [0, 1]


def test_nothing_predicts_the_first_token_of_a_segment():
    store = TokenStore.from_examples([example([1, 2], [1, 1]), example([3, 4], [1, 1], 1)])
    batch = collate(store, [0, 1])
    assert batch.targets.tolist() == [2, 4]
    assert store.supervised_counts.tolist() == [1, 1] and store.weight_sums.tolist() == [1.0, 1.0]


def test_padding_is_a_segment_of_its_own_that_trains_nothing():
    batch = collate(TokenStore.from_examples([GOLDEN]), [0], pad_to=10)
    assert len(batch.input_ids) == 10 and batch.num_padding == 3
    assert batch.layout.lengths_q == (7, 3)
    assert batch.position_ids.tolist()[7:] == [0, 1, 2]
    assert batch.keys[-1] is None
    assert batch.targets.tolist() == [20, 21, 22, 23, 24]


@pytest.mark.parametrize("pad_to", [None, 6])
def test_no_members_make_a_dummy_pack(pad_to):
    batch = collate(TokenStore.from_examples([GOLDEN]), [], pad_to=pad_to)
    assert batch.layout.lengths_q == (pad_to or 1,)
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert len(batch.targets) == len(batch.weights) == 0
    assert batch.keys == (None,)


def test_an_unsupervised_pack_has_no_targets():
    batch = collate(TokenStore.from_examples([example([1, 2, 3], [0, 0, 0])]), [0])
    assert len(batch.targets) == 0 and set(batch.labels().tolist()) == {-100}


def test_a_pack_that_is_too_large_or_an_empty_example_is_refused():
    store = TokenStore.from_examples([GOLDEN, example([], [])])
    with pytest.raises(ValueError, match="7 tokens doesn't fit into 6"):
        collate(store, [0], pad_to=6)
    with pytest.raises(ValueError, match=r"a\.jsonl row 0 has no tokens"):
        collate(store, [1])


EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=9),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(EXAMPLES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_collate_equals_a_loop_over_segments(rows, padding, random):
    store = TokenStore.from_examples(
        [example([t for t, _ in row], [w for _, w in row], i) for i, row in enumerate(rows)]
    )
    members = random.sample(range(len(rows)), len(rows))
    expected, start = [], 0
    for segment, member in enumerate(members):
        row = rows[member]
        for place in range(len(row) - 1):
            if row[place + 1][1] > 0:
                expected.append((start + place, row[place + 1][0], row[place + 1][1], segment))
        start += len(row)
    batch = collate(store, members, pad_to=start + padding if padding else None)
    got = zip(
        batch.supervised_index.tolist(),
        batch.targets.tolist(),
        batch.weights.tolist(),
        batch.segment_of_target.tolist(),
        strict=True,
    )
    assert list(got) == expected
    assert store.supervised_counts[members].sum() == len(expected)
    assert store.weight_sums[members].sum() == sum(weight for _, _, weight, _ in expected)
