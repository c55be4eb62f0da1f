"""Chains run, go on, and skip what is done; what has changed is told and never made anew by itself."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from chain_recipes import RUNS, Trains, chain_plain, run, stage_in, states, write_chain

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.cli.chain import run_train_command
from chatwright.errors import ConfigError, ModelError, UserError
from chatwright.recipes.ancestry import Bond, ancestry
from chatwright.recipes.chain_record import State
from chatwright.recipes.chain_settings import load_chain, make_chain
from chatwright.recipes.chain_table import measure_chain
from shared_files import shared
from training_runs import (
    CPU,
    checkpoint_tensors,
    differing_bits,
    farthest,
    finish_ranks,
    run_command,
    start_command,
    start_ranks,
    write_rows,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and new models of each test stay apart."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


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


def test_what_came_of_a_tokenizer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = chain_plain(tmp_path)
    stage_in(plain, "tokenizer").update(tokenizer={"vocab_size": 9000}, beside=["nowhere"])
    with pytest.raises(ModelError, match="nowhere: there is no such tokenizer"):
        run(plain, until="tokenizer")
    stage_in(plain, "tokenizer").update(beside=[])
    run(plain, until="tokenizer", resume=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "not 9,000: too few" in told
    assert "bytes a token" in told and "bits a byte" in told


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


def test_lineage_goes_through_adapters(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    for name in ("middle", "chat"):
        stage_in(plain, name)["adapter"] = {"rank": 2, "alpha": 2, "targets": ["all-linear"]}
    run(plain)
    found = ancestry(str(tmp_path / "chain" / "chat"))
    assert [each.stage for each in found] == ["sft", "mid", "pretrain"]
    assert [each.bond for each in found] == [Bond.INTACT, Bond.INTACT, Bond.NEW]
    assert [each.parent_hash for each in found[:2]] == [each.weights for each in found[1:]]
    middle = latest_checkpoint(tmp_path / "chain" / "middle")
    assert middle is not None
    config = middle / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 3'))
    assert ancestry(str(tmp_path / "chain" / "chat"))[0].bond in (Bond.CHANGED, Bond.MISSING)


def test_a_reward_model_is_in_no_table_and_nothing_grows_from_it(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path, evaluate={"tasks": [{"task": "spelling", "limit": 1, "max_new_tokens": 2}]})
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}.", "rejected": f"{n + 1}!"} for n in range(6)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    reward = {"name": "judge", "stage": "reward", "data": [{"path": str(tmp_path / "pairs.jsonl")}]}
    plain["stages"] = [*plain["stages"][:2], reward, stage_in(plain, "chat")]
    chain = make_chain(plain, "test")
    assert [stage.parent for stage in chain.stages] == [None, "tokenizer", "base", "base"]
    statuses = run(plain)
    assert statuses is not None
    table = measure_chain(chain, statuses, CPU)
    assert table is not None and table.heads == ("task", "measure", "Base", "SFT")


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
        *((f"{name}/trace.jsonl", random.Random(name).randint(2, 140)) for name in RUNS),
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


def test_only_a_table_that_is_measured_needs_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = str(write_chain(chain_plain(tmp_path, evaluate={"tasks": [{"task": "gsm8k"}]}), tmp_path / "chain.yaml"))
    with pytest.raises(UserError, match="gsm8k"):
        run_train_command(path, [], False, None)
    assert not (tmp_path / "chain").exists()
    run_train_command(path, [], False, "tokenizer")
    assert (tmp_path / "chain" / "tokenizer" / "tokenizer.json").is_file()


def weights_of(run_folder: Path) -> dict[str, torch.Tensor]:
    folder = latest_checkpoint(run_folder)
    assert folder is not None
    return {name: value for name, value in checkpoint_tensors(folder).items() if name.startswith("model.safetensors")}


@pytest.mark.slow
def test_two_ranks_run_a_chain_together(tmp_path: Path) -> None:
    wanted = {"tasks": [{"task": "spelling", "limit": 4, "max_new_tokens": 4}]}
    plain = chain_plain(tmp_path, evaluate=wanted, packing={"packs_per_step": 2})
    first, second = finish_ranks(start_ranks(2, "train", write_chain(plain, tmp_path / "chain.yaml")))
    assert "what each stage adds" in first and "what each stage adds" not in second
    assert set(states(plain).values()) == {State.DONE}
    run(chain_plain(tmp_path, out=str(tmp_path / "alone"), packing={"packs_per_step": 2}))
    ours, theirs = (weights_of(tmp_path / name / "chat") for name in ("chain", "alone"))
    assert farthest(ours, theirs) < 1e-3
    stage_in(plain, "chat")["max_tokens"] = 63
    ranks = start_ranks(2, "train", write_chain(plain, tmp_path / "chain.yaml"))
    printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert all("max_tokens: was 64, is 63" in each for each in printed)


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
