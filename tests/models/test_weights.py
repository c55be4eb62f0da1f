"""Model folders in and out, sharded, in several dtypes, damaged and mismatched; vocabularies made larger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_variants import VARIANTS
from random_segments import packed
from safetensors.torch import load_file, save_file

from chatwright.errors import ModelError
from chatwright.models.config import num_parameters
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import init_token_rows, resize_vocab
from chatwright.models.weights import INDEX_NAME, init_model, load_model, read_config, save_model
from shared_files import shared


def tiny(name: str = "llama", seed: int = 0) -> CausalLM:
    return init_model(config_from_hf(VARIANTS[name]), seed)


def same(one: CausalLM, two: CausalLM) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_and_dtypes_come_back(stored: torch.dtype, tmp_path: Path) -> None:
    model = tiny("gemma3")
    files = save_model(model, tmp_path, dtype=stored, max_shard_bytes=20_000)
    assert len(files) > 3 and read_config(tmp_path)["dtype"] == str(stored).removeprefix("torch.")
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert index["metadata"]["total_size"] == num_parameters(model.config) * stored.itemsize
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert same(loaded, tiny("gemma3").to(stored).float())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_dtype_of_the_loaded_model_is_the_one_asked_for(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    assert load_model(tmp_path, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float64).model.norm.weight.dtype == torch.float64


def test_fresh_weights_follow_the_seed_and_the_range() -> None:
    assert same(tiny(seed=4), tiny(seed=4)) and not same(tiny(seed=4), tiny(seed=5))
    model = tiny("llama-biases")
    assert abs(float(model.model.embed_tokens.weight.detach().std()) - 0.2) < 0.01
    assert not model.model.layers[0].self_attn.q_proj.bias.any()
    assert bool((model.model.norm.weight == 1).all()) and not tiny("gemma3").model.norm.weight.any()


def edit(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.update({name: tensor for name, tensor in change.items() if tensor is not None})
    kept = {name: tensor for name, tensor in tensors.items() if change.get(name, tensor) is not None}
    save_file(kept, folder / "model.safetensors")


def test_missing_unexpected_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    edit(
        tmp_path,
        {
            "model.layers.0.mlp.up_proj.weight": None,
            "model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2),
            "model.norm.weight": torch.zeros(7),
        },
    )
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    text = str(caught.value)
    assert "1 missing: model.layers.0.mlp.up_proj.weight" in text
    assert "1 unexpected: model.layers.9.mlp.up_proj.weight" in text
    assert "model.norm.weight is [7] in the file, but config.json says [48]" in text


def test_a_stored_copy_of_a_tied_head_is_tolerated_and_another_head_is_not(tmp_path: Path) -> None:
    model = tiny("llama-tied")
    save_model(model, tmp_path)
    edit(tmp_path, {"lm_head.weight": model.model.embed_tokens.weight.detach().clone()})
    assert same(load_model(tmp_path), model)
    edit(tmp_path, {"lm_head.weight": torch.zeros(131, 48)})
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_model(tmp_path)


def test_gemma3_with_vision_loads_its_text_weights(tmp_path: Path) -> None:
    model = tiny("gemma3")
    state = {f"language_model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**state, "vision_tower.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = {"model_type": "gemma3", "text_config": VARIANTS["gemma3"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(load_model(tmp_path), model)


def test_folders_that_are_no_model_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(VARIANTS["llama"]))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(ModelError, match="can't be read"):
        load_model(tmp_path)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        load_model(tmp_path)


def test_an_unmerged_adapter_is_not_saved_as_a_model(tmp_path: Path) -> None:
    model = tiny()
    model.model.layers[0].mlp.up_proj.lora_A = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ModelError, match="lora_A"):
        save_model(model, tmp_path)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_added_tokens_get_padded_rows_and_the_true_size_is_kept(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    before = model.logits(*packed([6]))
    assert resize_vocab(model, 133, multiple_of=16) == 13
    assert model.config.vocab_size == 144 and model.config.tokenizer_vocab_size == 133
    after = model.logits(*packed([6]))
    torch.testing.assert_close(after[:, :131], before)
    assert after.shape == (6, 144)
    save_model(model, tmp_path)
    assert load_model(tmp_path).config == model.config
    assert num_parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())
    assert resize_vocab(model, 140) == 0 and model.config.tokenizer_vocab_size == 140
    with pytest.raises(ModelError, match="140"):
        resize_vocab(model, 100)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_fresh_token_rows_are_seeded_apart_and_spread_like_the_others(name: str) -> None:
    one, two = tiny(name), tiny(name)
    old = one.model.embed_tokens.weight.detach().clone()
    for model in (one, two):
        init_token_rows(model, [5, 9], seed=3)
    assert same(one, two)
    rows = one.output_head().weight.detach()
    assert not torch.equal(rows[5], rows[9])
    assert 0.5 < float(rows[5].std() / old.std()) < 2
    kept = [i for i in range(131) if i not in (5, 9)]
    assert torch.equal(one.model.embed_tokens.weight[kept], old[kept])


def test_stories260k_speaks_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared("models/stories260k")
    ours = load_model(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, positions, layout = packed([40, 17], ours.config.vocab_size)
    with torch.no_grad():
        expected = torch.cat([theirs(input_ids=part[None]).logits[0] for part in ids.split([40, 17])])
        torch.testing.assert_close(ours.logits(ids, positions, layout), expected, atol=1e-4, rtol=0)
