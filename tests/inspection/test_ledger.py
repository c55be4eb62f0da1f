"""The ledger balances, says so when it doesn't, and survives being saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.console import out
from chatwright.inspection.ledger import Ledger, LedgerError, Stage
from chatwright.inspection.plan_counts import count_plan, count_trained
from chatwright.packing.mixture import Mixture, MixtureSettings, SourceShare
from chatwright.packing.plan import PackingSettings, plan_packs


def balanced() -> Ledger:
    """10 rows: 1 bad, 1 held out, 1 filtered; one of 8 gives two examples; 1 of 9 dropped, 2 cut by 30 tokens."""
    ledger = Ledger()
    ledger.count("a", "read", 10)
    ledger.count("a", "skipped", 1, reason="no messages")
    ledger.count("a", "converted", 9)
    ledger.count("a", "expanded", 1)
    ledger.count("a", "filtered", 1, reason="duplicate")
    ledger.count("a", "rendered", 9, 850)
    ledger.count("a", "dropped", 1, 300, "longer than 200 tokens")
    ledger.count("a", "cut", 2, 30, "longer than 200 tokens")
    ledger.count("a", "kept", 8, 520)
    ledger.count("a", "held_out", 1, 50)
    ledger.count("a", "packed", 7, 470)
    ledger.count("a", "trained", 7, 470)
    return ledger


def test_a_whole_flow_balances():
    balanced().check(finished=True)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage != "repeated"])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 0), (-1, 0)])
def test_one_row_too_many_or_too_few_is_found_at_every_stage(stage, rows, tokens):
    ledger = balanced()
    ledger.count("a", stage, rows, tokens, reason="mutation")
    if stage == "cut" and rows > 0:  # cut counts examples that stay; only its tokens are in the sums
        ledger.check(finished=True)
    else:
        with pytest.raises(LedgerError, match=str(stage)):
            ledger.check(finished=True)


def test_a_count_below_zero_is_found_though_the_sums_balance():
    ledger = balanced()
    ledger.count("a", "packed", 9, 900)
    ledger.count("a", "trained", 9, 900)
    ledger.count("a", "unplaced", -9, -900, "read, but in no step so far")
    assert all(each.holds for each in ledger.sums(finished=True))
    with pytest.raises(LedgerError, match=r"a: unplaced \(read, but in no step so far\): -9 rows"):
        ledger.check(finished=True)


STAGES = ["rendered", "split", "dropped", "cut", "kept", "held_out", "packed", "unplaced", "trained"]


@pytest.mark.parametrize("stage", STAGES)
def test_one_token_lost_is_found(stage):
    ledger = balanced()
    ledger.count("a", stage, 0, 1, reason="mutation")
    with pytest.raises(LedgerError, match="tokens"):
        ledger.check(finished=True)


def test_a_flow_that_stops_early_balances_unless_it_should_have_gone_on():
    ledger = Ledger()
    ledger.count("a", "read", 3)
    ledger.check()
    ledger.count("a", "converted", 3)
    ledger.check()
    with pytest.raises(LedgerError, match=r"converted 3 .* ≠ .*rendered 0"):
        ledger.check(reached="packed")


def test_sources_are_checked_one_by_one():
    ledger = Ledger()
    for source, rows in (("a", 2), ("b", 1)):
        ledger.count(source, "read", 2)
        ledger.count(source, "converted", rows + (source == "b") * 0)
    ledger.count("a", "converted", 1)
    with pytest.raises(LedgerError) as caught:
        ledger.check()
    assert "a: rows: read 2 ≠ skipped 0 + converted 3" in str(caught.value)
    assert "b: rows: read 2 ≠ skipped 0 + converted 1" in str(caught.value)


def test_a_loss_needs_a_reason_and_an_empty_loss_makes_no_line():
    ledger = Ledger()
    with pytest.raises(ValueError, match="2 rows of a dropped without a reason"):
        ledger.count("a", "dropped", 2, 10)
    ledger.count("a", "dropped", 0, 0, "too long")
    assert ledger.entries() == []
    with pytest.raises(ValueError, match="mislaid"):
        ledger.count("a", "mislaid", 1)


def test_saved_and_loaded_goes_on_counting():
    ledger = balanced()
    loaded = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert loaded.entries() == ledger.entries()
    loaded.merge(ledger)
    assert loaded.rows("read") == 20 and loaded.tokens("kept", "a") == 1040 and loaded.rows("kept", "b") == 0


def test_the_table_shows_reasons(capsys):
    out().print(balanced().table())
    shown = capsys.readouterr().out
    assert "no messages" in shown and "duplicate" in shown and "470" in shown


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=50).filter(
        lambda rows: any(length for length, _ in rows)
    ),
    st.sampled_from(["tokens", "examples"]),
    st.sampled_from([None, "first", "all"]),
    st.floats(0.1, 2.7),
    st.sampled_from([None, 1, 4]),
)
def test_every_plan_balances(rows, by, until, epochs, max_steps):
    lengths, owner = np.array(rows + [(7, place) for place in range(3) if until]).T
    sources = ("a", "b", "c")
    mixture = until and Mixture(
        owner,
        [SourceShare(name, weight=weight) for name, weight in zip(sources, (1, 2, 0.5), strict=True)],
        MixtureSettings(until=until),
        seed=0,
        examples=np.flatnonzero(lengths),
    )
    ledger = Ledger()
    for place, source in enumerate(sources):
        mine = lengths[(owner == place) & ((lengths > 0) | (until is None))]
        ledger.count(source, "read", len(mine))
        ledger.count(source, "converted", len(mine))
        ledger.count(source, "rendered", len(mine), mine.sum())
        ledger.count(source, "kept", len(mine), mine.sum())
    packing = PackingSettings(by=by, tokens_per_pack=30, examples_per_step=3, window=5)
    plan = plan_packs(lengths, packing, seed=0, epochs=epochs, max_steps=max_steps, mixture=mixture)
    count_plan(ledger, plan, lengths, sources, owner)
    for step in range(plan.num_steps):
        ledger.check(reached="packed")
        count_trained(ledger, plan.examples_of_step(step), lengths, sources, owner)
    ledger.check(finished=True)


def test_a_plan_counts_repeats_and_what_the_weights_leave_out():
    owner, lengths, ledger = np.array([0, 0, 1, 1, 1, 1]), np.array([5, 5, 1, 2, 3, 4]), Ledger()
    shares = [SourceShare("small", weight=1), SourceShare("large", weight=1)]
    for name, place in (("small", 0), ("large", 1)):
        ledger.count(name, "kept", (owner == place).sum(), lengths[owner == place].sum())
    mixture = Mixture(owner, shares, MixtureSettings(until="first"), seed=0, examples=np.array([0, 1, 2, 3, 4]))
    plan = plan_packs(lengths, PackingSettings(tokens_per_pack=9), seed=0, epochs=1, mixture=mixture)
    count_plan(ledger, plan, lengths, ("small", "large"), owner)
    assert (ledger.rows("packed", "small"), ledger.rows("repeated")) == (2, 0)
    lost = [entry for entry in ledger.entries() if entry.stage == "unplaced"]
    reason = "not drawn: the mixture's weights give this source 2 rows an epoch"
    assert [(entry.source, entry.reason, entry.rows) for entry in lost] == [("large", reason, 1)]
    twice = Ledger()
    count_plan(
        twice, plan_packs(lengths, PackingSettings(), seed=0, epochs=2, mixture=mixture), lengths, ("s", "l"), owner
    )
    assert (twice.rows("repeated", "s"), twice.tokens("repeated", "s"), twice.rows("repeated", "l")) == (2, 10, 1)
