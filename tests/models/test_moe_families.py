"""Models with experts against transformers, both ways, on tiny random weights; counts; MiniMind's layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed
from safetensors import safe_open
from torch.nn import functional as F

from chatwright.errors import ModelError
from chatwright.models.config import active_parameters, flops_per_token, num_parameters
from chatwright.models.families import config_from_hf, config_to_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, load_model, save_model
from moe_variants import HF_MOE_VARIANTS, MOE_VARIANTS, hf_moe_model

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    ids, positions, layout = packed([40])
    if isinstance(model, CausalLM):
        return model.logits(ids, positions, layout)
    return model(input_ids=ids[None]).logits[0]


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", HF_MOE_VARIANTS)
def test_hugging_face_folder_with_experts_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = hf_moe_model(HF_MOE_VARIANTS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-4, rtol=0)
    assert num_parameters(ours.config) == sum(parameter.numel() for parameter in ours.parameters())
    assert set(ours.state_dict()) == stored_names(tmp_path)


@pytest.mark.parametrize("name", HF_MOE_VARIANTS)
def test_our_folder_with_experts_gives_transformers_the_same_logits(name: str, tmp_path: Path) -> None:
    ours = init_model(config_from_hf(HF_MOE_VARIANTS[name]), seed=3)
    save_model(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(logits_of(ours), logits_of(theirs.eval()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MOE_VARIANTS)
def test_expert_config_survives_the_way_to_disk_and_back(name: str) -> None:
    config = config_from_hf(MOE_VARIANTS[name])
    written = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(written) == config
    per_batch = replace(config, moe=replace(config.moe, aux_per_segment=False, aux_loss_weight=0.5))
    assert config_from_hf(config_to_hf(per_batch)) == per_batch
    if name in HF_MOE_VARIANTS:
        hf = transformers.AutoConfig.for_model(**written)
        assert config_from_hf(hf.to_dict()) == config


def test_which_layers_have_experts() -> None:
    layers = {name: config_from_hf(fields).moe.layers for name, fields in MOE_VARIANTS.items()}
    assert layers["qwen3_moe"] == (0, 1, 2)
    assert layers["qwen3_moe-every-second"] == (1,)
    assert layers["qwen3_moe-some-dense"] == (1,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 6}, ["6 of 5", "num_experts_per_tok"]),
        ({"decoder_sparse_step": 0}, ["decoder_sparse_step"]),
        ({"model_type": "minimind", "use_moe": True, "num_experts": 4}, ["num_experts", "qwen3_moe"]),
        ({"model_type": "minimind", "use_moe": False}, ["this MiniMind has no experts", '"qwen3"']),
    ],
)
def test_impossible_experts_are_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        config_from_hf({**MOE_VARIANTS["qwen3_moe"], **change})
    assert all(word in str(caught.value) for word in words)


def test_a_minimind_of_2025_without_experts_is_told_to_be_a_llama() -> None:
    with pytest.raises(ModelError, match=r"no experts(.|\n)*llama"):
        config_from_hf({**MOE_VARIANTS["minimind_moe"], "use_moe": False})


def test_qwen3_30b_a3b_has_its_published_sizes() -> None:
    """Its card: 30.5 B parameters, 29.9 B without the embeddings; about 3.3 B are activated."""
    config = config_from_hf(
        {
            "model_type": "qwen3_moe",
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        }
    )
    assert num_parameters(config) == 30_532_122_624
    assert active_parameters(config) == 3_353_032_704
    assert round((num_parameters(config) - 2 * config.vocab_size * config.hidden_size) / 1e9, 1) == 29.9


def test_a_token_pays_for_the_experts_it_goes_to() -> None:
    """k experts of a size = one dense block of k times that size, but for the router."""
    moe = config_from_hf({**MOE_VARIANTS["qwen3_moe"], "moe_intermediate_size": 40})
    dense = config_from_hf({**VARIANTS["qwen3"], "head_dim": 8})
    router = 3 * 5 * 48
    assert active_parameters(dense) == num_parameters(dense)
    assert active_parameters(moe) == num_parameters(dense) + router
    assert flops_per_token(moe, 10) == flops_per_token(dense, 10) + 6 * router


def plain_minimind_block(model: CausalLM, layer: int, x: torch.Tensor) -> torch.Tensor:
    """MiniMind's block by its definition, every token by itself: shared experts + Σ weight · expert."""
    state = model.model.layers[layer].mlp.state_dict()
    moe = model.config.moe

    def expert(name: str, row: torch.Tensor) -> torch.Tensor:
        gate, up, down = (state[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return down @ (F.silu(gate @ row) * (up @ row))

    rows = []
    for row in x:
        scores = torch.softmax(state["gate.weight"] @ row, dim=-1)
        weights, chosen = torch.topk(scores, moe.experts_per_token)
        weights = weights / weights.sum() if moe.norm_weights else weights
        out = sum(weight * expert(f"experts.{index}", row) for weight, index in zip(weights, chosen, strict=True))
        rows.append(out + sum(expert(f"shared_experts.{index}", row) for index in range(moe.num_shared)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["minimind_moe", "minimind_moe-more"])
def test_minimind_block_is_what_its_definition_says(name: str) -> None:
    model = init_model(config_from_hf(MOE_VARIANTS[name]), seed=0).double()
    x = torch.randn(9, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, _, layout = packed([9])
    with torch.no_grad():
        found, _ = model.model.layers[1].mlp(x, layout)
    assert distance(found, plain_minimind_block(model, 1, x)) < 1e-12


def test_minimind_folder_keeps_its_own_names(tmp_path: Path) -> None:
    model = init_model(config_from_hf(MOE_VARIANTS["minimind_moe"]), seed=0)
    save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["model_type"], content["use_moe"], content["n_shared_experts"]) == ("minimind", True, 1)
    expected = {"mlp.gate.weight", "mlp.experts.3.down_proj.weight", "mlp.shared_experts.0.up_proj.weight"}
    assert {f"model.layers.2.{name}" for name in expected} <= stored_names(tmp_path)
    assert torch.equal(logits_of(load_model(tmp_path)), logits_of(model))
