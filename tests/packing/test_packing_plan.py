"""Both planners: everything placed or listed, nothing over capacity, deterministic, and it always ends."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.errors import DataError
from chatwright.packing.by_tokens import best_fit_decreasing
from chatwright.packing.pack_plan import PackPlan
from chatwright.packing.plan import PLANNERS, PackingSettings, plan_packs

CAPACITY = 32
LENGTHS = st.lists(st.integers(0, CAPACITY), min_size=1, max_size=120).filter(any).map(np.array)
SETTINGS = st.builds(
    PackingSettings,
    by=st.sampled_from(sorted(PLANNERS)),
    tokens_per_pack=st.just(CAPACITY),
    packs_per_step=st.integers(1, 5),
    examples_per_step=st.integers(1, 9),
    window=st.integers(1, 40),
    shuffle=st.booleans(),
)


def epoch_of_step(plan: PackPlan) -> np.ndarray:
    """int64 `[S]`, the epoch of each step's first pack."""
    return plan.epoch_of_pack[plan.step_starts[:-1]]


HORIZONS = st.one_of(
    st.fixed_dictionaries({"epochs": st.floats(0.05, 3.5)}),
    st.fixed_dictionaries({"max_steps": st.integers(1, 30)}),
    st.fixed_dictionaries({"epochs": st.integers(1, 3), "max_steps": st.integers(1, 30)}),
)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, SETTINGS, HORIZONS, st.integers(0, 2**40))
def test_every_example_of_every_epoch_is_placed_once_or_listed(lengths, packing, horizon, seed):
    plan = plan_packs(lengths, packing, seed=seed, **horizon)
    epoch_of_member = np.repeat(plan.epoch_of_pack, np.diff(plan.pack_starts))
    for epoch in range(plan.num_epochs):
        listed = [each.examples for each in plan.unplaced if each.epoch == epoch]
        seen = np.concatenate([plan.members[epoch_of_member == epoch], *listed])
        assert np.array_equal(np.sort(seen), np.arange(len(lengths)))
    placed = plan.waste(lengths).placed_tokens
    assert placed + sum(int(lengths[each.examples].sum()) for each in plan.unplaced) == plan.num_epochs * lengths.sum()
    assert all(each.reason for each in plan.unplaced)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, SETTINGS, HORIZONS, st.integers(0, 99))
def test_packs_and_steps_are_never_empty_nor_too_large(lengths, packing, horizon, seed):
    plan = plan_packs(lengths, packing, seed=seed, **horizon)
    sizes = [int(lengths[plan.pack(index)].sum()) for index in range(plan.num_packs)]
    assert min(sizes) > 0 and max(sizes) <= CAPACITY
    assert plan.num_steps <= horizon.get("max_steps", plan.num_steps)
    packs_a_step = np.diff(plan.step_starts)
    assert packs_a_step.min() > 0
    if packing.by != "examples":
        assert (packs_a_step[:-1] == packing.packs_per_step).all() and packs_a_step[-1] <= packing.packs_per_step
    else:
        counts = plan.step_sums(np.ones(len(lengths), dtype=np.int64))
        assert counts.max() <= packing.examples_per_step
        whole = int((lengths > 0).sum())
        last_of_epoch = np.append(np.diff(epoch_of_step(plan)) > 0, True)
        assert (counts[~last_of_epoch] == packing.examples_per_step).all()
        assert set(counts[last_of_epoch]) <= {whole % packing.examples_per_step, packing.examples_per_step}


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SETTINGS, st.integers(0, 99))
def test_the_plan_is_a_function_of_its_inputs(lengths, packing, seed):
    first, again = (plan_packs(lengths, packing, seed=seed, epochs=2) for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    half = plan_packs(lengths, packing, seed=seed, epochs=1)
    assert np.array_equal(first.members[: len(half.members)], half.members), "an epoch doesn't depend on later ones"


def test_the_fingerprint_and_the_order_change_with_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 32, 500)
    for by in PLANNERS:
        packing = PackingSettings(by=by, tokens_per_pack=32)
        plans = [plan_packs(lengths, packing, seed=seed, epochs=2) for seed in (1, 2)]
        assert plans[0].fingerprint() != plans[1].fingerprint()
        one, two = np.split(plans[0].members, 2)
        assert not np.array_equal(one, two) and np.array_equal(np.sort(one), np.sort(two))


