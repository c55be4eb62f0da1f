"""Presets: the published parameter counts, shapes that follow from the depth, and options that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.errors import ConfigError, ModelError
from chatwright.models.config import Initialization, num_parameters
from chatwright.models.presets import PRESETS, preset_config
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, save_model

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("preset", "vocab_size", "options", "parameters"),
    [
        ("nanochat", 65_536, {"depth": 20}, 560_988_160),  # printed by its base_train for d20
        ("nanochat", 65_536, {"depth": 32}, 1_879_048_192),  # the same for its d32
        ("nanochat", 65_536, {"depth": 34}, 2_217_082_880),  # karpathy/nanochat-d34 on the hub
        ("minimind", 6_400, {}, 25_829_888),  # "25.8 M"
        ("minimind", 6_400, {"num_layers": 2}, 8_915_456),  # "8.915" million
        ("minimind", 6_400, {"hidden_size": 768, "num_layers": 16}, 104_030_976),  # "104 M"
    ],
)
def test_presets_have_their_published_sizes(
    preset: str, vocab_size: int, options: dict[str, Any], parameters: int
) -> None:
    config = preset_config(preset, vocab_size, options)
    assert num_parameters(config) == parameters
    with torch.device("meta"):
        assert sum(each.numel() for each in CausalLM(config).parameters()) == parameters


@pytest.mark.parametrize(
    ("depth", "hidden", "heads", "head_dim"),
    [(4, 256, 2, 128), (12, 768, 6, 128), (20, 1280, 10, 128), (26, 1664, 13, 128), (13, 832, 8, 104), (1, 64, 1, 64)],
)
def test_nanochat_shapes_follow_from_the_depth(depth: int, hidden: int, heads: int, head_dim: int) -> None:
    config = preset_config("nanochat", 4096, {"depth": depth})
    assert (config.hidden_size, config.num_heads, config.head_dim, config.num_layers) == (
        hidden,
        heads,
        head_dim,
        depth,
    )
    assert config.num_kv_heads == heads and config.intermediate_size == 4 * hidden and config.max_positions == 2048
    assert config.final_soft_cap == 15.0 and not config.tied and config.initialization is Initialization.NANOCHAT


def test_nanochat_can_share_its_keys() -> None:
    config = preset_config("nanochat", 4096, {"depth": 12, "num_kv_heads": 2})
    full = preset_config("nanochat", 4096, {"depth": 12})
    assert config.num_kv_heads == 2 and num_parameters(full) - num_parameters(config) == 12 * 2 * 768 * 4 * 128
    with pytest.raises(ModelError, match="6 heads can't share 4"):
        preset_config("nanochat", 4096, {"depth": 12, "num_kv_heads": 4})


def test_minimind_is_its_llama() -> None:
    config = preset_config("minimind", 6_400, {})
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size) == (8, 2, 64, 1408)
    assert config.tied and config.norm_eps == 1e-5 and config.ropes[0].theta == 1e6 and config.family == "llama"


@pytest.mark.parametrize(("preset", "options"), [("nanochat", {"depth": 1}), ("minimind", {"hidden_size": 64})])
def test_a_fresh_preset_is_a_folder_that_transformers_loads(
    preset: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = init_model(preset_config(preset, 90, options), seed=0)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(each.numel() for each in theirs.parameters()) == num_parameters(model.config)
    assert theirs.config.num_key_value_heads == model.config.num_kv_heads
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model.config.family


@pytest.mark.parametrize(
    ("preset", "options", "words"),
    [
        ("nanochit", {}, ["nanochit", "nanochat"]),
        ("nanochat", {"dept": 4}, ["dept", "depth"]),
        ("nanochat", {"depth": -1}, ["depth", "positive", "-1"]),
        ("minimind", {"tied": "yes"}, ["tied", "true or false"]),
    ],
)
def test_wrong_options_are_named(preset: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        preset_config(preset, 4096, options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("preset", ["llama", "minimind", "minimind-moe"])
def test_heads_must_divide_the_hidden_size(preset: str) -> None:
    """transformers would not load what such a model is saved as."""
    with pytest.raises(ModelError, match="8 don't divide a hidden_size of 100"):
        preset_config(preset, 90, {"hidden_size": 100, "num_heads": 8, "num_kv_heads": 2})


def test_every_preset_makes_a_model_from_its_defaults_alone() -> None:
    for name, preset in PRESETS.items():
        config = preset_config(name, 512, {})
        assert config.vocab_size == 512 and preset.summary


def test_minimind_begins_as_torchs_linear_layers_do() -> None:
    config = preset_config("minimind", 320, {"hidden_size": 64, "num_layers": 2})
    assert config.initialization is Initialization.TORCH_LINEAR
    for name, parameter in init_model(config, seed=3).named_parameters():
        if parameter.ndim == 1:
            assert bool((parameter == 1).all()), name
            continue
        rows, width = parameter.shape
        bound = float(torch.nn.Linear(width, rows, bias=False).weight.abs().max())  # both come near 1/√in
        assert float(parameter.abs().max()) == pytest.approx(bound, rel=0.02), name
        assert float(parameter.detach().std()) == pytest.approx(width**-0.5 / 3**0.5, rel=0.05), name
