"""Constant-length packing: a stream cut as a loop would cut it, counted in the ledger, trained, resumed, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches.collate import collate
from chatwright.batches.loader import step_batches
from chatwright.batches.token_store import TokenStore
from chatwright.errors import ConfigError
from chatwright.inspection.ledger import Stage
from chatwright.packing.constant_length import cut_stream
from chatwright.packing.pack_plan import PackingSettings
from chatwright.packing.plan import plan_packs
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.joined_packs import NOTHING_TRAINED
from chatwright.recipes.planning import plan_run
from chatwright.selftest.laws import check_recipe
from chatwright.templates.rendered import ExampleKey, RenderedExample
from tiny_model import make_tiny_model
from training_runs import CPU, Crash, CrashAfter, conversations, differing_bits, prepare, recipe, train, write_rows

STREAM = {"packing": {"by": "constant_length", "tokens_per_pack": 64}}


def examples_of(lengths: list[int]) -> TokenStore:
    """Examples whose tokens are all different, the later half of each trained."""
    start, found = 0, []
    for row, length in enumerate(lengths):
        weights = np.array([float(2 * at >= length) for at in range(length)], dtype=np.float32)
        weights[:1] = 0.0
        ids = np.arange(start, start + length, dtype=np.int32)
        found.append(RenderedExample(ids, weights, (), ExampleKey("hand", row, 0)))
        start += length
    return TokenStore.from_examples(found)


def test_the_worked_example() -> None:
    packing = PackingSettings(by="constant_length", tokens_per_pack=4, shuffle=False)
    pieces = cut_stream(np.array([3, 4, 2]), [np.arange(3)], packing, seed=0)
    found = list(zip(pieces.examples.tolist(), pieces.starts.tolist(), pieces.stops.tolist(), strict=True))
    assert found == [(0, 0, 3), (1, 0, 1), (1, 1, 4), (2, 0, 1), (2, 1, 2)]
    plan = plan_packs(pieces.stops - pieces.starts, packing, seed=0, epochs=1)
    assert [plan.pack(index).tolist() for index in range(plan.num_packs)] == [[0, 1], [2, 3], [4]]
    assert plan.joined and not packing.exact


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    st.integers(1, 17),
    st.booleans(),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_blocks_equal_a_naive_stream(lengths: list[int], capacity: int, shuffle: bool, seed: int, repeats: int) -> None:
    """The stream as a list of (token, weight), cut by slicing: the same blocks, tokens, targets, and sums."""
    store = examples_of(lengths)
    packing = PackingSettings(by="constant_length", tokens_per_pack=capacity, shuffle=shuffle)
    group = np.repeat(np.arange(len(lengths)), repeats)
    pieces = cut_stream(store.lengths, [group], packing, seed)
    cut = store.cut(pieces.examples, pieces.starts, pieces.stops)
    order = [int(e) for e, start in zip(pieces.examples, pieces.starts, strict=True) if start == 0]
    assert sorted(order) == group.tolist() and (shuffle or order == group.tolist())
    stream = [
        (int(token), float(weight)) for index in order for token, weight in zip(*store.example(index), strict=True)
    ]
    blocks = [stream[at : at + capacity] for at in range(0, len(stream), capacity)]
    plan = plan_packs(cut.lengths, packing, seed=seed, epochs=1)
    steps = [step_batches(cut, plan, step) for step in range(plan.num_steps)]
    made = [batch for step in steps for batch in step.packs]
    assert sorted(batch.input_ids.tolist() for batch in made) == sorted([t for t, _ in block] for block in blocks)
    by_ids = {tuple(t for t, _ in block): block for block in blocks}
    for step, batch in zip(steps, made, strict=True):
        block = by_ids[tuple(batch.input_ids.tolist())]
        assert batch.layout.lengths_q == (len(block),)
        assert batch.position_ids.tolist() == list(range(len(block)))
        wanted = [(at, token) for at, (token, weight) in enumerate(block) if weight > 0 and at > 0]
        assert (batch.supervised_index + 1).tolist() == [at for at, _ in wanted]
        assert batch.targets.tolist() == [token for _, token in wanted]
        assert step.weight == len(wanted) == step.supervised_tokens and step.num_tokens == len(block)
    first = [example for example, repeat in zip(pieces.examples, pieces.repeats, strict=True) if not repeat]
    assert sorted(set(first)) == list(range(len(lengths)))


def test_keys_and_owners_tell_the_pieces_of_a_joined_pack_apart() -> None:
    store = examples_of([4, 6])
    batch = collate(store, [0, 1], pad_to=16, joined=True)
    assert batch.layout.lengths_q == (10, 6) and batch.position_ids.tolist() == [*range(10), *range(6)]
    assert [key.row if key else None for key in batch.keys] == [0, 1, None]
    apart = collate(store, [0, 1], pad_to=16)
    assert torch.equal(batch.segment_of_target, apart.segment_of_target)
    assert torch.equal(batch.targets, apart.targets) and apart.layout.lengths_q == (4, 6, 6)


# Whole runs


def test_the_ledger_balances_and_plan_says_what_it_is(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    first, second = (write_rows(tmp_path / f"{n}.jsonl", conversations(12, 20 * n)) for n in range(2))
    entries = [{"path": str(first)}, {"path": str(second), "epochs": 2}]
    sources = {"data": entries, "heldout": {"share": 0.2}}
    packed, joined = (
        build_data(recipe(base, None, tmp_path / "run", **sources, **more, train={"epochs": 2}))
        for more in ({"packing": {"tokens_per_pack": 160}}, STREAM)
    )
    assert isinstance(packed, RunData) and isinstance(joined, RunData)
    ledger = joined.ledger
    ledger.check()
    tokens = joined.plan.step_sums(joined.store.lengths).sum()
    assert tokens == ledger.tokens(Stage.PACKED) == packed.ledger.tokens(Stage.PACKED)
    for entry in joined.entries:
        ours, theirs = (data.ledger.tokens(Stage.PACKED, entry.name) for data in (joined, packed))
        assert ours == theirs, "tokens by source are those of any packing"
    first_pieces = set(joined.store.keys)
    again = sum(int(count) - 1 for count in np.unique(whole_examples(joined), return_counts=True)[1])
    assert again == 12 - heldout_rows(joined), "the second entry's rows come twice"
    assert ledger.rows(Stage.SPLIT) <= len(joined.store) - len(first_pieces)
    lengths = [int(joined.store.lengths[joined.plan.pack(index)].sum()) for index in range(joined.plan.num_packs)]
    assert sorted(lengths)[2:] == [64] * (len(lengths) - 2), "all packs but each epoch's last are full"
    whole = recipe(base, None, tmp_path / "run", **sources, **STREAM, train={"epochs": 2})
    warnings = plan_run(whole, joined).warnings
    assert any("exact: false" in warning for warning in warnings)
    assert not any(
        "exact: false" in warning
        for warning in plan_run(
            whole.model_copy(update={"packing": PackingSettings(tokens_per_pack=160)}), packed
        ).warnings
    )


def test_a_pack_longer_than_the_models_context_is_told(tmp_path: Path) -> None:
    """Positions run through a joined pack, however short its conversations are."""
    base = make_tiny_model(tmp_path / "base")
    found = {}
    for size in (256, 320):
        packing = {"by": "constant_length", "tokens_per_pack": size}
        settings = recipe(base, None, tmp_path / "run", packing=packing)
        data = build_data(settings, {"rows": conversations(24)})
        assert isinstance(data, RunData) and data.store.lengths.max() < 256
        found[size] = [each for each in plan_run(settings, data).warnings if "was made for 256" in each]
    assert found[256] == []
    assert found[320] == [
        "a pack has 320 tokens in a row, but the model was made for 256: lower packing.tokens_per_pack"
    ]


def whole_examples(data: RunData) -> list[str]:
    """A name for every example's beginning in the stream: its first token is the template's start of a turn."""
    return [
        f"{k.source} {k.row}" for k, i in zip(data.store.keys, range(len(data.store)), strict=True) if begins(data, i)
    ]


def begins(data: RunData, index: int) -> bool:
    """Whether a piece is the beginning of its conversation: ChatML's start, then `user`."""
    text = data.text.tokenizer.decode(data.store.example(index)[0].tolist(), with_control=True)
    return text.startswith("<|im_start|>user\nTell me")