def test_length_order_does_not_leak_into_training_order():
    lengths = np.random.default_rng(0).integers(1, 2000, 20_000)
    plan = plan_packs(lengths, PackingSettings(tokens_per_pack=2048), seed=0, epochs=1)
    longest = np.array([lengths[plan.pack(index)].max() for index in range(plan.num_packs)])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.03
    lags = np.corrcoef(longest[:-1], longest[1:])[0, 1]
    assert abs(lags) < 0.03, "neighbouring packs are no more alike than others"


def test_unshuffled_examples_keep_the_order_of_the_data():
    packing = PackingSettings(by="examples", tokens_per_pack=10, examples_per_step=3, shuffle=False)
    plan = plan_packs(np.array([4, 6, 5, 9, 1]), packing, seed=0, epochs=1)
    assert plan.members.tolist() == [0, 1, 2, 3, 4]
    assert [[pack.tolist() for pack in plan.packs_of_step(step)] for step in range(plan.num_steps)] == [
        [[0, 1], [2]],
        [[3, 4]],
    ]
    tokens = plan_packs(np.array([4, 6, 5, 9, 1]), packing.model_copy(update={"by": "tokens"}), seed=0, epochs=1)
    assert [pack.tolist() for step in range(tokens.num_steps) for pack in tokens.packs_of_step(step)] == [
        [0, 1],
        [2],
        [3, 4],
    ]


def test_best_fit_decreasing_on_paper():
    lengths = np.array([3, 6, 4, 5])
    assert best_fit_decreasing(lengths, [0, 1, 2, 3], 10) == [[1, 2], [3, 0]]


def test_packs_are_nearly_full_and_thin_tails_wait_for_the_next_window():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 10_000).astype(int), 5, 2048)
    plan = plan_packs(lengths, PackingSettings(tokens_per_pack=2048, window=200), seed=0, epochs=1)
    waste = plan.waste(lengths)
    assert waste.fraction < 0.006, "without carrying it is 0.015"
    assert waste.placed_tokens == lengths.sum() and waste.num_examples == 10_000
    assert waste.capacity_tokens == plan.num_packs * 2048


def test_steps_run_across_the_end_of_an_epoch():
    plan = plan_packs(np.full(5, 10), PackingSettings(tokens_per_pack=10, packs_per_step=2), seed=0, epochs=3)
    assert plan.num_steps == 8 and np.diff(plan.step_starts).tolist() == [2] * 7 + [1]
    assert epoch_of_step(plan).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert plan.epoch_of_pack.tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (0.5, 2), (1.5, 5), (2, 6), (0.01, 1)])
def test_steps_by_examples_are_counted_as_the_hugging_face_trainer_counts(epochs, steps):
    """max_steps = ceil(num_train_epochs · ceil(rows / batch))."""
    plan = plan_packs(np.full(20, 5), PackingSettings(by="examples", examples_per_step=8), seed=0, epochs=epochs)
    assert plan.num_steps == steps


def test_a_fraction_that_is_not_exact_in_binary_adds_no_step():
    plan = plan_packs(np.full(10, 8), PackingSettings(tokens_per_pack=8), seed=0, epochs=1.1)
    assert plan.num_steps == 11


def test_progress_follows_the_supervised_tokens():
    plan = plan_packs(np.full(4, 8), PackingSettings(tokens_per_pack=8, shuffle=False), seed=0, epochs=1)
    assert plan.progress(np.array([1, 0, 2, 1])).tolist() == [0, 0.25, 0.25, 0.75, 1]
    assert plan.progress(np.zeros(4)).tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_examples_without_tokens_are_listed():
    plan = plan_packs(np.array([0, 3, 0]), PackingSettings(), seed=0, epochs=2)
    assert [(each.epoch, each.reason, each.examples.tolist()) for each in plan.unplaced] == [
        (0, "has no tokens", [0, 2]),
        (1, "has no tokens", [0, 2]),
    ]


@pytest.mark.parametrize("by", sorted(PLANNERS))
def test_an_example_longer_than_a_pack_is_named(by):
    with pytest.raises(DataError) as caught:
        plan_packs(
            np.array([5, 40, 33]),
            PackingSettings(by=by, tokens_per_pack=CAPACITY),
            seed=0,
            epochs=1,
            name_of=lambda index: f"chats.jsonl row {index}",
        )
    message = str(caught.value)
    assert "2 of 3 examples are longer than a pack of 32 tokens" in message
    assert "chats.jsonl row 1 (40 tokens), chats.jsonl row 2 (33 tokens)" in message
    assert "tokens_per_pack to 40" in message


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_train_on_is_an_error_and_no_endless_loop(lengths):
    with pytest.raises(DataError, match="nothing to train on"):
        plan_packs(np.array(lengths), PackingSettings(), seed=0, max_steps=3)


