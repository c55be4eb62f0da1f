"""The shipped recipes of nanochat's SFT: its rows, its count of steps, and the local substitute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatwright.errors import UserError
from chatwright.optim.settings import MuonSettings
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import RunSettings, load_recipe
from nanochat_files import encoding_state, model_config, trained_ranks, write_checkpoint, write_tokenizer
from shared_files import shared
from training_runs import train, write_rows

ROWS = {
    "ARC-Easy": 2_251,
    "ARC-Challenge": 1_119,
    "GSM8K": 7_473,
    "SmolTalk": 10_000,
    "identity": 1_000,
    "SimpleSpelling": 300,
    "SpellingBee": 300,
}


def chat(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": f"It is {number}."}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`CHATWRIGHT_DATA` with the shared data, and stand-ins for SmolTalk and nanochat's identity file."""
    made = tmp_path / "data"
    made.mkdir()
    for name in ("arc", "gsm8k", "words"):
        (made / name).symlink_to(shared(f"data/{name}"))
    for split, numbers in (("train", range(10_500)), ("test", range(50_000, 50_040))):
        write_rows(made / f"smoltalk/{split}.jsonl", [{"messages": chat(number)} for number in numbers])
    (made / "identity_conversations.jsonl").write_text("".join(json.dumps(chat(n)) + "\n" for n in range(1_000)))
    monkeypatch.setenv("CHATWRIGHT_DATA", str(made))
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    return made


def prepared(name: str, model: Path, overrides: list[str]) -> tuple[RunSettings, RunData]:
    settings = load_recipe(name, [f"model={model}", *overrides])
    return settings, build_data(settings)


def steps_of(settings: RunSettings, data: RunData) -> int:
    return plan_run(settings, data).steps


def few(stops: dict[int, int]) -> list[str]:
    return [f"data.{entry}.stop={stop}" for entry, stop in stops.items()]


@pytest.mark.slow
def test_nanochat_trains_701_steps(tiny_model: Path, folder: Path) -> None:
    settings, data = prepared("nanochat_sft", tiny_model, [])
    plan = plan_run(settings, data)
    assert {source.name: source.rows for source in plan.sources} == ROWS
    assert plan.steps == sum(ROWS.values()) // 32 == 701
    assert plan.heldout_examples == 40
    assert {len(data.plan.examples_of_step(step)) for step in range(plan.steps)} == {32}


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_last_conversations_of_an_epoch_make_no_step(tiny_model: Path, folder: Path, epochs: int) -> None:
    stops = {0: 20, 1: 20, 2: 20, 3: 20, 4: 10, 5: 5, 6: 5}
    settings, data = prepared("nanochat_sft", tiny_model, [*few(stops), f"train.epochs={epochs}"])
    assert len(data.store) == 100
    assert steps_of(settings, data) == 100 // 32 * epochs == 3 * epochs
    assert [len(rest.examples) for rest in data.plan.unplaced] == [4] * epochs


def test_a_missing_file_says_what_it_must_hold(tiny_model: Path, folder: Path) -> None:
    (folder / "identity_conversations.jsonl").unlink()
    stops = few(dict.fromkeys(range(7), 7))
    with pytest.raises(UserError, match=r"no file 'identity_conversations.jsonl'"):
        prepared("nanochat_sft", tiny_model, stops)
    instead = "data.4={task: persona, epochs: 2, stop: 5}"
    assert len(prepared("nanochat_sft", tiny_model, [*stops, instead])[1].store) == 6 * 7 + 5


def test_cached_tokens_follow_the_tasks_files(tiny_model: Path, folder: Path) -> None:
    stops = few(dict.fromkeys(range(7), 7))
    first, second = (prepared("nanochat_sft", tiny_model, stops)[1] for _ in range(2))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.store.ids.tolist() == second.store.ids.tolist()
    write_rows(folder / "smoltalk/train.jsonl", [{"messages": chat(number)} for number in range(90, 100)])
    third = prepared("nanochat_sft", tiny_model, stops)[1]
    assert not third.from_cache
    assert third.store.ids.tolist() != first.store.ids.tolist()


def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data/sft/alpaca_libre_tasks_v1.jsonl").parents[1]))
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


def test_the_local_substitute_reads_what_is_at_hand(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local(monkeypatch, tmp_path)
    stops = few({0: 20, 1: 20, 2: 20, 3: 60, 4: 10, 5: 20, 6: 20, 7: 10, 8: 10})
    settings, data = prepared("nanochat_sft_local", tiny_model, stops)
    rows = {source.name: source.rows for source in plan_run(settings, data).sources}
    assert rows["alpaca-libre (for SmolTalk)"] == 60
    assert len(data.heldout) > 500
    assert {len(data.plan.examples_of_step(step)) for step in range(data.plan.num_steps)} == {32}


@pytest.mark.slow
def test_the_local_substitute_is_about_as_long(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local(monkeypatch, tmp_path)
    settings, data = prepared("nanochat_sft_local", tiny_model, [])
    assert 650 <= steps_of(settings, data) <= 701


def test_both_recipes_share_nanochats_settings() -> None:
    def common(name: str) -> dict[str, Any]:
        return load_recipe(name).model_dump(
            exclude={"data": True, "heldout": True, "model": True, "out": True, "optimizer": {"rules"}}
        )

    assert common("nanochat_sft") == common("nanochat_sft_local")
    recipe = load_recipe("nanochat_sft")
    assert (recipe.eval.every, recipe.eval.tasks_every, recipe.eval.batch_rows) == (100, 200, 8)
    assert {(task.metric, task.limit) for task in recipe.eval.tasks} == {("MMLU", 1024), ("ARC-Easy", 1024)}
    assert recipe.tracking.nanochat_names
    packing = recipe.packing
    assert (packing.by, packing.examples_per_step, packing.last_step) == ("examples", 32, "drop")
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.rate_factor, optimizer.max_grad_norm) == ("muon", 0.02, None)
    assert optimizer.muon == MuonSettings(learning_rate=0.02, momentum=0.95, momentum_warmup_steps=0)
    assert [(rule.pattern, rule.learning_rate) for rule in optimizer.rules] == [("*embed_tokens*", 0.2)]
    assert load_recipe("nanochat_sft_local").optimizer.rules == ()


def test_mid_training_cuts_one_stream(folder: Path, tmp_path: Path) -> None:
    """nanochat's base model as the parent, its buffer of tokens, every token trained."""
    ranks = trained_ranks()
    write_tokenizer(tmp_path / "nanochat/tokenizer", encoding_state(ranks))
    base = tmp_path / "nanochat/base_checkpoints"
    write_checkpoint(base / "d2", 10, model_config(vocab_size=len(ranks) + 9))
    smoltalk = "data=[{task: smoltalk, stop: 40}]"
    small = [
        "packing.packs_per_step=2",
        "packing.tokens_per_pack=128",
        "max_tokens=128",
        "heldout.data=[]",
        "eval.every=null",
    ]
    settings = load_recipe("nanochat_mid", [f"model=nanochat:{base}", smoltalk, *small, f"out={tmp_path / 'run'}"])
    run = train(settings.model_copy(update={"train": settings.train.model_copy(update={"device": "cpu"})}))
    lengths = run.data.store.lengths
    assert run.result.progress.step == -(-lengths.sum() // 256)
    assert run.result.progress.tokens >= lengths.sum()
    rates = {name: group.learning_rate for group in run.trainer.trainer.optimizer.groups for name in group.names}
    assert rates["model.embed_tokens.weight"] == pytest.approx(0.2 * (32 / 768) ** -0.5)
    assert rates["model.layers.0.mlp.fc1.weight"] == 0.02
