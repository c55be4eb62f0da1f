"""What a chain does when something isn't as it was: recipes, data, parents, places."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_recipes import RUNS, Trains, chain_plain, run, stage_in, states

from chatwright.checkpoints.store import best_checkpoint, latest_checkpoint
from chatwright.errors import ConfigError, UserError
from chatwright.recipes.ancestry import ancestry
from chatwright.recipes.chain import look_at, run_chain, train_quietly
from chatwright.recipes.chain_record import State, read_records, write_records
from chatwright.recipes.chain_settings import load_chain, make_chain
from chatwright.recipes.chain_table import require_tasks
from chatwright.recipes.run_settings import RunSettings
from training_runs import CPU


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and new models of each test stay apart."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


CHANGES: dict[str, tuple[Callable[[dict[str, Any], Path], object], tuple[str, ...], str]] = {
    "a stage's rate": (
        lambda plain, folder: stage_in(plain, "middle").update(optimizer={"learning_rate": 0.5}),
        ("middle: optimizer.learning_rate: was 0.001, is 0.5", "make middle, chat anew"),
        "middle",
    ),
    "its rows": (
        lambda plain, folder: stage_in(plain, "chat").update(data=[{"task": "spelling", "stop": 9}]),
        ("chat: data: was", "make chat anew"),
        "chat",
    ),
    "a file of text": (
        lambda plain, folder: (folder / "text.txt").write_text("Something else, told at length. " * 40),
        ("tokenizer: its data", "base: its data", "make tokenizer, base, middle, chat anew"),
        "tokenizer",
    ),
    "an adapter, where there was none": (
        lambda plain, folder: stage_in(plain, "chat").update(adapter={"rank": 2, "alpha": 2}),
        ('chat: adapter: was null, is {"rank": 2',),
        "chat",
    ),
    "a shape that was the preset's": (
        lambda plain, folder: stage_in(plain, "base")["new_model"].update(intermediate_size=24),
        ("base: new_model.intermediate_size: was not set, is 24",),
        "base",
    ),
    "a shape that is the preset's again": (
        lambda plain, folder: stage_in(plain, "base")["new_model"].pop("num_layers"),
        ("base: new_model.num_layers: was 1, is not set",),
        "base",
    ),
    "the shared seed": (
        lambda plain, folder: plain["train"].update(seed=3),
        ("base: train.seed: was 0, is 3", "chat: train.seed", "make base, middle, chat anew"),
        "base",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_told_and_nothing_is_made_anew(name: str, tmp_path: Path) -> None:
    change, told, first = CHANGES[name]
    plain = chain_plain(tmp_path)
    run(plain)
    results = {name: record.result for name, record in read_records(tmp_path / "chain").items()}
    change(plain, tmp_path)
    trains = Trains()
    with pytest.raises(UserError) as found:
        run(plain, train=trains, resume=True)
    for text in told:
        assert text in found.value.full_text()
    assert trains.trained == []
    assert {name: record.result for name, record in read_records(tmp_path / "chain").items()} == results
    # in another folder, unchanged stages are taken from the old one
    elsewhere = {**plain, "out": str(tmp_path / "other"), "reuse": str(tmp_path / "chain")}
    statuses = run(elsewhere, train=trains)
    assert statuses is not None
    behind = ["tokenizer", *RUNS][["tokenizer", *RUNS].index(first) :]
    assert trains.trained == [name for name in behind if name != "tokenizer"]
    new = {status.stage.name: status.result for status in statuses}
    assert [name for name in results if new[name] != results[name]] == behind
    taken = {status.folder.parent.name for status in statuses if status.stage.name not in behind}
    assert taken <= {"chain"}


def best_first(folder: Path) -> dict[str, Any]:
    """A chain whose stage `base` is best after its first step, and whose last stage grows from it."""
    plain = chain_plain(folder)
    stage_in(plain, "base").update(
        heldout={"data": [{"path": str(folder / "text.txt")}]},
        eval={"every": 1, "best": "heldout_loss"},
        optimizer={"learning_rate": 3.0},
        schedule={"name": "constant"},
        train={"max_steps": 5},
    )
    stage_in(plain, "chat")["from"] = "base"
    return plain


def test_another_checkpoint_of_the_same_parent_is_a_change(tmp_path: Path) -> None:
    plain = best_first(tmp_path)
    run(plain)
    base = tmp_path / "chain" / "base"
    assert (base / "best.json").is_file() and best_checkpoint(base) != latest_checkpoint(base)
    stage_in(plain, "chat")["from"] = "base:best"
    with pytest.raises(UserError, match="chat: its parent: base is another than it grew from"):
        run(plain)
    again = {**plain, "out": str(tmp_path / "other"), "reuse": str(tmp_path / "chain")}
    trains = Trains()
    assert run(again, train=trains) is not None and trains.trained == ["chat"]
    assert ancestry(str(tmp_path / "other" / "chat"))[1].place == str(best_checkpoint(base))
    assert set(states(again).values()) == {State.DONE}


def test_a_stage_put_in_between_is_told_before_it_runs(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    plain["stages"].insert(3, {"name": "extra", "stage": "mid", "data": [{"task": "spelling", "stop": 5}]})
    trains = Trains()
    with pytest.raises(UserError, match="chat: its parent: was middle, is extra, which is yet to be made"):
        run(plain, train=trains)
    assert trains.trained == []


def test_a_chain_that_was_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = chain_plain(tmp_path, out="old")
    monkeypatch.chdir(tmp_path)
    assert run(plain, train=Trains(stop="middle")) is None
    (tmp_path / "elsewhere").mkdir()
    shutil.move("old", "elsewhere/new")
    monkeypatch.chdir(tmp_path / "elsewhere")
    trains = Trains()
    statuses = run_chain(load_chain("new"), CPU, resume=True, train=trains)
    assert statuses is not None and trains.trained == ["middle", "chat"]
    assert {status.folder for status in statuses} == {Path("new") / name for name in ("tokenizer", *RUNS)}
    monkeypatch.chdir(tmp_path)  # named from another folder; and reused from there
    assert {status.state for status in look_at(load_chain("elsewhere/new"))} == {State.DONE}
    taken = look_at(make_chain({**plain, "out": "third", "reuse": "elsewhere/new"}, "test"))
    assert {status.state for status in taken} == {State.DONE}


def test_a_misspelt_folder_to_reuse_is_told(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path, reuse=str(tmp_path / "chian"))
    with pytest.raises(UserError, match="reuse: there is no chain"):
        look_at(make_chain(plain, "test"))


def test_a_hub_that_is_out_of_reach_changes_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = chain_plain(tmp_path)
    run(plain, until="base")
    monkeypatch.setattr("chatwright.recipes.chain_record.fingerprints", lambda entries: None)
    assert list(states(plain).values())[:2] == [State.DONE, State.DONE]


def test_a_tokenizer_whose_end_was_not_recorded_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = chain_plain(tmp_path)
    run(plain, until="tokenizer")
    record = read_records(tmp_path / "chain")["tokenizer"]
    write_records(tmp_path / "chain", {"tokenizer": record.model_copy(update={"result": None})})
    monkeypatch.setattr("chatwright.recipes.chain.make_tokenizer", None)
    run(plain, until="tokenizer", resume=True)
    assert read_records(tmp_path / "chain")["tokenizer"].result == record.result


def test_what_only_says_where_or_how_often_is_no_change(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    plain["train"].update(save_every=1, log_every=2)
    plain["evaluate"] = {"tasks": [{"task": "spelling", "limit": 2, "max_new_tokens": 4}]}
    assert set(states(plain).values()) == {State.DONE}


def test_a_lost_parent_is_made_anew_and_its_equal_child_stays(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    shutil.rmtree(tmp_path / "chain" / "base")
    trains = Trains()
    assert run(plain, train=trains) is not None  # the same bits come again, so what grew from them is still theirs
    assert trains.trained == ["base"]


def test_a_parent_made_anew_otherwise_stops_before_its_child(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    shutil.rmtree(tmp_path / "chain" / "base")
    stage_in(plain, "base")["optimizer"] = {"learning_rate": 0.1}
    trains = Trains()
    for _ in range(2):
        with pytest.raises(UserError, match="middle: its parent: base is another than it grew from"):
            run(plain, train=trains, resume=True)
    assert trains.trained == ["base"]


def test_a_stage_trained_further_by_hand_is_told(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    chat = make_chain(plain, "test")["chat"].settings
    assert isinstance(chat, RunSettings)
    shutil.rmtree(tmp_path / "chain" / "chat")
    train_quietly(chat.model_copy(update={"train": chat.train.model_copy(update={"seed": 9})}), CPU, False)
    with pytest.raises(UserError, match="holds something else than the chain made"):
        look_at(make_chain(plain, "test"))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    foreign = tmp_path / "chain" / "middle" / "letter.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(UserError, match="other files"):
        run(plain)
    assert foreign.read_text() == "mine"
    assert not (tmp_path / "chain" / "base").exists()


def test_what_is_missing_is_told_before_anything_runs(tmp_path: Path) -> None:
    plain, trains = chain_plain(tmp_path), Trains()
    stage_in(plain, "chat")["data"] = [{"path": str(tmp_path / "absent.jsonl")}]
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        run(plain, train=trains)
    assert trains.trained == [] and not (tmp_path / "chain" / "tokenizer").exists()
    unknown = chain_plain(tmp_path)
    stage_in(unknown, "base")["new_model"].update(preset="lama", vocab_size=4)
    with pytest.raises(ConfigError, match=r"base\.new_model\.vocab_size: 4 rows are too few for the tokenizer's 300"):
        run(unknown, train=trains)
    assert trains.trained == [] and not (tmp_path / "chain" / "tokenizer").exists()
    lacking = chain_plain(tmp_path, evaluate={"tasks": [{"task": "spelling"}, {"task": "gsm8k"}]})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="gsm8k"):
        patch.setenv("CHATWRIGHT_DATA", str(tmp_path))
        patch.setenv("HF_HUB_OFFLINE", "1")
        require_tasks(make_chain(lacking, "test"))
