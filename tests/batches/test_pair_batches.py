"""Pairs in one batch: every written token predicted once, in its own context; padding, numbers, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches.loader import step_batches
from chatwright.batches.pairs import PairBatch, collate_pairs
from chatwright.batches.token_cache import load_store, save_store
from chatwright.batches.token_store import concatenate
from chatwright.packing.plan import PackingSettings, plan_packs
from pair_examples import SIZES, pair_store, plain_sides


def predictions(batch: PairBatch) -> list[list[tuple[tuple[int, ...], int]]]:
    """Of each side, the better ones first: (the tokens that the predicting state has seen, target)."""
    layout, found = batch.layout, [[] for _ in range(2 * batch.num_pairs)]
    starts = np.cumsum([0, *layout.lengths_k])
    keys = batch.input_ids[layout.kv_gather] if layout.kv_gather is not None else batch.input_ids
    for state, target, segment in zip(batch.supervised_index, batch.targets, batch.segment_of_target, strict=True):
        seen = int(batch.position_ids[state]) + 1
        context = keys[starts[segment] : starts[segment] + seen]
        assert batch.input_ids[state] == context[-1], "the state stands on another token than its context ends with"
        found[segment].append((tuple(context.tolist()), int(target)))
    return found


def expected(store, index) -> list[list[tuple[tuple[int, ...], int]]]:
    return [
        [(tuple(ids[:place].tolist()), int(ids[place])) for place in np.flatnonzero(weights)]
        for ids, weights in plain_sides(store, index)
    ]


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(0, 7))
def test_every_written_token_is_predicted_once_in_its_own_context(sizes, seed, spare):
    store = pair_store(sizes, seed=seed)
    batch = collate_pairs(store, range(len(store)), pad_to=store.num_tokens + spare)
    assert isinstance(batch, PairBatch) and len(batch.input_ids) == store.num_tokens + spare
    sides = [expected(store, index) for index in range(len(store))]
    wanted = [side[0] for side in sides] + [side[1] for side in sides]
    assert predictions(batch) == wanted
    assert predictions(batch.unshared()) == wanted
    assert batch.num_padding == spare and batch.layout.num_segments == 2 * len(store) + (spare > 0)


def test_a_prompt_stands_once():
    store = pair_store([(7, 2, 3), (4, 1, 1)])
    batch = collate_pairs(store, [0, 1])
    assert len(batch.input_ids) == 12 + 6
    assert batch.unshared().input_ids.numel() == 12 + 6 + 7 + 4
    assert batch.layout.lengths_q == (9, 5, 3, 1) and batch.layout.lengths_k == (9, 5, 10, 5)


def test_the_last_states_are_those_of_the_replies_ends():
    store = pair_store([(7, 2, 3), (4, 1, 1)])
    batch = collate_pairs(store, [0, 1], pad_to=32)
    ends = batch.input_ids[batch.last_states()].tolist()
    assert ends == [int(ids[-1]) for side in (0, 1) for index in (0, 1) for ids, _ in [plain_sides(store, index)[side]]]


def test_pairs_are_numbered_behind_others():
    batch = collate_pairs(pair_store([(2, 1, 1)] * 3), [2, 0], first=10)
    assert batch.pairs.tolist() == [12, 10]


def test_no_pair_gives_a_pack_of_padding_and_too_many_are_refused():
    store = pair_store([(2, 1, 1)])
    dummy = collate_pairs(store, [], pad_to=8)
    assert not isinstance(dummy, PairBatch) and dummy.num_padding == 8 and not len(dummy.targets)
    with pytest.raises(ValueError, match="doesn't fit"):
        collate_pairs(store, [0], pad_to=3)


def test_another_device_and_page_locked_memory_keep_the_layout():
    batch = collate_pairs(pair_store([(2, 1, 1)]), [0], pad_to=8)
    moved = batch.to("meta")
    assert isinstance(moved, PairBatch) and moved.layout.kv_gather.device.type == "meta"
    assert moved.layout.cu_k.shape == batch.layout.cu_k.shape and moved.pairs.device.type == "meta"


def test_ranks_share_the_pairs_of_a_step():
    store = pair_store([(5, 3, 2)] * 9)
    plan = plan_packs(
        store.lengths, PackingSettings(tokens_per_pack=20, packs_per_step=3), seed=0, epochs=1, name_of=store.name
    )
    for ranks in (1, 2, 4):
        shares = [step_batches(store, plan, 0, r, ranks, collate_with=collate_pairs) for r in range(ranks)]
        pairs = [int(p) for share in shares for pack in share.packs if isinstance(pack, PairBatch) for p in pack.pairs]
        assert sorted(pairs) == sorted(plan.examples_of_step(0).tolist())
        assert len({len(share.packs) for share in shares}) == 1


def test_the_parts_of_pairs_survive_the_disk_and_joining(tmp_path):
    store = pair_store([(5, 3, 2), (1, 2, 3)])
    save_store(store, tmp_path / "s")
    for other in (load_store(tmp_path / "s"), concatenate([store.take(np.array([0])), store.take(np.array([1]))])):
        assert other.prompt_lengths.tolist() == [5, 1] and other.chosen_lengths.tolist() == [3, 2]
    assert store.take(np.array([1, 0])).chosen_lengths.tolist() == [2, 3]
    assert torch.equal(collate_pairs(load_store(tmp_path / "s"), [1]).input_ids, collate_pairs(store, [1]).input_ids)