def heldout_rows(data: RunData) -> int:
    """Held-out rows of the second entry."""
    return data.ledger.rows(Stage.HELD_OUT, data.entries[1].name)


def test_conversations_in_a_pack_see_each_other_and_that_changes_the_loss(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = recipe(base, None, tmp_path / "run", **STREAM)
    trainer, data, model = prepare(settings, {"rows": conversations(12)})
    step = next(iter(data.steps(0, CPU, None)))
    batch = step.packs[0]
    apart = collate(data.store, data.plan.pack(0), pad_to=batch.input_ids.shape[0])
    assert torch.equal(batch.input_ids, apart.input_ids) and torch.equal(batch.targets, apart.targets)
    with torch.no_grad():
        joined, isolated = (model.model(each.input_ids, each.position_ids, each.layout)[0] for each in (batch, apart))
    length = int(data.store.lengths[data.plan.pack(0)[0]])
    assert torch.allclose(joined[:length], isolated[:length], atol=1e-6)
    assert not torch.allclose(joined[length : data.plan.tokens_per_pack], isolated[length:64], atol=1e-3)
    trainer.run.close()


def test_a_run_is_resumed_exactly_and_learns(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    rows = {"rows": conversations(12)}
    packing = {"by": "constant_length", "tokens_per_pack": 160}
    more = {"packing": packing, "train": {"epochs": 2, "save_every": 3}, "optimizer": {"learning_rate": 3e-3}}
    whole = train(recipe(base, None, tmp_path / "whole", **more), rows)
    assert whole.steps[-1]["loss"] < whole.steps[0]["loss"]
    settings = recipe(base, None, tmp_path / "killed", **more)
    with pytest.raises(Crash):
        train(settings, rows, hooks=[CrashAfter(5)])
    train(settings, rows, resume=True)
    assert differing_bits(tmp_path / "killed", tmp_path / "whole") == []


def test_longer_rows_than_a_pack_are_cut_and_held_out_rows_are_not(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    more = {"packing": {"by": "constant_length", "tokens_per_pack": 24}, "heldout": {"share": 0.3}}
    run = train(recipe(base, None, tmp_path / "run", **more), {"rows": conversations(12)})
    assert max(run.data.heldout.lengths) > 24
    assert any("heldout_loss" in line for line in run.trainer.run.read_metrics())
    assert run.result.progress.tokens == run.data.ledger.tokens(Stage.PACKED)


def test_blocks_without_a_trained_token_are_left_out_and_counted(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    question = {"role": "user", "content": "Tell me a colour. " * 20}
    rows = [{"messages": [question, {"role": "assistant", "content": "Blue."}]} for _ in range(3)]
    more = {"packing": {"by": "constant_length", "tokens_per_pack": 32}, "max_tokens": 400}
    run = train(recipe(base, None, tmp_path / "run", **more), {"rows": rows})
    lost = [entry for entry in run.data.ledger.entries() if entry.stage is Stage.UNPLACED]
    assert [entry.reason for entry in lost] == [NOTHING_TRAINED] and lost[0].tokens % 32 == 0 and lost[0].tokens > 0
    trained = run.data.plan.step_sums(run.data.store.supervised_counts)
    assert trained.min() > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"streaming": True, "train": {"max_steps": 2}}, "can't be streamed"),
        ({"stage": "dpo"}, "a pair can't be cut"),
        ({"data": [{"path": "a", "weight": 1}]}, "replace weight by epochs"),
        ({"packing": {"by": "constant_length", "tokens_per_pack": 64, "examples_per_step": 4}}, "no effect"),
    ],
)
def test_what_can_not_be_joined_is_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(tmp_path, tmp_path / "rows.jsonl", tmp_path / "run", **{**STREAM, **changes})


@pytest.mark.slow
def test_the_selftest_waives_isolation_and_says_why(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    data = write_rows(tmp_path / "rows.jsonl", conversations(12))
    report = check_recipe(recipe(base, data, tmp_path / "run", **STREAM), CPU, laws=["isolation", "resume"])
    assert report.passed and report.to_dict()["waived"] == ["isolation"]