@pytest.mark.parametrize("horizon", [{}, {"epochs": 0}, {"epochs": float("inf")}, {"max_steps": 0}])
def test_a_horizon_that_makes_no_sense_is_refused(horizon):
    with pytest.raises(ValueError, match=r"epochs|max_steps"):
        plan_packs(np.array([1]), PackingSettings(), seed=0, **horizon)


def test_steps_and_values_out_of_range_are_refused():
    plan = plan_packs(np.array([1, 2]), PackingSettings(), seed=0, epochs=1)
    with pytest.raises(IndexError):
        plan.packs_of_step(plan.num_steps)
    with pytest.raises(IndexError):
        plan.examples_of_step(-1)
    with pytest.raises(ValueError, match="3 values for a plan of 2"):
        plan.waste(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="negative"):
        plan_packs(np.array([1]), PackingSettings(), seed=-1, epochs=1)


@pytest.mark.parametrize("window", [1000, 100_000])
def test_a_hundred_thousand_examples_take_seconds_at_most(window):
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 100_000).astype(int), 5, 2048)
    start = time.perf_counter()
    plan = plan_packs(lengths, PackingSettings(window=window), seed=0, epochs=1)
    assert time.perf_counter() - start < 5, "about 0.2 s on an idle core"
    assert plan.waste(lengths).fraction < 0.002


def test_dropping_the_last_step_by_examples_counts_as_nanochat():
    """Its SFT takes floor(rows / 32) steps an epoch."""
    packing = PackingSettings(by="examples", examples_per_step=8, last_step="drop")
    plan = plan_packs(np.full(20, 5), packing, seed=0, epochs=3)
    assert plan.num_steps == 6 and plan.step_sums(np.ones(20)).tolist() == [8] * 6
    reason = "in an incomplete step (packing.last_step: drop)"
    assert [(each.epoch, each.reason, len(each.examples)) for each in plan.unplaced] == [
        (e, reason, 4) for e in (0, 1, 2)
    ]
    half = plan_packs(np.full(20, 5), packing, seed=0, epochs=0.5)
    assert half.num_steps == 1 and half.unplaced[0].reason == "after the last planned step"


def test_dropping_the_last_step_by_tokens_takes_packs_of_the_last_epochs():
    packing = PackingSettings(tokens_per_pack=8, packs_per_step=5, last_step="drop")
    plan = plan_packs(np.full(3, 8), packing, seed=0, epochs=3)
    assert plan.num_steps == 1 and np.diff(plan.step_starts).tolist() == [5]
    assert [(each.epoch, len(each.examples)) for each in plan.unplaced] == [(1, 1), (2, 3)]
    assert plan.draws.tolist() == [3, 3, 3] and plan.placed.sum() == 5


@pytest.mark.parametrize("by", sorted(PLANNERS))
@pytest.mark.parametrize("horizon", [{"epochs": 1}, {"max_steps": 9, "epochs": 2}, {"max_steps": 9}])
def test_dropping_the_only_step_is_an_error(by, horizon):
    packing = PackingSettings(by=by, tokens_per_pack=8, packs_per_step=9, examples_per_step=4, last_step="drop")
    if by != "examples" and horizon == {"max_steps": 9}:
        assert plan_packs(np.full(3, 8), packing, seed=0, **horizon).num_steps == 9
        return
    with pytest.raises(DataError, match=r"(?s)not one whole step.*last_step: keep"):
        plan_packs(np.full(3, 8), packing, seed=0, **horizon)


@pytest.mark.parametrize(
    ("by", "shuffle", "fingerprint"),
    [
        ("tokens", True, "f59148db7be09243"),
        ("tokens", False, "576ead868df2dd31"),
        ("examples", True, "fae1abf643b663b0"),
        ("examples", False, "21983ade94dad4c6"),
    ],
)
def test_plans_stay_what_they_were_so_that_older_runs_can_be_resumed(by, shuffle, fingerprint):
    lengths = np.random.default_rng(7).integers(0, 65, 3000)
    packing = PackingSettings(by=by, shuffle=shuffle, tokens_per_pack=64, window=200)
    assert plan_packs(lengths, packing, seed=5, epochs=2.3).fingerprint().startswith(fingerprint)
