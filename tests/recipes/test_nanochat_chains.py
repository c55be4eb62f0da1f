"""The shipped chains at nanochat's sizes: valid, planned without a network, and trained at a small size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from chatwright.models.config import Initialization, num_parameters
from chatwright.models.presets import preset_config
from chatwright.models.transformer import CausalLM
from chatwright.recipes.chain_outline import outline_chain
from chatwright.recipes.chain_settings import Chain, load_chain, make_chain
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.run_settings import RunSettings, find_recipe, load_recipe
from chatwright.recipes.tokenizer_recipe import TokenizerRecipe
from chatwright.settings import read_yaml
from training_runs import conversations, train, write_rows

DEPTHS = {"nanochat_d12": 12, "nanochat_d20": 20}


def run_of(chain: Chain, name: str) -> RunSettings:
    settings = chain[name].settings
    assert isinstance(settings, RunSettings)
    return settings


@pytest.mark.parametrize("name", DEPTHS)
def test_each_size_takes_twenty_tokens_a_parameter(name: str) -> None:
    """nanochat prints 21,400 steps for d20: 20 × 560,988,160 // 524,288."""
    chain = load_chain(name)
    found = {each.name: each.plan for each in outline_chain(chain)}
    base = found["base"]
    parameters = num_parameters(preset_config("nanochat", 65_536, {"depth": DEPTHS[name]}))
    assert base is not None and base.parameters == parameters
    assert base.tokens_per_step == 524_288 and base.steps == 20 * parameters // 524_288
    assert all(plan.parameters == parameters for plan in found.values() if plan is not None)
    assert base.training_flops is not None and 0.2 < Hardware(989, 8, 0.4).hours(base.training_flops) < 4
    tokenizer = chain["tokenizer"].settings
    assert isinstance(tokenizer, TokenizerRecipe) and tokenizer.tokenizer.vocab_size == 65_536


def test_the_stages_follow_each_other_and_have_nanochats_rates() -> None:
    chain = load_chain("nanochat-d20")
    assert [(stage.name, stage.parent) for stage in chain.stages] == [
        ("tokenizer", None),
        ("base", "tokenizer"),
        ("mid", "base"),
        ("sft", "mid"),
        ("rl", "sft"),
    ]
    factors = {}
    for name in ("base", "mid", "sft", "rl"):
        settings = run_of(chain, name).optimizer
        assert settings.name == "muon" and settings.muon is not None
        rates = (settings.rules[0].learning_rate, settings.learning_rate, settings.muon.learning_rate)
        assert rates == (0.2, 0.004, 0.02) and settings.reference_width == 768 and settings.weight_decay == 0
        factors[name] = settings.rate_factor
    assert factors == {"base": 1.0, "mid": 1.0, "sft": 0.02, "rl": 0.05}


@pytest.mark.parametrize(
    ("stage", "recipe", "fields"),
    [
        ("sft", "nanochat_sft", ("data", "heldout", "optimizer", "schedule", "eval", "overflow")),
        ("rl", "rl_gsm8k", ("data", "optimizer", "schedule", "rl", "packing", "overflow")),
        ("mid", "nanochat_mid", ("data", "heldout", "optimizer", "schedule", "eval", "overflow")),
    ],
)
def test_stages_are_the_recipes_that_run_them_alone(stage: str, recipe: str, fields: tuple[str, ...]) -> None:
    chained, alone = run_of(load_chain("nanochat_d12"), stage), load_recipe(recipe)
    assert {name for name in fields if getattr(chained, name) != getattr(alone, name)} == set()


def test_eight_devices_share_every_step_evenly() -> None:
    for name in DEPTHS:
        for stage in ("base", "mid"):
            packing = run_of(load_chain(name), stage).packing
            assert packing.packs_per_step % 8 == 0 and packing.tokens_per_pack * packing.packs_per_step == 524_288


def test_the_sizes_differ_in_depth_and_length_alone() -> None:
    small, large = (read_yaml(find_recipe(name)) for name in DEPTHS)
    for plain in (small, large):
        base = plain["stages"][1]
        plain["out"], base["new_model"]["depth"], base["streaming"]["max_tokens"] = "out", 0, 0
    assert small == large


def test_training_and_heldout_files_are_apart() -> None:
    base = run_of(load_chain("nanochat_d20"), "base")
    (trained,), (held_out,) = base.data, base.heldout.data
    assert (trained.path or "").endswith("shard_00*.parquet") and (held_out.path or "").endswith("shard_01822.parquet")


@pytest.mark.slow
def test_the_base_stage_trains_small_models_on_local_text(tiny_model: Path, tmp_path: Path) -> None:
    """Its own optimizer, schedule, streaming and initialization, with less depth and other rows."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": str(row)} for row in conversations(60)])
    text: dict[str, Any] = {"path": str(rows), "format": "text"}
    plain = read_yaml(find_recipe("nanochat_d12"))
    base = plain["stages"][1]
    base["new_model"] = {"preset": "nanochat", "depth": 2, "head_dim": 64, "tokenizer": str(tiny_model)}
    base.update(data=[text], heldout={"data": [{**text, "stop": 6}]}, packing={"tokens_per_pack": 512})
    base["streaming"] = {"max_tokens": 40 * 512, "readers": 2}
    base["train"] = {"device": "cpu", "dtype": "float32", "threads": 1}
    plain.update(stages=plain["stages"][:2], out=str(tmp_path / "run"), max_tokens=128)
    del plain["evaluate"]
    run = train(run_of(make_chain(plain, "test"), "base"))
    assert isinstance(run.model.model, CausalLM)
    assert run.model.model.config.initialization is Initialization.NANOCHAT
    losses = [line["loss"] for line in run.steps]
    assert len(losses) == 40 and abs(losses[0] - math.log(run.model.model.config.vocab_size)) < 1e-3
    assert losses[-1] < 0.5 * losses[0]
