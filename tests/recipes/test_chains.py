"""Chains run, go on, and skip what is done; what has changed is told and never made anew by itself."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_recipes import chain_plain, stage_in, write_chain

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.cli.chain import run_train_command
from chatwright.errors import ConfigError, UserError
from chatwright.recipes.ancestry import Bond, ancestry
from chatwright.recipes.chain import StageStatus, look_at, run_chain, train_quietly
from chatwright.recipes.chain_record import State, read_records
from chatwright.recipes.chain_settings import load_chain, make_chain
from chatwright.recipes.chain_table import measure_chain, require_tasks
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.train.trainer import TrainResult
from shared_files import shared
from training_runs import CPU, differing_bits, run_command, start_command

RUNS = ("base", "middle", "chat")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and new models of each test stay apart."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


def run(plain: dict[str, Any], **options: Any) -> list[StageStatus] | None:
    return run_chain(make_chain(plain, "test"), CPU, **options)


def states(plain: dict[str, Any]) -> dict[str, State]:
    return {status.stage.name: status.state for status in look_at(make_chain(plain, "test"))}


class Trains:
    """Trains stages, and remembers which; stops the one called `stop` as Ctrl-C would, after a step."""

    def __init__(self, stop: str | None = None) -> None:
        self.trained: list[str] = []
        self.stop = stop

    def __call__(self, settings: RunSettings, runtime: Runtime, resume: bool) -> TrainResult:
        """As `train_quietly`."""
        name = Path(settings.out).name
        self.trained.append(name)
        if name != self.stop:
            return train_quietly(settings, runtime, resume)
        from chatwright.train import trainer

        original = trainer.Trainer._one_step

        def one_step(self: Any, step: Any) -> Any:
            self.stop_requested = True
            return original(self, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.Trainer, "_one_step", one_step)
            return train_quietly(settings, runtime, resume)


def test_runs_in_order_and_skips_what_is_done(tmp_path: Path) -> None:
    plain, trains = chain_plain(tmp_path), Trains()
    assert set(states(plain).values()) == {State.NEW}
    statuses = run(plain, train=trains)
    assert statuses is not None and trains.trained == list(RUNS)
    assert all(status.state is State.DONE and status.record and status.record.result for status in statuses)
    assert [status.record.step for status in statuses if status.record] == [0, 2, 2, 2]
    before = (tmp_path / "chain" / "chat" / "metrics.jsonl").read_text()
    again = Trains()
    assert run(plain, train=again) is not None
    assert again.trained == []
    assert (tmp_path / "chain" / "chat" / "metrics.jsonl").read_text() == before
    kept = yaml.safe_load((tmp_path / "chain" / "chain.yaml").read_text())
    assert kept == plain


def test_runs_up_to_a_stage(tmp_path: Path) -> None:
    plain, trains = chain_plain(tmp_path), Trains()
    run(plain, until="base", train=trains)
    assert trains.trained == ["base"]
    assert list(states(plain).values()) == [State.DONE, State.DONE, State.NEW, State.NEW]
    run(plain, train=trains)
    assert trains.trained == list(RUNS)


def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    whole = chain_plain(tmp_path, out=str(tmp_path / "whole"))
    run(whole)
    plain, trains = chain_plain(tmp_path), Trains(stop="middle")
    assert run(plain, train=trains) is None
    assert trains.trained == ["base", "middle"]
    assert states(plain)["middle"] is State.HALF
    with pytest.raises(UserError, match="middle is half done"):
        run(plain)
    again = Trains()
    assert run(plain, resume=True, train=again) is not None
    assert again.trained == ["middle", "chat"]
    for name in RUNS:
        assert differing_bits(tmp_path / "whole" / name, tmp_path / "chain" / name) == []


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
    lacking = chain_plain(tmp_path, evaluate={"tasks": [{"task": "spelling"}, {"task": "gsm8k"}]})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="gsm8k"):
        patch.setenv("CHATWRIGHT_DATA", str(tmp_path))
        patch.setenv("HF_HUB_OFFLINE", "1")
        require_tasks(make_chain(lacking, "test"))


def test_lineage_tells_recipe_data_and_parent(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain)
    found = ancestry(str(tmp_path / "chain" / "chat"))
    assert [each.stage for each in found] == ["sft", "mid", "pretrain"]
    assert [each.bond for each in found] == [Bond.INTACT, Bond.INTACT, Bond.NEW]
    assert found[0].parent_hash == found[1].weights and found[1].parent_hash == found[2].weights
    assert found[0].data != found[1].data  # the same rows, other tokens trained
    other = {**plain, "out": str(tmp_path / "other")}
    stage_in(other, "chat")["data"] = [{"task": "spelling", "stop": 12}]
    run(other)
    changed = ancestry(str(tmp_path / "other" / "chat"))
    assert changed[0].recipe != found[0].recipe and changed[0].data != found[0].data
    assert changed[0].weights != found[0].weights and changed[1].weights == found[1].weights
    weights = latest_checkpoint(tmp_path / "chain" / "middle")
    assert weights is not None
    config = weights / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 5.0}))
    assert ancestry(str(tmp_path / "chain" / "chat"))[0].bond in (Bond.CHANGED, Bond.MISSING)
    shutil.rmtree(tmp_path / "chain" / "middle")
    assert [each.bond for each in ancestry(str(tmp_path / "chain" / "chat"))] == [Bond.MISSING]


def test_the_table_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"tasks": [{"task": "spelling", "limit": 3, "max_new_tokens": 4}]}
    plain = chain_plain(tmp_path, evaluate=wanted)
    chain, statuses = make_chain(plain, "test"), run(plain)
    assert statuses is not None
    made = measure_chain(chain, statuses, CPU)
    assert made is not None and made.made
    assert made.heads == ("task", "measure", "Base", "Mid", "SFT")
    assert [row[0] for row in made.rows] == ["trained", "trained", "trained", "spelling"]
    assert made.rows[0][2:] == ("2", "2", "2")
    assert all("[" in cell for cell in made.rows[-1][2:])  # every score with its interval
    markdown = (tmp_path / "chain" / "table.md").read_text()
    assert "| task | measure | Base | Mid | SFT |" in markdown
    plainly = json.loads((tmp_path / "chain" / "table.json").read_text())
    assert [row["task"] for row in plainly["rows"]] == ["spelling"]
    assert len(plainly["rows"][0]["scores"]) == 3
    monkeypatch.setattr("chatwright.recipes.chain_table.open_subject", None)  # nothing is measured again
    again = measure_chain(chain, statuses, CPU)
    assert again is not None and not again.made and again.rows == made.rows
    monkeypatch.undo()
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    other = make_chain({**plain, "evaluate": {**wanted, "seed": 1, "stages": ["chat"]}}, "test")
    anew = measure_chain(other, statuses, CPU)
    assert anew is not None and anew.made and anew.heads == ("task", "measure", "SFT")


# As a command


def test_only_a_chain_has_stages_to_run_until() -> None:
    with pytest.raises(ConfigError, match="--until: names a stage of a chain"):
        run_train_command("letters", [], False, "sft")


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_gives_the_same_bits(tmp_path: Path) -> None:
    """Real processes, killed in every stage and in the table, and once before anything was trained.

    The tiny stages are over in a moment, so that a kill may come behind the one it was meant for.
    """
    wanted = {"tasks": [{"task": "spelling", "limit": 60, "max_new_tokens": 40}], "batch_rows": 2}
    changes = {"train": {"max_steps": 150, "epochs": 100, "save_every": 60}, "evaluate": wanted}
    cache = {"CHATWRIGHT_CACHE": str(tmp_path / "cache")}
    whole = write_chain(chain_plain(tmp_path, **changes, out=str(tmp_path / "whole")), tmp_path / "whole.yaml")
    assert "what each stage adds" in run_command("train", whole, timeout=900, **cache)
    broken = write_chain(chain_plain(tmp_path, **changes), tmp_path / "broken.yaml")
    chain, kills = tmp_path / "chain", []
    moments = [
        ("tokenizer/*.json", 1),
        *((f"{name}/trace.jsonl", random.Random(name).randint(2, 300)) for name in RUNS),
    ]
    for pattern, lines in [*moments, ("table/*/*/spelling.jsonl", 20)]:
        process = start_command("train", broken, "--resume", **cache)
        while process.poll() is None and not any(
            each.read_bytes().count(b"\n") >= lines for each in chain.glob(pattern)
        ):
            time.sleep(0.001)
        kills.append(process.poll() is None)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sum(kills) >= 3, kills
    run_command("train", broken, "--resume", timeout=900, **cache)
    for name in RUNS:
        assert differing_bits(tmp_path / "whole" / name, chain / name) == []
    ours, theirs = (json.loads((tmp_path / name / "table.json").read_text()) for name in ("whole", "chain"))
    assert ours["rows"] == theirs["rows"]
    assert "the table was there already" in run_command("train", chain, **cache)


def _has_lines(folder: Path, pattern: str, lines: int) -> bool:
    return any(path.read_bytes().count(b"\n") >= lines for path in folder.glob(pattern))


@pytest.mark.slow
def test_nano_cpu_runs_at_a_small_size(tmp_path: Path) -> None:
    """Every stage of the shipped chain with its own kinds of data and optimizer, a step or two each."""
    data = shared("data")
    short = [
        "train.max_steps=2",
        "tokenizer.data.0.path=$CHATWRIGHT_DATA/text/gutenberg/alice.txt",
        "pretrain.data.0.path=$CHATWRIGHT_DATA/text/gutenberg/alice.txt",
        "mid.data=[{task: simple_spelling, task_options: {size: 50, words: large}}, {task: copying, stop: 50}]",
        "rl.packing.examples_per_step=2",
        "rl.rl.samples=2",
        "rl.rl.max_new_tokens=8",
        *(f"{name}.train.max_steps=2" for name in ("pretrain", "mid", "sft", "rl")),
        *(f"evaluate.tasks.{number}.{key}" for number in range(6) for key in ("limit=2", "max_new_tokens=8")),
        f"out={tmp_path / 'nano'}",
    ]
    options = [part for each in short for part in ("--set", each)]
    environment = {"CHATWRIGHT_CACHE": str(tmp_path / "cache"), "CHATWRIGHT_DATA": str(data)}
    printed = run_command("train", "nano-cpu", *options, timeout=600, **environment)
    assert "Chat with it" in printed
    table = json.loads((tmp_path / "nano" / "table.json").read_text())
    assert table["models"] == ["Base", "Mid", "SFT", "RL"]
    assert len(table["rows"]) == 6
    assert [each.stage for each in ancestry(str(tmp_path / "nano" / "rl"))] == ["rl", "sft", "mid", "pretrain"]


def test_nano_cpu_takes_texts_and_words_of_ones_own() -> None:
    """As its own comment says."""
    chain = load_chain(
        "nano-cpu",
        [
            "tokenizer.data=[{path: F, format: text}]",
            "pretrain.data=[{path: F, format: text}]",
            "pretrain.heldout.data=[]",
            *(
                f"{place}.task_options.words=shipped"
                for place in ("mid.data.0", "mid.data.1", "sft.data.0", "rl.data.0")
            ),
        ],
    )
    plain = json.dumps([stage.settings.model_dump(mode="json") for stage in chain.stages])
    assert "CHATWRIGHT_DATA" not in plain and '"large"' not in plain
