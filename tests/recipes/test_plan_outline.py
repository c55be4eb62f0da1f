"""Plans by the recipe alone, hours on given devices, and vocabularies larger than their tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from chatwright.cli.main import main
from chatwright.errors import ConfigError, ModelError
from chatwright.models.config import flops_per_token, num_parameters
from chatwright.models.presets import preset_config
from chatwright.recipes.chain_outline import outline_chain
from chatwright.recipes.chain_settings import make_chain
from chatwright.recipes.data import build_data
from chatwright.recipes.hardware import Hardware, named_hardware
from chatwright.recipes.model import build_model
from chatwright.recipes.outline import outline_run
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.stream_planning import plan_stream
from chatwright.recipes.streaming import StreamedData
from chatwright.settings import build
from training_runs import CPU, conversations, recipe, write_rows

BY_DEPTH = {
    "stage": "pretrain",
    "new_model": {"preset": "nanochat", "depth": 20, "tokenizer": "nowhere", "vocab_size": 65_536},
    "data": [{"path": "hub:nobody/nothing/train", "format": "text", "hub_mode": "streaming"}],
    "streaming": {"max_tokens": 20 * 560_988_160},
    "packing": {"tokens_per_pack": 16_384, "packs_per_step": 32},
}


def in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["chatwright", "plan", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_hours_are_flops_over_what_the_devices_reach() -> None:
    eight = Hardware(989, 8, 0.4)
    assert eight.hours(989e12 * 8 * 0.4 * 3600) == pytest.approx(1.0)
    assert eight.account(1e20)["device_hours"] == pytest.approx(Hardware(989, 1, 0.4).hours(1e20))
    assert eight.account(None)["hours"] is None and "unknown" in eight.told(None)
    assert "7.02 hours on 8 × 989 TFLOP/s at 50%" in Hardware(989, 8, 0.5).told(1e20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((None, 8, None), "--devices: no hours"),
        ((0.0, 1, 0.4), "--device-tflops: must be a positive"),
        ((989.0, 0, None), "--devices: must be at least 1"),
        ((989.0, None, 40.0), "--mfu: a share"),
    ],
)
def test_impossible_devices_are_refused(options: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        named_hardware(*options)
    assert named_hardware(None, None, None) is None


def test_a_recipe_alone_tells_nanochats_steps_tokens_and_flops() -> None:
    """No network, no tokenizer, no row: 20 tokens a parameter make the 21,400 steps that nanochat's d20 takes."""
    plan = outline_run(build(RunSettings, BY_DEPTH, "test"))
    config = preset_config("nanochat", 65_536, {"depth": 20})
    assert (plan.steps, plan.tokens_per_step, plan.tokens) == (21_400, 524_288, 21_400 * 524_288)
    assert plan.parameters == plan.trainable_parameters == num_parameters(config) == 560_988_160
    assert plan.training_flops == flops_per_token(config, 2048) * plan.tokens
    assert plan.learning_rates and plan.memory["weights"] > 0


def test_without_its_vocabulary_a_missing_tokenizer_is_named() -> None:
    new = {"preset": "nanochat", "tokenizer": "nowhere"}
    with pytest.raises(ModelError, match="no such tokenizer"):
        outline_run(build(RunSettings, {**BY_DEPTH, "new_model": new}, "test"))


def test_a_model_that_is_yet_to_be_trained_leaves_the_rest_known(tmp_path: Path) -> None:
    plan = outline_run(recipe(tmp_path / "absent", None, tmp_path / "run", train={"max_steps": 3}))
    assert plan.steps == 3 and plan.tokens == 3 * plan.tokens_per_step == 768
    assert plan.parameters is plan.training_flops is None and plan.memory == {}
    assert "absent: there is no such model" in plan.unknown


def test_an_outline_bounds_what_the_stream_then_plans(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(40))
    settings = recipe(tiny_model, rows, tmp_path / "run", streaming={"readers": 2}, train={"max_steps": 7})
    data = build_data(settings)
    assert isinstance(data, StreamedData)
    full, outline = plan_stream(settings, data), outline_run(settings)
    data.close()
    assert outline.steps == full.steps == 7 and outline.tokens == full.most_tokens
    assert outline.memory == full.memory and outline.learning_rates == full.learning_rates
    assert (outline.parameters, outline.trainable_parameters) == (full.parameters, full.trainable_parameters)
    assert full.training_flops is not None and outline.training_flops is not None
    assert full.training_flops < outline.training_flops < 3 * full.training_flops


