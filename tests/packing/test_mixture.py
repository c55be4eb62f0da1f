"""Mixtures: shares, repeats and curriculum; every row in its turn; each epoch a function of seed and number."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.errors import DataError
from chatwright.packing.mixture import Mixture, MixtureSettings, SourceShare
from chatwright.packing.plan import PLANNERS, PackingSettings, plan_packs

CAPACITY = 32
SEEDS = st.integers(0, 2**40)
WEIGHTS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.1, 0.3, 0.5, 1, 2, 3.7, 10])), min_size=1, max_size=4
)
REPEATS = st.lists(st.tuples(st.integers(0, 25), st.integers(1, 3)), min_size=1, max_size=4).filter(
    lambda sources: any(count for count, _ in sources)
)
ORDERS = st.sampled_from(["shuffled", "sequence"])
UNTIL = st.sampled_from(["first", "all"])


def weighted(sources, seed, **options):
    """A mixture of (rows, weight) sources; each row one example."""
    owner = np.repeat(np.arange(len(sources)), [rows for rows, _ in sources])
    shares = [SourceShare(f"s{place}", weight=weight) for place, (_, weight) in enumerate(sources)]
    return Mixture(owner, shares, MixtureSettings(**options), seed=seed), owner


def repeated(sources, seed, **options):
    """A mixture of (rows, epochs) sources; each row one example."""
    owner = np.repeat(np.arange(len(sources)), [rows for rows, _ in sources])
    shares = [SourceShare(f"s{place}", epochs=epochs) for place, (_, epochs) in enumerate(sources)]
    return Mixture(owner, shares, MixtureSettings(**options), seed=seed), owner


def drawn(mixture, epoch):
    return np.concatenate(mixture.epoch_groups(epoch))


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, UNTIL, SEEDS, st.integers(1, 6))
def test_the_shares_are_within_one_row_of_the_wished_however_many_epochs(sources, until, seed, epochs):
    mixture, owner = weighted(sources, seed, until=until)
    counts = sum(np.bincount(owner[drawn(mixture, epoch)], minlength=len(sources)) for epoch in range(epochs))
    weights = [Fraction(str(weight)) for _, weight in sources]
    scales = [rows / weight for (rows, _), weight in zip(sources, weights, strict=True)]
    scale = min(scales) if until == "first" else max(scales)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(int(count) - epochs * scale * weight) <= Fraction(1, 2)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, UNTIL, SEEDS)
def test_the_epoch_ends_when_the_first_is_used_up_or_all_were_seen(sources, until, seed):
    mixture, owner = weighted(sources, seed, until=until)
    seen = np.bincount(drawn(mixture, 0), minlength=len(owner))
    whole = [bool((seen[owner == place] >= 1).all()) for place in range(len(sources))]
    if until == "all":
        assert all(whole)
    else:
        assert any(whole) and seen.max() == 1


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, UNTIL, SEEDS, st.integers(1, 8))
def test_no_row_comes_again_before_all_of_its_source_have_come(sources, until, seed, epochs):
    mixture, owner = weighted(sources, seed, until=until)
    counts = sum(np.bincount(drawn(mixture, epoch), minlength=len(owner)) for epoch in range(epochs))
    for place in range(len(sources)):
        mine = counts[owner == place]
        assert mine.max() - mine.min() <= 1


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, UNTIL, ORDERS, SEEDS, st.integers(1, 1000))
def test_an_epoch_is_the_same_without_the_epochs_before_it(sources, until, order, seed, epoch):
    mixture, _ = weighted(sources, seed, until=until, order=order)
    for earlier in (0, 1, epoch):
        in_order = mixture.epoch_groups(earlier)
    alone = weighted(sources, seed, until=until, order=order)[0].epoch_groups(epoch)
    assert len(alone) == len(in_order) and all(map(np.array_equal, alone, in_order))


@settings(max_examples=60, deadline=None)
@given(REPEATS, ORDERS, SEEDS)
def test_a_source_is_there_as_often_as_its_epochs_say(sources, order, seed):
    mixture, owner = repeated(sources, seed, order=order)
    for epoch in range(2):
        counts = np.bincount(drawn(mixture, epoch), minlength=len(owner))
        assert counts.tolist() == [sources[place][1] for place in owner]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), SEEDS, st.integers(1, 5))
def test_the_parts_of_one_row_are_drawn_together(rows, seed, epochs):
    owner = np.array([0] * len(rows) + [1] * 3)
    rows = np.array([*rows, 0, 1, 2])  # the other source has the same row numbers
    shares = [SourceShare("split", weight=1), SourceShare("other", weight=2)]
    mixture = Mixture(owner, shares, MixtureSettings(until="first"), seed=seed, rows=rows)
    for epoch in range(epochs):
        counts = np.bincount(drawn(mixture, epoch), minlength=len(owner))
        for row in np.unique(rows[owner == 0]):
            assert len(set(counts[(owner == 0) & (rows == row)])) == 1


def test_fractional_draws_change_by_epoch_and_with_the_seed():
    sources = [(100, 1), (1000, 1)]
    first, second = (drawn(weighted(sources, 3, until="first")[0], epoch) for epoch in (0, 1))
    other = drawn(weighted(sources, 4, until="first")[0], 0)
    assert not set(first[first >= 100]) & set(second[second >= 100]), "a stretch further of the same pass"
    assert set(first) != set(other)


def test_only_the_given_examples_are_drawn():
    shares = [SourceShare("a"), SourceShare("b", epochs=2)]
    mixture = Mixture(np.array([0, 0, 1, 1]), shares, MixtureSettings(), seed=0, examples=np.array([3, 1]))
    assert drawn(mixture, 0).tolist() == [1, 3, 3]


def test_weights_are_the_decimals_they_are_written_as():
    mixture, owner = weighted([(10, 0.1), (20, 0.2), (30, 0.3)], 0)
    for epoch in range(20):
        assert np.bincount(owner[drawn(mixture, epoch)]).tolist() == [10, 20, 30]


def test_a_weight_without_rows_and_an_endless_epoch_are_refused():
    with pytest.raises(DataError, match="no row to train on: s1"):
        weighted([(5, 1), (0, 1)], 0)
    with pytest.raises(DataError, match=r"(?s)until all of s1 is seen.*until: first"):
        weighted([(1, 1), (1000, 1e-6)], 0)
    weighted([(1, 1), (1000, 1e-6)], 0, until="first")
    with pytest.raises(ValueError, match="every source a weight, or none"):
        Mixture(np.array([0, 1]), [SourceShare("a", weight=1), SourceShare("b")], MixtureSettings(), seed=0)
    with pytest.raises(ValueError, match="negative"):
        weighted([(5, 1)], 0)[0].epoch_groups(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, CAPACITY), min_size=1, max_size=80).filter(any),
    st.sampled_from(sorted(PLANNERS)),
    st.booleans(),
    st.floats(0.1, 3.0),
    st.integers(0, 99),
)
def test_one_source_without_a_weight_is_planned_as_without_a_mixture(lengths, by, shuffle, epochs, seed):
    packing = PackingSettings(by=by, tokens_per_pack=CAPACITY, examples_per_step=3, window=7, shuffle=shuffle)
    for order in ("shuffled", "sequence"):
        mixture, _ = repeated([(len(lengths), 1)], seed, order=order)
        mixed = plan_packs(np.array(lengths), packing, seed=seed, epochs=epochs, mixture=mixture)
        plain = plan_packs(np.array(lengths), packing, seed=seed, epochs=epochs)
        assert mixed.fingerprint() == plain.fingerprint() and len(mixed.unplaced) == len(plain.unplaced)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just(weighted), WEIGHTS, UNTIL, ORDERS), st.tuples(st.just(repeated), REPEATS, UNTIL, ORDERS)
    ),
    st.sampled_from(sorted(PLANNERS)),
    st.sampled_from(["keep", "drop"]),
    st.floats(0.2, 2.5),
    st.sampled_from([None, 3]),
    st.integers(0, 99),
)
def test_every_draw_is_placed_or_listed_and_every_example_is_accounted_for(made, by, last_step, epochs, limit, seed):
    make, sources, until, order = made
    mixture, owner = make(sources, seed, until=until, order=order)
    lengths = np.random.default_rng(seed).integers(1, CAPACITY + 1, len(owner))
    packing = PackingSettings(
        by=by, tokens_per_pack=CAPACITY, examples_per_step=4, packs_per_step=1 + seed % 3, window=9, last_step=last_step
    )
    try:
        plan = plan_packs(lengths, packing, seed=seed, epochs=epochs, max_steps=limit, mixture=mixture)
    except DataError as error:
        assert last_step == "drop" and "not one whole step" in error.message
        return
    for epoch in range(plan.num_epochs):
        members = plan.members[np.repeat(plan.epoch_of_pack, np.diff(plan.pack_starts)) == epoch]
        listed = [each.examples for each in plan.unplaced if each.epoch == epoch]
        assert Counter(np.concatenate([members, *listed]).tolist()) == Counter(drawn(mixture, epoch).tolist())
    never = [each.examples for each in plan.unplaced if each.epoch is None]
    assert np.array_equal(np.sort(np.concatenate([[], *never])), np.flatnonzero(plan.draws == 0))
    assert all("rows an epoch" in each.reason for each in plan.unplaced if each.epoch is None)
    if last_step == "drop":
        per_step = plan.step_sums(np.ones(len(lengths))) if by == "examples" else np.diff(plan.step_starts)
        assert set(per_step) == {4 if by == "examples" else packing.packs_per_step}


@pytest.mark.parametrize("by", sorted(PLANNERS))
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_curriculum_goes_entry_by_entry_on_every_rank(by, ranks):
    sources = [(50, 1), (30, 2), (40, 1)]
    mixture, owner = repeated(sources, 0, order="sequence")
    lengths = np.random.default_rng(0).integers(1, CAPACITY + 1, len(owner))
    packing = PackingSettings(by=by, tokens_per_pack=CAPACITY, packs_per_step=4, examples_per_step=7, window=16)
    plan = plan_packs(lengths, packing, seed=0, epochs=1, mixture=mixture)
    for rank in range(ranks):
        packs = [pack for step in range(plan.num_steps) for pack in plan.packs_of_step(step)[rank::ranks]]
        entries = owner[np.concatenate(packs)]
        assert (np.diff(entries) >= 0).all()
        if by == "tokens":
            assert all(len(set(owner[pack])) == 1 for pack in packs), "a pack has one entry"
    inside = plan.members[owner[plan.members] == 1]
    assert sorted(inside) == sorted([*range(50, 80)] * 2) and list(inside) != sorted(inside), "shuffled inside an entry"
    again = plan_packs(lengths, packing, seed=0, epochs=2, mixture=mixture)
    assert (owner[again.members[: len(plan.members)]] == owner[plan.members]).all(), "each epoch begins anew"


def test_each_entry_of_a_curriculum_has_an_order_of_its_own():
    mixture, owner = repeated([(50, 1), (50, 1)], 0, order="sequence")
    plan = plan_packs(np.full(100, 8), PackingSettings(by="examples"), seed=0, epochs=1, mixture=mixture)
    first, second = np.split(plan.members, 2)
    assert (owner[first] == 0).all() and not np.array_equal(first, second - 50)


def test_shuffled_sources_are_mixed_through_the_whole_epoch():
    mixture, owner = repeated([(500, 1), (250, 2)], 0)
    plan = plan_packs(np.full(750, 8), PackingSettings(by="examples"), seed=0, epochs=1, mixture=mixture)
    halves = [owner[half].mean() for half in np.split(plan.members, 2)]
    assert all(abs(mean - 0.5) < 0.05 for mean in halves)


def test_unshuffled_repeats_come_pass_by_pass():
    mixture, _ = repeated([(3, 2), (2, 1)], 0)
    for by in PLANNERS:
        packing = PackingSettings(by=by, tokens_per_pack=8, shuffle=False)
        plan = plan_packs(np.full(5, 8), packing, seed=0, epochs=1, mixture=mixture)
        assert plan.members.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_a_mixture_of_examples_without_tokens_is_an_error_and_no_endless_loop():
    shares = [SourceShare("a", weight=1), SourceShare("b", weight=1)]
    mixture = Mixture(np.array([0, 0, 1]), shares, MixtureSettings(), seed=0, examples=np.array([0, 2]))
    with pytest.raises(DataError, match="nothing to train on"):
        plan_packs(np.array([0, 5, 0]), PackingSettings(), seed=0, max_steps=9, mixture=mixture)
    plan = plan_packs(np.array([0, 5, 3]), PackingSettings(), seed=0, epochs=2, mixture=mixture)
    assert [(each.epoch, each.reason, each.examples.tolist()) for each in plan.unplaced] == [
        (0, "has no tokens", [0]),
        (1, "has no tokens", [0]),
    ]
