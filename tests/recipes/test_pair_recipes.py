"""Recipes of pairs: every row counted, sides filled in, what can't be refused; plan and cache as for any data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations.preference_types import PreferencePair
from chatwright.conversations.schema import Message
from chatwright.errors import ConfigError, DataError
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import load_recipe
from shared_files import shared
from training_runs import preference_pairs, recipe, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_pairs(20))


def planned(*arguments: Any, **changes: Any) -> RunData:
    data = build_data(recipe(*arguments, **{"stage": "dpo", **changes}))
    assert isinstance(data, RunData)
    return data


def test_entries_take_pairs_and_steps_count_them(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    data = planned(tiny_model, rows, tmp_path / "out", heldout={"share": 0.2})
    assert (len(data.store), len(data.heldout)) == (16, 4)
    assert data.entries[0].format == "trl, pairs" and (data.store.chosen_lengths > 0).all()
    assert sum(data.step_weights) == 16.0, "the unit of weight is the pair"
    figures = plan_run(recipe(tiny_model, rows, tmp_path / "out", stage="dpo", heldout={"share": 0.2}), data)
    assert figures.examples == 16 and figures.tokens == data.store.num_tokens
    assert figures.sources[0].effective_weight == 1.0


def test_a_pair_is_as_long_for_the_model_as_its_longer_side(tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for words in (60, 120):
        rows = [{"prompt": "Tell me", "chosen": "a b " * words, "rejected": "c d " * words}]
        file = write_rows(tmp_path / f"{words}.jsonl", rows)
        settings = recipe(
            tiny_model, file, tmp_path / "out", stage="dpo", max_tokens=999, packing={"tokens_per_pack": 999}
        )
        data = build_data(settings)
        assert isinstance(data, RunData) and data.store.lengths.max() > 256
        found[words] = [each for each in plan_run(settings, data).warnings if "was made for 256" in each]
    assert not found[60] and len(found[120]) == 1


def test_tokens_come_from_the_cache_the_second_time(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    first = planned(tiny_model, rows, tmp_path / "out")
    again = planned(tiny_model, rows, tmp_path / "out")
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.identity() == again.identity()
    chosen_only = recipe(tiny_model, rows, tmp_path / "out", data=[{"path": str(rows), "preference": "chosen"}])
    assert not build_data(chosen_only).from_cache


def test_pairs_in_memory_and_in_shards_are_the_same(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned(tiny_model, rows, tmp_path / "out")
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "another"))
    sharded = planned(tiny_model, rows, tmp_path / "out", preparation={"rows_per_shard": 6, "workers": 1})
    assert not sharded.from_cache
    assert sharded.identity()["data"] == whole.identity()["data"]
    given = build_data(recipe(tiny_model, None, tmp_path / "out", stage="dpo"), {"mine": preference_pairs(20)})
    assert isinstance(given, RunData) and given.identity()["data"] == whole.identity()["data"]


def test_real_pairs_are_all_counted(tmp_path: Path, tiny_model: Path) -> None:
    files = [shared(f"data/preference/{name}") for name in ("dpo_en_demo.json", "dpo_zh_demo.json")]
    entries = [{"path": str(path), "stop": 40} for path in files]
    changes = {"overflow": "truncate", "max_tokens": 900, "packing": {"tokens_per_pack": 1024}}
    data = planned(tiny_model, None, tmp_path / "out", data=entries, heldout={"share": 0.1}, **changes)
    data.ledger.check()
    told = json.dumps(data.ledger.to_dict())
    assert "cut to length: over 900 tokens" in told and "the replies don't fit into 900 tokens" in told
    assert data.store.lengths.max() <= 900


def test_transforms_and_filters_see_both_sides(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*preference_pairs(3), {"prompt": "?", "chosen": "fine", "rejected": "bad " * 60}]
    entry = {
        "path": str(write_rows(tmp_path / "p.jsonl", rows)),
        "transforms": [{"kind": "random_system", "probability": 1.0, "prompts": ["Be kind."]}],
        "filters": [{"kind": "length", "max": 120}],
    }
    data = planned(tiny_model, None, tmp_path / "out", data=[entry])
    assert len(data.store) == 3
    for index in range(3):
        ids, _ = data.store.example(index)
        text = data.text.tokenizer.decode(ids.tolist())
        assert text.count("Be kind.") == 1 and text.count("Tell me") == 1, "the prompt stands once"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"stage": "sft", "dpo": {"beta": 0.2}}, "dpo belongs to stage: dpo, found stage: sft"),
        ({"stage": "sft", "data": [{"path": "x.jsonl", "preference": "pairs"}]}, "belongs to stage: dpo or reward"),
        ({"data": [{"path": "x.jsonl", "preference": "chosen"}]}, "needs preference pairs, and x.jsonl has preference"),
        ({"data": [{"task": "letter_counting"}]}, "needs preference pairs, and letter_counting is a task"),
        ({"overflow": "split_turns"}, "split_turns would part a prompt from its replies"),
        ({"streaming": True, "train": {"max_steps": 3}}, "remove streaming"),
        ({"packing": {"by": "constant_length"}}, "a pair can't be cut"),
        ({"dpo": {"loss": "kto"}}, "sigmoid"),
        ({"eval": {"best": "heldout_bits_per_byte"}, "heldout": {"share": 0.1}}, "heldout_accuracy"),
    ],
)
def test_what_cannot_be_is_refused(tiny_model: Path, rows: Path, tmp_path: Path, changes: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        recipe(tiny_model, rows, tmp_path / "out", **{"stage": "dpo", **changes})


def test_a_fresh_model_has_no_preferences_yet(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    new = {"preset": "llama", "tokenizer": str(tiny_model), "hidden_size": 32, "num_layers": 1}
    with pytest.raises(ConfigError, match="name a model instead of new_model"):
        recipe(tiny_model, rows, tmp_path / "out", stage="dpo", model=None, new_model=new)


def test_labelled_replies_are_refused_even_where_bad_rows_are_skipped(tiny_model: Path, tmp_path: Path) -> None:
    path = shared("data/preference/kto_en_demo.json")
    with pytest.raises(DataError, match="row 0 is one reply with a verdict"):
        planned(tiny_model, None, tmp_path / "out", data=[{"path": str(path), "on_bad_row": "skip"}])


def test_conversations_are_no_pairs(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    with pytest.raises(DataError, match="no known preference format"):
        planned(tiny_model, path, tmp_path / "out")


def test_long_pairs_are_an_error_that_names_them(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*preference_pairs(2), {"prompt": "?", "chosen": "good " * 90, "rejected": "bad"}]
    with pytest.raises(DataError, match="1 of 3 examples are longer than max_tokens = 160; longest: row 2") as told:
        planned(tiny_model, write_rows(tmp_path / "p.jsonl", rows), tmp_path / "out")
    assert told.value.hint is not None and told.value.hint.endswith("or more, or overflow to drop or truncate")


@pytest.mark.parametrize(
    ("overflow", "step"), [("drop", "raise max_tokens, or set overflow: truncate"), ("truncate", "raise max_tokens$")]
)
def test_a_limit_that_leaves_no_pair_names_the_next_step(
    overflow: str, step: str, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"no row is left to train on[\s\S]*→ {step}"):
        planned(tiny_model, rows, tmp_path / "out", max_tokens=4, overflow=overflow)


def test_pairs_are_given_as_objects_too(tiny_model: Path, tmp_path: Path) -> None:
    made = [
        PreferencePair((Message.of("user", "?"),), (Message.of("assistant", "yes"),), (Message.of("assistant", "no"),))
    ]
    data = build_data(recipe(tiny_model, None, tmp_path / "out", stage="dpo"), {"mine": made})
    assert isinstance(data, RunData) and len(data.store) == 1


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_shipped_recipes_take_real_pairs(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data")))
    settings = load_recipe(name, [f"model={tiny_model}", "max_tokens=700", "data.0.stop=60"])
    data = build_data(settings)
    assert isinstance(data, RunData) and len(data.store) > 20 and len(data.heldout) > 2
    assert (data.store.prompt_lengths > 0).all() and (data.store.chosen_lengths > 0).all()
    data.ledger.check()