def test_what_the_data_decide_is_left_open(tiny_model: Path, tmp_path: Path) -> None:
    plan = outline_run(recipe(tiny_model, tmp_path / "absent.jsonl", tmp_path / "run"))
    assert plan.steps is plan.tokens is plan.training_flops is None and plan.learning_rates == []
    assert "isn't known" in plan.unknown and plan.parameters is not None


def test_plans_tell_hours_in_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    rows = write_rows(tmp_path / "rows.jsonl", conversations(12))
    plain = {"data": [{"path": str(rows)}], "max_tokens": 160, "packing": {"tokens_per_pack": 256}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**plain, "model": str(tiny_model), "template": {"format": "chatml"}}))
    speed = ("--device-tflops", "0.1", "--devices", "2", "--mfu", "0.5")
    whole = in_json(monkeypatch, capsys, str(path), *speed)["plan"]
    outline = in_json(monkeypatch, capsys, str(path), "--without-data", *speed)["plan"]
    assert whole["time"]["hours"] == pytest.approx(whole["training_flops"] / 1e11 / 3600)
    assert whole["time"]["device_hours"] == 2 * whole["time"]["hours"] > 0
    assert outline["outline"] is True and outline["time"]["hours"] is None
    assert "time" not in in_json(monkeypatch, capsys, str(path))["plan"]


def test_a_chain_is_planned_before_its_tokenizer_is_trained() -> None:
    text = [{"path": "nowhere.txt"}]
    pretrain = {key: value for key, value in BY_DEPTH.items() if key != "new_model"}
    stages = [
        {"name": "words", "stage": "tokenizer", "data": text, "tokenizer": {"preset": "nanochat", "vocab_size": 512}},
        {"name": "base", **pretrain, "new_model": {"preset": "nanochat", "depth": 4}},
        {"name": "chat", "stage": "sft", "data": [{"task": "spelling_bee"}]},
    ]
    words, base, chat = outline_chain(make_chain({"stages": stages, "out": "runs/test"}, "test"))
    assert words.plan is None and base.plan is not None and chat.plan is not None
    expected = num_parameters(preset_config("nanochat", 512, {"depth": 4}))
    assert base.plan.parameters == chat.plan.parameters == expected
    assert base.plan.steps == 21_400 and chat.plan.steps is None


def test_adapters_and_drawn_replies_are_planned_as_what_they_are() -> None:
    pretrain = {key: value for key, value in BY_DEPTH.items() if key != "new_model"}
    asked = {"by": "examples", "examples_per_step": 4, "tokens_per_pack": 4096}
    stages: list[dict[str, Any]] = [
        {"name": "words", "stage": "tokenizer", "data": [{"path": "nowhere.txt"}], "tokenizer": {"vocab_size": 512}},
        {"name": "base", **pretrain, "new_model": {"preset": "nanochat", "depth": 4}},
        {"name": "chat", "stage": "sft", "data": [{"task": "spelling"}], "adapter": {"rank": 4, "alpha": 4}},
        {
            "name": "rl",
            "stage": "rl",
            "data": [{"task": "spelling"}],
            "packing": asked,
            "train": {"max_steps": 7},
            "adapter": {"rank": 4, "alpha": 4},
        },
    ]
    _, base, chat, rl = (each.plan for each in outline_chain(make_chain({"stages": stages}, "test")))
    assert base is not None and chat is not None and rl is not None
    assert chat.trainable_parameters is not None and base.parameters is not None
    assert chat.parameters == base.parameters and 0 < chat.trainable_parameters < base.parameters / 10
    assert chat.memory["optimizer"] < base.memory["optimizer"] / 10
    assert (rl.steps, rl.tokens_per_step, rl.tokens) == (7, None, None) and "replies" in rl.unknown
    stages[1]["new_model"] = {"preset": "nanochat", "depth": 4, "vocab_size": 300}
    with pytest.raises(ConfigError, match="300 rows are too few"):
        outline_chain(make_chain({"stages": stages}, "test"))


def test_more_rows_than_tokens_are_never_sampled(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(12))

    def settings(vocab_size: int) -> RunSettings:
        new = {"preset": "nanochat", "depth": 1, "tokenizer": str(tiny_model), "vocab_size": vocab_size}
        return recipe(tiny_model, rows, tmp_path / "run", model=None, new_model=new)

    data = build_data(settings(384))
    model = build_model(settings(384), data.text, CPU).model
    assert model.config.vocab_size == 384 and model.config.tokenizer_vocab_size == data.text.tokenizer.vocab_size < 384
    with pytest.raises(ConfigError, match="100 rows are too few"):
        build_data(settings(100))
