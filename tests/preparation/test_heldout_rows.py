"""What is measured is never trained: rows held out by content and by tree, held-out data of its own, duplicates."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatwright.batches.token_store import TokenStore
from chatwright.conversations import row_ranges
from chatwright.conversations.duplicates import find_near
from chatwright.errors import DataError
from chatwright.inspection.ledger import Stage
from chatwright.preparation.columns import gathered
from chatwright.preparation.held_out import draw_groups, linked
from chatwright.recipes.data import build_data
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import RunSettings
from training_runs import conversations, recipe, write_rows


@pytest.fixture(autouse=True)
def cut_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)


def settings_for(model: Path, out: Path, data: list[dict[str, Any]], **changes: Any) -> RunSettings:
    preparation = {"rows_per_shard": changes.pop("rows_per_shard", 9), "workers": 1}
    return recipe(model, None, out, data=data, preparation=preparation, **changes)


def contents(store: TokenStore) -> Counter[tuple[int, ...]]:
    return Counter(tuple(store.example(index)[0].tolist()) for index in range(len(store)))


def turns(question: str, answer: str, **flags: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": answer, **flags}]}


def tree(number: int, replies: int = 4) -> dict[str, Any]:
    def said(role: str, text: str, *answers: Any) -> dict[str, Any]:
        return {"role": role, "text": text, "replies": list(answers)}

    ends = [said("prompter", f"More {i}?", said("assistant", f"More {i} of {number}.")) for i in range(replies)]
    return {"prompt": said("prompter", f"Question {number}?", said("assistant", f"Answer {number}.", *ends))}


@pytest.mark.parametrize("seed", range(8))
def test_contents_of_train_and_held_out_are_disjoint(tiny_model: Path, tmp_path: Path, seed: int) -> None:
    """Copies, links, repeats inside a file, other whitespace and files cut in two: nothing trained is measured."""
    draw = random.Random(seed)
    rows = conversations(draw.randint(4, 30))
    repeated = [*rows, *draw.choices(rows, k=draw.randint(0, 40))]
    draw.shuffle(repeated)
    first = write_rows(tmp_path / "first.jsonl", repeated)
    write_rows(tmp_path / "copy.jsonl", rows)
    (tmp_path / "link.jsonl").symlink_to(first)
    data: list[dict[str, Any]] = [
        {"path": str(tmp_path / name)} for name in ("first.jsonl", "copy.jsonl", "link.jsonl")
    ]
    for entry in data:
        if draw.random() < 0.3:
            entry["filters"] = [{"kind": draw.choice(["exact_duplicates", "near_duplicates"])}]
        if draw.random() < 0.3:
            entry["max_rows"] = draw.randint(2, 30)
    data = draw.sample(data, draw.randint(1, 3))
    share = draw.choice([0.01, 0.2, 0.5, 0.9])
    settings = settings_for(
        tiny_model, tmp_path, data, heldout={"share": share}, rows_per_shard=draw.choice([5, 1000]), overflow="drop"
    )
    made = build_data(settings)
    train, held = contents(made.store), contents(made.heldout)
    assert train and held and not train.keys() & held.keys()
    made.ledger.check(reached=Stage.PACKED)
    lost = sum(e.rows for e in made.ledger.entries() if e.stage in (Stage.SKIPPED, Stage.FILTERED, Stage.DROPPED))
    assert made.ledger.rows(Stage.READ) == train.total() + held.total() + lost
    assert made.ledger.rows(Stage.HELD_OUT) == held.total()


def test_threads_of_a_tree_stay_together(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "trees.jsonl", [tree(number) for number in range(12)])
    data = [{"path": str(path), "format": "oasst_threads"}]
    made = build_data(settings_for(tiny_model, tmp_path, data, heldout={"share": 0.25}))
    trained, held = ({int(row) // 4 for row in store.rows} for store in (made.store, made.heldout))
    assert len(made.heldout) == 12 and len(held) == 3 and not trained & held


@pytest.mark.parametrize("rows_per_shard", [5, 1000])
def test_held_out_data_that_is_trained_on_is_dropped(tiny_model: Path, tmp_path: Path, rows_per_shard: int) -> None:
    train = write_rows(tmp_path / "train.jsonl", conversations(20))
    other = write_rows(tmp_path / "other.jsonl", [{"messages": "none"}, *conversations(12, start=14)])
    changes = {"heldout": {"data": [{"path": str(other), "on_bad_row": "skip"}]}, "rows_per_shard": rows_per_shard}
    settings = settings_for(tiny_model, tmp_path, [{"path": str(train)}], **changes)
    made = build_data(settings)
    assert (len(made.store), len(made.heldout)) == (20, 6)
    assert not contents(made.store).keys() & contents(made.heldout).keys()
    name = f"{other} (held out)"
    stages = (Stage.READ, Stage.SKIPPED, Stage.DROPPED, Stage.HELD_OUT, Stage.PACKED)
    assert [made.ledger.rows(stage, name) for stage in stages] == [13, 1, 6, 6, 0]
    assert {e.reason for e in made.ledger.entries() if e.source == name and e.stage is Stage.DROPPED} == {
        "trained on too"
    }
    made.ledger.check(reached=Stage.PACKED)
    assert [entry.name for entry in made.entries] == [str(train)]
    assert f"{name}: 6 rows left out of the held-out data: trained on too" in plan_run(settings, made).warnings
    again = build_data(settings)
    assert again.from_cache and again.heldout_entries == made.heldout_entries != ()
    assert again.ledger.to_dict() == made.ledger.to_dict()


def test_held_out_data_that_is_all_trained_on_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", conversations(20))
    settings = settings_for(tiny_model, tmp_path, [{"path": str(train)}], heldout={"data": [{"path": str(train)}]})
    with pytest.raises(DataError, match=r"train\.jsonl \(held out\): all rows of the held-out data are trained on too"):
        build_data(settings)


def test_a_tree_that_is_trained_isnt_measured(tiny_model: Path, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "trees.jsonl", [tree(number) for number in range(5)]))
    entry = {"path": path, "format": "oasst_threads"}
    own = {"data": [{**entry, "start": 10}]}
    made = build_data(settings_for(tiny_model, tmp_path, [{**entry, "stop": 10}], heldout=own))
    assert (len(made.store), sorted(made.heldout.rows.tolist())) == (10, [*range(12, 20)])
    dropped = [(e.rows, e.reason) for e in made.ledger.entries() if e.stage is Stage.DROPPED]
    assert dropped == [(2, "of a conversation tree that is trained on")]


@pytest.mark.parametrize("kind", ["exact_duplicates", "near_duplicates"])
def test_a_duplicate_stands_for_living_rows_only(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """The first row is too long; its repeat stays, and the repeat of that goes."""
    words = "Tell me of the river behind the house and the hill"
    rows = [turns(words.replace(" ", " " * 60), "Yes."), turns(words, "Yes."), turns(words, "Yes.")]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, *conversations(4)])
    data = [{"path": str(path), "filters": [{"kind": kind}]}]
    made = build_data(settings_for(tiny_model, tmp_path, data, overflow="drop", rows_per_shard=2))
    assert sorted(made.store.rows.tolist()) == [1, 3, 4, 5, 6]
    reasons = {e.reason: e.rows for e in made.ledger.entries() if e.stage is Stage.DROPPED}
    assert reasons == {"longer than 160 tokens": 1, kind: 1}


def test_rows_that_train_different_replies_arent_duplicates(tiny_model: Path, tmp_path: Path) -> None:
    rows = [turns("Why?", "So.", train=False), turns("Why?", "So."), turns("Why?", "So.", weight=0.5)]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, turns("Why?", "So.")])
    data = [{"path": str(path), "filters": [{"kind": "exact_duplicates"}], "on_bad_row": "skip"}]
    assert build_data(settings_for(tiny_model, tmp_path, data)).store.rows.tolist() == [1, 2]


# The arrays


def test_groups_that_share_a_label_are_one() -> None:
    groups = linked([np.array([0, 0, 1, 2, 2, -1]), np.array([-1, 3, 3, -1, -1, -1])], 6)
    assert groups.tolist() == [0, 0, 0, 3, 3, 5]
    chain = np.arange(1000)
    assert set(linked([chain // 2, (chain + 1) // 2], 1000).tolist()) == {0}


@pytest.mark.parametrize(
    ("sizes", "share", "wanted"),
    [
        ([1] * 10, 0.3, 3),
        ([1] * 10, 0.001, 1),
        ([1] * 10, 1.0, 9),
        ([5, 5], 0.1, 5),
        ([7], 0.5, 0),
        ([90, *[1] * 10], 0.1, 10),
    ],
)
def test_whole_groups_are_drawn(sizes: list[int], share: float, wanted: int) -> None:
    groups = np.repeat(np.arange(len(sizes)) * 3, sizes)
    draws = np.random.default_rng(0).integers(0, 1 << 63, len(groups)).astype(np.uint64)
    chosen = draw_groups(groups, draws, share)
    assert int(np.isin(groups, chosen).sum()) == wanted


def test_a_large_column_is_gathered_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatwright.preparation.columns._HELD_BYTES", 0)
    table = np.random.default_rng(0).integers(0, 1 << 32, (60, 128), dtype=np.uint32)
    table[40:50] = table[:10]
    parts = [lambda start=start: {"near": table[start : start + 20]} for start in range(0, 60, 20)]
    rows = np.arange(5, 60)
    with gathered(parts, "near", rows, tmp_path) as found:
        assert isinstance(found, np.memmap) and np.array_equal(found, table[5:])
        assert find_near(found, 0.8).tolist() == find_near(table[5:], 0.8).tolist()
    assert not list(tmp_path.iterdir())
