"""Every family against transformers, both ways, on tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_variants import VARIANTS
from random_segments import packed

from chatwright.errors import ModelError
from chatwright.models.config import num_parameters
from chatwright.models.families import FAMILIES, config_from_hf, config_to_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, load_model, save_model

transformers = pytest.importorskip("transformers")


def hf_model(fields: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model of this config with random weights, norms and biases included."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def hf_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


def our_logits(model: CausalLM, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, positions, layout = packed([length])
    with torch.no_grad():
        return ids, model.logits(ids, positions, layout)


@pytest.mark.parametrize("name", VARIANTS)
def test_hugging_face_folder_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = hf_model(VARIANTS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids, logits = our_logits(ours, 40)
    torch.testing.assert_close(logits, hf_logits(theirs, ids), atol=1e-4, rtol=0)
    assert num_parameters(ours.config) == sum(parameter.numel() for parameter in ours.parameters())
    assert {*ours.state_dict()} == {*theirs.state_dict()} - ({"lm_head.weight"} if ours.config.tied else set())


@pytest.mark.parametrize("name", VARIANTS)
def test_our_folder_gives_transformers_the_same_logits(name: str, tmp_path: Path) -> None:
    ours = init_model(config_from_hf(VARIANTS[name]), seed=3)
    save_model(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(theirs).__name__ == FAMILIES[ours.config.family].architecture
    assert theirs.dtype == torch.float32
    ids, logits = our_logits(ours, 40)
    torch.testing.assert_close(logits, hf_logits(theirs.eval(), ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_config_survives_the_way_to_disk_and_back(name: str) -> None:
    config = config_from_hf(VARIANTS[name])
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config
    hf = transformers.AutoConfig.for_model(**config_to_hf(config))
    assert config_from_hf(hf.to_dict()) == config


def test_old_rope_layout_reads_as_the_new_one() -> None:
    new = VARIANTS["llama-llama3"]
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = dict(new["rope_parameters"])
    old["rope_theta"] = scaling.pop("rope_theta")
    old["rope_scaling"] = scaling
    assert config_from_hf(old) == config_from_hf(new)


def test_old_gemma_layout_reads_as_the_new_one() -> None:
    new = VARIANTS["gemma3"]
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "layer_types")}
    old.update(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8.0})
    old["sliding_window_pattern"] = 2
    assert config_from_hf(old) == config_from_hf(new)


def test_gemma3_with_vision_gives_its_text_model() -> None:
    text = VARIANTS["gemma3"]
    assert config_from_hf({"model_type": "gemma3", "text_config": text}) == config_from_hf(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "falcon"}, ["falcon", "llama", "gemma3_text", "foreign"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["longrope", "yarn"]),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2}}, ["low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["0.5"]),
        ({"hidden_act": "relu"}, ["relu", "silu"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_key_value_heads": 4}, ["6", "4"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
    ],
)
def test_unusable_configs_are_refused_by_name(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        config_from_hf({**VARIANTS["llama"], **change})
    assert all(word in str(caught.value) for word in words)


def test_bidirectional_gemma_is_refused() -> None:
    with pytest.raises(ModelError, match="both directions"):
        config_from_hf({**VARIANTS["gemma3"], "use_bidirectional_attention": True})


def test_dynamic_rope_refuses_segments_beyond_its_positions() -> None:
    model = init_model(config_from_hf(VARIANTS["llama-dynamic"]), seed=0)
    with pytest.raises(ModelError, match="65 tokens"):
        model(*packed([65]))


def test_smollm2_135m_has_its_published_size() -> None:
    config = config_from_hf(
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        }
    )
    assert num_parameters(config) == 134_515_008
