"""The loader: ranks, dummies, resume, prefetch, errors and a clean close."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from chatwright.batches.loader import StepLoader, step_batches
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.layouts import SegmentLayout
from chatwright.packing.plan import PackingSettings, plan_packs
from chatwright.templates.rendered import ExampleKey, RenderedExample


@pytest.fixture(scope="module")
def store():
    random = np.random.default_rng(3)
    examples = []
    for row in range(40):
        count = int(random.integers(2, 30))
        ids = random.integers(1, 50, count).astype(np.int32)
        weights = random.choice([0.0, 0.25, 1.0], count).astype(np.float32)
        examples.append(RenderedExample(ids, weights, (), ExampleKey("a.jsonl", row, 0)))
    return TokenStore.from_examples(examples)


@pytest.fixture(scope="module", params=["tokens", "examples"])
def plan(store, request):
    settings = PackingSettings(by=request.param, tokens_per_pack=64, packs_per_step=3, examples_per_step=7)
    return plan_packs(store.lengths, settings, seed=1, epochs=2)


def flat(step):
    """A step's content as plain lists, for comparing."""
    return step.step, step.weight, [(p.input_ids.tolist(), p.targets.tolist(), p.keys) for p in step.packs]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_a_step_and_know_its_sums(store, plan, world_size):
    for step in range(plan.num_steps):
        ranks = [step_batches(store, plan, step, rank, world_size) for rank in range(world_size)]
        assert len({len(each.packs) for each in ranks}) == 1
        packs = [pack for each in ranks for pack in each.packs]
        for each in ranks:
            assert each.weight == pytest.approx(sum(pack.weights.double().sum().item() for pack in packs), rel=1e-12)
            assert each.supervised_tokens == sum(len(pack.targets) for pack in packs)
            assert each.num_tokens == sum(len(pack.input_ids) - pack.num_padding for pack in packs)
        rows = sorted(key.row for pack in packs for key in pack.keys if key is not None)
        assert rows == sorted(plan.examples_of_step(step).tolist())
        dummies = [pack for pack in packs if pack.keys == (None,)]
        assert len(dummies) == len(packs) - len(plan.packs_of_step(step))
        assert all(len(pack.input_ids) == 1 and len(pack.targets) == 0 for pack in dummies)


def test_resumed_in_the_middle_equals_never_stopped(store, plan):
    whole = [flat(step) for step in StepLoader(store, plan, rank=1, world_size=2)]
    assert len(whole) == plan.num_steps
    for start in range(plan.num_steps + 1):
        loader = StepLoader(store, plan, rank=1, world_size=2, start_step=start)
        assert len(loader) == plan.num_steps - start
        assert [flat(step) for step in loader] == whole[start:]


@pytest.mark.parametrize("prefetch", [0, 1, 5, 1000])
def test_prefetch_changes_nothing(store, plan, prefetch):
    plain = [flat(step_batches(store, plan, step)) for step in range(plan.num_steps)]
    assert [flat(step) for step in StepLoader(store, plan, prefetch=prefetch)] == plain


def test_constant_shapes_with_pad_to(store, plan):
    for step in StepLoader(store, plan, rank=3, world_size=4, pad_to=64):
        assert all(len(pack.input_ids) == 64 for pack in step.packs)


def test_a_background_error_reaches_the_consumer_at_its_step(store, plan):
    loader = StepLoader(store, plan, pad_to=int(plan.waste(store.lengths).thinnest))
    with pytest.raises(ValueError, match="doesn't fit into"):
        list(loader)
    assert not loader_threads()


def test_leaving_early_ends_the_thread(store, plan):
    for _ in StepLoader(store, plan, prefetch=3):
        break
    assert not loader_threads()


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("chatwright-loader")]


def test_a_plan_for_other_data_or_a_wrong_rank_is_refused(store, plan):
    other = plan_packs(np.array([3]), PackingSettings(), seed=0, epochs=1)
    with pytest.raises(ValueError, match="a plan for 1 examples, but a store of 40"):
        StepLoader(store, other)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        StepLoader(store, plan, rank=2, world_size=2)
    with pytest.raises(ValueError, match="start_step"):
        StepLoader(store, plan, start_step=plan.num_steps + 1)
    with pytest.raises(ValueError, match="prefetch"):
        StepLoader(store, plan, prefetch=-1)


def test_a_moved_batch_keeps_its_layout():
    numbers = torch.arange(3)
    layout = SegmentLayout.from_lengths([1, 2], [2, 3])
    layout = SegmentLayout(layout.cu_q, layout.cu_k, layout.lengths_q, layout.lengths_k, kv_gather=torch.arange(5))
    batch = PackedBatch(
        numbers, numbers, layout, numbers[:0], numbers[:0], numbers[:0].float(), numbers[:0], (None, None)
    )
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.layout.cu_k.device.type == "meta"
    assert moved.layout.kv_gather is not None and moved.layout.kv_gather.shape == (5,)
    assert moved.layout.lengths_k == (2, 3)


@pytest.mark.gpu
def test_batches_arrive_on_cuda(store, plan):
    for on_host, on_device in zip(StepLoader(store, plan), StepLoader(store, plan, device="cuda"), strict=True):
        assert flat(on_host) == flat(on_device)
        assert all(pack.layout.cu_q.is_cuda for pack in on_device.packs)
