"""From a recipe to tokens: masks, mixtures, held-out rows, rows in memory and the token cache."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatwright.checkpoints.imports import cache_folder
from chatwright.conversations.python_filter import find_function
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import DataError
from chatwright.inspection.ledger import Stage
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.rendering import data_fingerprint
from chatwright.templates.rendered import ExampleKey
from tiny_model import CONTROL, make_tiny_model
from training_runs import conversations, recipe, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """20 conversations."""
    return write_rows(tmp_path / "rows.jsonl", conversations(20))


def built(model: Path, rows: Path, sources: Any = None, /, **changes: Any) -> RunData:
    return build_data(recipe(model, rows, rows.parent / "run", **changes), sources)


def store_lists(data: RunData) -> tuple[list[int], list[float], list[ExampleKey]]:
    store = data.store
    return store.ids.tolist(), store.weights.tolist(), store.keys


def trained_text(data: RunData, index: int) -> str:
    ids, weights = data.store.example(index)
    return data.text.tokenizer.decode(ids[weights > 0].tolist(), with_control=True)


def test_sft_trains_replies_and_mid_every_token_but_the_first(tiny_model: Path, rows: Path) -> None:
    sft, mid = built(tiny_model, rows), built(tiny_model, rows, stage="mid")
    assert sft.store.ids.tolist() == mid.store.ids.tolist()
    assert (mid.store.supervised_counts == mid.store.lengths - 1).all()
    assert trained_text(sft, 1) == "Yes, a bird flies, indeed.<|im_end|>"
    assert trained_text(sft, 3) == "Yes, that hill flies, indeed, indeed, indeed.<|im_end|>Because flies 3.<|im_end|>"


def test_each_entry_may_have_its_own_mask_and_epochs(tiny_model: Path, rows: Path) -> None:
    entries = [
        {"path": str(rows), "stop": 4, "train_on": "last"},
        {"path": str(rows), "start": 4, "stop": 6, "train_on": "everything", "epochs": 3},
        {"path": str(rows), "start": 4, "stop": 8, "name": "mine"},
    ]
    data = built(tiny_model, rows, data=entries)
    assert np.bincount(data.entry_index).tolist() == [4, 2, 4]
    assert trained_text(data, 3) == "Because flies 3.<|im_end|>", "the last reply alone"
    assert (data.store.supervised_counts == data.store.lengths - 1).tolist() == [False] * 4 + [True] * 2 + [False] * 4
    assert [entry.name for entry in data.entries] == [str(rows), f"{rows} #2", "mine"]
    assert [data.ledger.rows(Stage.READ, name) for name in (str(rows), f"{rows} #2", "mine")] == [4, 2, 4]
    assert data.ledger.rows(Stage.REPEATED, f"{rows} #2") == 4
    assert data.ledger.rows(Stage.PACKED) == 14
    assert data.plan.placed.tolist() == [1] * 4 + [3] * 2 + [1] * 4


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_held_out_rows_are_never_trained(tiny_model: Path, rows: Path, share: float) -> None:
    data = built(tiny_model, rows, heldout={"share": share})
    train, held = set(data.store.keys), set(data.heldout.keys)
    assert not train & held and len(train | held) == 20
    assert len(held) == {0.01: 1, 0.3: 6, 0.99: 19}[share]
    assert data.ledger.rows(Stage.HELD_OUT) == len(held)
    assert set(built(tiny_model, rows, heldout={"share": share}).heldout.keys) == held
    if share == 0.3:
        other = built(tiny_model, rows, heldout={"share": share}, train={"seed": 2})
        assert set(other.heldout.keys) != held
        assert [key.row for key in data.heldout.keys] != list(range(6)), "drawn, not the first rows"


def test_a_row_of_two_entries_is_held_out_of_both(tiny_model: Path, rows: Path) -> None:
    entries = [{"path": str(rows), "stop": 14}, {"path": str(rows), "start": 6}]
    data = built(tiny_model, rows, data=entries, heldout={"share": 0.3})
    train, held = set(data.store.keys), set(data.heldout.keys)
    assert not train & held
    assert {key.row for key in train | held} == set(range(20))


def test_many_files_of_one_row_are_split_too(tiny_model: Path, tmp_path: Path) -> None:
    for index, row in enumerate(conversations(10)):
        write_rows(tmp_path / "many" / f"{index}.jsonl", [row])
    data = built(tiny_model, tmp_path / "many", heldout={"share": 0.3})
    assert (len(data.store), len(data.heldout)) == (7, 3)


def test_held_out_data_of_its_own(tiny_model: Path, rows: Path) -> None:
    own = [{"path": str(write_rows(rows.parent / "own.jsonl", conversations(5, start=50)))}]
    data = built(tiny_model, rows, heldout={"data": own})
    assert (len(data.store), len(data.heldout)) == (20, 5)


def test_rows_in_memory(tiny_model: Path, rows: Path) -> None:
    """Lists, generators, data sets and conversations give the same tokens as the file; each row has its own name."""
    plain = conversations(20)
    wanted = store_lists(built(tiny_model, rows))
    made = [Conversation(tuple(Message.of(turn["role"], turn["content"]) for turn in row["messages"])) for row in plain]
    kinds: dict[str, Any] = {"list": plain, "generator": (row for row in plain), "conversations": made}
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    kinds["dataset"] = datasets.Dataset.from_list(plain)
    for name, source in kinds.items():
        data = built(tiny_model, rows, {name: source})
        ids, weights, keys = store_lists(data)
        assert (ids, weights) == wanted[:2], name
        assert keys == [ExampleKey(name, row, 0) for row in range(20)]
        assert not data.from_cache


def test_two_lists_in_memory_are_told_apart(tiny_model: Path, rows: Path) -> None:
    sources = {"first": conversations(6), "second": conversations(6, start=6)}
    data = built(tiny_model, rows, sources, heldout={"share": 0.5})
    assert len({*data.store.keys, *data.heldout.keys}) == 12
    assert [sum(key.source == name for key in data.store.keys) for name in sources] == [3, 3]
    own = [Conversation((Message.of("user", "a"), Message.of("assistant", "b")), source="mine", row=7)]
    assert built(tiny_model, rows, {"named": own}).store.keys == [ExampleKey("mine", 7, 0)]


def test_a_row_without_anything_to_train_is_named_or_counted(tiny_model: Path, rows: Path) -> None:
    bad = [*conversations(2), {"messages": [{"role": "user", "content": "Hello?"}]}]
    write_rows(rows, bad)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: has no token to train on"):
        built(tiny_model, rows)
    data = built(tiny_model, rows, data=[{"path": str(rows), "on_bad_row": "skip"}])
    assert len(data.store) == 2 and data.ledger.rows(Stage.DROPPED) == 1


# The token cache


def test_the_cache_gives_the_same_plan(tiny_model: Path, rows: Path) -> None:
    first, second = (built(tiny_model, rows, heldout={"share": 0.2}) for _ in range(2))
    assert not first.from_cache and second.from_cache
    assert store_lists(first) == store_lists(second)
    assert first.plan.fingerprint() == second.plan.fingerprint()
    assert first.heldout.keys == second.heldout.keys
    assert first.ledger.to_dict() == second.ledger.to_dict()
    assert first.entries == second.entries and first.entry_index.tolist() == second.entry_index.tolist()


def change_a_letter(rows: Path) -> dict[str, Any]:
    rows.write_text(rows.read_text().replace("bird", "bard"))
    return {}


SYSTEM = {"kind": "random_system", "probability": 0.5, "prompts": ["Be kind."]}


def own(rows: Path) -> dict[str, Any]:
    """An entry of other rows."""
    return {"path": str(write_rows(rows.parent / "own.jsonl", conversations(5, start=50)))}


def entry(rows: Path, **options: Any) -> dict[str, Any]:
    """A recipe of one entry."""
    return {"data": [{"path": str(rows), **options}]}


def filtered(rows: Path, limit: int) -> dict[str, Any]:
    """A recipe whose filter is a function that stands beside the rows, as a new process would read it."""
    code = f"def keep(conversation):\n    return conversation.row < {limit}  # of twenty rows\n"
    (rows.parent / "own_rules.py").write_text(code)
    sys.modules.pop("own_rules", None)
    find_function.cache_clear()
    shutil.rmtree(rows.parent / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    return entry(rows, filters=[{"kind": "python", "function": "own_rules:keep"}])


def in_folder(rows: Path, name: str) -> dict[str, Any]:
    """A recipe of a folder that holds the rows in a folder of this name."""
    shutil.rmtree(rows.parent / "folders", ignore_errors=True)
    write_rows(rows.parent / "folders" / name / "rows.jsonl", conversations(20))
    return entry(rows.parent / "folders", transforms=[SYSTEM])


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "data": change_a_letter,
    "template": lambda rows: {"template": {"default_system": "Be kind."}},
    "format": lambda rows: {"template": {"format": "minimind"}},
    "train_on": lambda rows: {"template": {"train_on": "last"}},
    "train_on of an entry": lambda rows: {"data": [{"path": str(rows), "train_on": "last"}]},
    "stage": lambda rows: {"stage": "mid"},
    "max_tokens": lambda rows: {"max_tokens": 80, "overflow": "drop"},
    "rows": lambda rows: {"data": [{"path": str(rows), "stop": 19}]},
    "held-out share": lambda rows: {"heldout": {"share": 0.1}},
    "held-out seed": lambda rows: {"heldout": {"share": 0.2}, "train": {"seed": 9}},
    "held-out data": lambda rows: {"heldout": {"data": [own(rows)]}},
    "a held-out file trained on": lambda rows: {"data": [{"path": str(rows)}, own(rows)]},
    "a trained file held out": lambda rows: {"heldout": {"data": [own(rows)]}},
    "a filter": lambda rows: entry(rows, filters=[{"kind": "length", "of": "replies", "max": 40}]),
    "a filter's body": lambda rows: filtered(rows, 7),
    "a transform": lambda rows: entry(rows, transforms=[SYSTEM]),
    "transforms' seed": lambda rows: {**entry(rows, transforms=[SYSTEM]), "train": {"seed": 9}},
    "a folder's name": lambda rows: in_folder(rows, "b"),
}

BEFORE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "held-out seed": lambda rows: {"heldout": {"share": 0.2}},
    "a held-out file trained on": lambda rows: {"heldout": {"data": [own(rows)]}},
    "a trained file held out": lambda rows: {"data": [{"path": str(rows)}, own(rows)]},
    "a filter's body": lambda rows: filtered(rows, 12),
    "transforms' seed": lambda rows: entry(rows, transforms=[SYSTEM]),
    "a folder's name": lambda rows: in_folder(rows, "a"),
}
"""What the run before the change was, where it isn't the plain recipe."""


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_is_not_used_after_a_change(
    tiny_model: Path, rows: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALL 20; what comes out is what a run without any cache makes."""
    monkeypatch.syspath_prepend(str(rows.parent))
    built(tiny_model, rows, **(BEFORE[change](rows) if change in BEFORE else {}))
    changes = CHANGES[change](rows)
    changed = built(tiny_model, rows, **changes)
    assert not changed.from_cache
    shutil.rmtree(cache_folder())
    again = built(tiny_model, rows, **changes)
    assert store_lists(changed) == store_lists(again) and changed.heldout.keys == again.heldout.keys


def test_a_moved_folder_gives_the_same_tokens(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key stays, so the tokens must: draws go by a file's place below the entry, not on the disk."""
    changes = {"data": [{"path": "$MINE", "transforms": [SYSTEM], "max_rows": 25}], "heldout": {"share": 0.2}}
    found = []
    for place in ("one", "two/deep"):
        for index in range(30):
            write_rows(tmp_path / place / f"{index}" / "row.jsonl", conversations(1, start=index))
        monkeypatch.setenv("MINE", str(tmp_path / place))
        for cached in (False, True):
            data = built(tiny_model, tmp_path / "none.jsonl", **changes)
            assert data.from_cache == cached
            if not cached:
                key = data_fingerprint(recipe(tiny_model, tmp_path, tmp_path / "run", **changes), data.text.template)
                found.append((key, store_lists(data)[:2], data.heldout.ids.tolist()))
        shutil.rmtree(cache_folder())
    assert found[0] == found[1]
    systems = sum("Be kind." in data.text.tokenizer.decode(data.store.example(i)[0].tolist()) for i in range(20))
    assert 3 < systems < 17, "files of one name in different folders are drawn apart"


def test_the_cache_is_not_used_for_another_tokenizer(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    built(tiny_model, rows)
    other = make_tiny_model(tmp_path / "other", control=(*CONTROL[:1], "<think>", *CONTROL[1:]))
    assert not built(other, rows).from_cache


def test_packing_and_optimizer_settings_reuse_the_cache(tiny_model: Path, rows: Path) -> None:
    first = built(tiny_model, rows)
    second = built(tiny_model, rows, packing={"tokens_per_pack": 512}, optimizer={"learning_rate": 1.0})
    assert second.from_cache and first.plan.fingerprint() != second.plan.fingerprint()


@pytest.mark.parametrize("name", ["facts.json", "train/ids.npy", "entry_index.npy"])
def test_a_damaged_cache_is_made_again(tiny_model: Path, rows: Path, name: str) -> None:
    first = store_lists(built(tiny_model, rows))
    (damaged,) = cache_folder().glob(f"tokens/*/{name}")
    damaged.write_bytes(damaged.read_bytes()[:100])
    second, third = built(tiny_model, rows), built(tiny_model, rows)
    assert (second.from_cache, third.from_cache) == (False, True)
    assert first == store_lists(second) == store_lists(third)


def test_several_processes_may_fill_the_cache_at_once(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """As ranks do: forked children begin together, again and again."""
    settings = recipe(tiny_model, rows, tmp_path / "run")
    wanted = store_lists(build_data(settings))
    for _ in range(5):
        shutil.rmtree(cache_folder())
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if store_lists(build_data(settings)) == wanted else 2)
                finally:
                    os._exit(1)
            children.append(child)
        signal.alarm(60)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        signal.alarm(0)
        assert codes == [0, 0, 0, 0]
        assert build_data(settings).from_cache
        assert [path.name for path in (cache_folder() / "tokens").iterdir() if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "file"))
    assert not built(tiny_model, rows).from_cache
    printed = capsys.readouterr()
    assert "can't be cached" in printed.out + printed.err


def test_the_cache_keeps_no_text(tiny_model: Path, rows: Path) -> None:
    built(tiny_model, rows)
    (facts,) = cache_folder().glob("tokens/*/facts.json")
    assert "a bird" not in facts.read_text() and json.loads(facts.read_text())["entries"][0]["num_rows"] == 20
