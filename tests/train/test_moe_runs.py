"""Whole runs of models with experts: by the command from transformers' own folder, on two ranks, resumed, made new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.store import latest_checkpoint
from chatwright.layouts import SegmentLayout
from chatwright.models.families import config_from_hf
from chatwright.models.weights import load_model, read_config
from chatwright.recipes.model import load_weights
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build
from tiny_model import make_tiny_model
from training_runs import (
    Crash,
    CrashAfter,
    conversations,
    differing_bits,
    farthest,
    finish_ranks,
    prepare,
    recipe,
    run_command,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "head_dim": 8,
}
MOE = {"aux_loss_weight": 0.05}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data.jsonl", conversations(16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "mlp_only_layers": [0]}),
        ("Mixtral", {"num_local_experts": 4}),
    ],
)
def test_a_folder_of_transformers_trains_by_the_command(
    model_class: str, fields: dict[str, Any], tmp_path: Path, rows: Path
) -> None:
    """Three steps of `chatwright train`, and transformers reads the result with the logits that we have."""
    transformers = pytest.importorskip("transformers")
    folder = make_tiny_model(tmp_path / "model")
    raw = read_config(folder)
    shapes = {k: raw[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, f"{model_class}Config")(
        **shapes, **fields, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2
    )
    torch.manual_seed(0)
    getattr(transformers, f"{model_class}ForCausalLM")(config).save_pretrained(folder)
    settings = recipe(folder, rows, tmp_path / "run", train={"max_steps": 3}, moe=MOE)
    printed = run_command("train", write_recipe(settings, tmp_path / "recipe.yaml"))
    assert "experts: a token goes through" in printed
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in steps if "aux_loss" in line]
    assert len(losses) == 3 and losses[-1]["loss"] < losses[0]["loss"]
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.router_aux_loss_coef == 0.05
    ids = torch.arange(3, 40)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids[None]).logits[0]
        found = load_model(checkpoint).logits(ids, torch.arange(37), SegmentLayout.from_lengths([37]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(tmp_path: Path, rows: Path) -> None:
    """Experts that a rank has no token for, the router's metrics and all."""
    model = make_tiny_model(tmp_path / "model", **QWEN)
    packing = {"tokens_per_pack": 192, "packs_per_step": 3}
    file = write_recipe(recipe(model, rows, tmp_path / "two", moe=MOE, packing=packing), tmp_path / "two.yaml")
    finish_ranks(start_ranks(2, "train", file))
    one = train(recipe(model, rows, tmp_path / "one", moe=MOE, packing=packing))
    folder = latest_checkpoint(tmp_path / "two")
    assert folder is not None
    assert farthest(dict(load_model(folder).state_dict()), one.weights) < 1e-5
    logged = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    pairs = list(zip([line for line in logged if "aux_loss" in line], one.steps, strict=True))
    for theirs, ours in pairs:
        for name in ("loss", "aux_loss", "logits_loss", "expert_share_2"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
    assert pairs


def test_a_killed_run_with_experts_goes_on_bit_for_bit(tmp_path: Path, rows: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **QWEN)

    def settings(out: str) -> RunSettings:
        return recipe(model, rows, tmp_path / out, moe=MOE, train={"save_every": 2, "dtype": "bfloat16"})

    train(settings("whole"))
    trainer, _, _ = prepare(settings("killed"), hooks=[CrashAfter(3)])
    with pytest.raises(Crash):
        trainer.train()
    train(settings("killed"), resume=True)
    assert [found for found in differing_bits(tmp_path / "whole", tmp_path / "killed") if "recipe" not in found] == []


def test_an_adapter_on_experts_trains_and_comes_back(tmp_path: Path, rows: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **QWEN)
    adapter = {"rank": 2, "alpha": 4.0, "targets": ["experts.*.down_proj", "q_proj"]}
    done = train(recipe(model, rows, tmp_path / "run", moe=MOE, adapter=adapter))
    assert len(done.model.adapted) == 2 * (4 + 1)
    again = train(recipe(done.folder, rows, tmp_path / "again", moe=MOE, adapter=adapter, train={"max_steps": 1}))
    start = done.weights
    assert set(again.weights) == set(start)
    assert all(value.abs().sum() > 0 for name, value in start.items() if "lora_B" in name)


@pytest.mark.slow
def test_peft_reads_an_adapter_on_all_experts(tmp_path: Path, rows: Path) -> None:
    """On transformers 5's fused experts, too; the logits are ours and not the base model's."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make_tiny_model(tmp_path / "model", **QWEN)
    adapter = {"rank": 2, "alpha": 4.0, "targets": ["all-linear"]}
    done = train(recipe(model, rows, tmp_path / "run", adapter=adapter, optimizer={"learning_rate": 0.02}))
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    theirs = peft.PeftModel.from_pretrained(base, done.folder).eval()
    ours = load_weights(resolve_model(str(done.folder)), torch.float32, "cpu").eval()
    ids, positions, layout = torch.arange(3, 40), torch.arange(37), SegmentLayout.from_lengths([37])
    with torch.no_grad():
        found = theirs(input_ids=ids[None]).logits[0]
        expected = ours.logits(ids, positions, layout)
        untrained = load_model(model).logits(ids, positions, layout)
    assert float((found - expected).abs().max()) < 1e-4 < 0.01 < float((untrained - expected).abs().max())


def test_minimind_s_experts_from_nothing(tmp_path: Path) -> None:
    """A recipe names the preset; the checkpoint is a folder in MiniMind's own layout, and trains on."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {number} tells of the sea." for number in range(40)), encoding="utf-8")
    new = {"preset": "minimind-moe", "tokenizer": str(make_tiny_model(tmp_path / "tokenizer"))}
    plain = {
        "stage": "pretrain",
        "new_model": {**new, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "aux_loss_weight": 0.2},
        "data": [{"path": str(text), "text_by": "paragraph"}],
        "max_tokens": 64,
        "packing": {"tokens_per_pack": 128, "packs_per_step": 1},
        "train": {"device": "cpu", "dtype": "float32", "max_steps": 3},
        "out": str(tmp_path / "run"),
    }
    done = train(build(RunSettings, plain, "recipe"))
    assert all(0.39 < step["aux_loss"] < 1.0 for step in done.steps)  # two layers, 0.2 each where all is even
    content = read_config(done.folder)
    assert (content["model_type"], content["use_moe"], content["aux_loss_alpha"]) == ("minimind", True, 0.2)
    assert config_from_hf(content).moe.num_shared == 1
    on = {name: value for name, value in plain.items() if name != "new_model"} | {"model": str(done.folder)}
    more = train(build(RunSettings, {**on, "out": str(tmp_path / "more")}, "recipe"))
    assert more.steps[0]["loss"] < done.steps[0]["loss"]
