"""Other transformers models behind our interface, and the probe that refuses those that leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed

from chatwright.errors import ModelError
from chatwright.models.foreign import ForeignLM, check_isolation, load_any, load_foreign
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import save_model

transformers = pytest.importorskip("transformers")

GPT2 = {"model_type": "gpt2", "vocab_size": 131, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 131,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GRANITE = {**VARIANTS["llama"], "model_type": "granite", "logits_scaling": 4.0, "rope_parameters": None}


def saved(fields: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fields", [GPT2, NEOX, GRANITE], ids=lambda fields: fields["model_type"])
def test_packed_rows_give_the_models_own_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = load_any(saved(fields, tmp_path))
    assert isinstance(model, ForeignLM)
    model.eval()
    ids, positions, layout = packed([9, 3, 20])
    with torch.no_grad():
        logits = model.output_head().logits(model(ids, positions, layout)[0])
        alone = [model.hf(input_ids=part[None]).logits[0] for part in ids.split([9, 3, 20])]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-4, rtol=0)
    assert set(model.state_dict()) == set(model.hf.state_dict())


def test_gradients_reach_the_parameters(tmp_path: Path) -> None:
    model = load_foreign(saved(GPT2, tmp_path))
    model(*packed([5, 8]))[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_cache_gives_what_the_whole_row_gives(tmp_path: Path) -> None:
    model = load_any(saved(GPT2, tmp_path)).eval()
    ids, positions, layout = packed([12, 7])
    whole, _ = model(ids, positions, layout)
    cache = model.new_cache(3, 32)
    first, second = ids.split([12, 7])
    got = [model(*take(first, 0, 9), cache, [0])[0], model(*take(second, 0, 7), cache, [2])[0]]
    got.append(model(*take(first, 9, 10), cache, [0])[0])
    cache.copy_prefix(0, 1, cache.lengths[0])
    cache.truncate(1, 9)
    got.append(model(*take(first, 9, 12), cache, [1])[0])
    expected = torch.cat([whole[:9], whole[12:], whole[9:10], whole[9:12]])
    assert distance(torch.cat(got), expected) < 1e-5
    assert cache.lengths == [10, 12, 7]


def take(ids: torch.Tensor, start: int, end: int) -> Any:
    _, _, layout = packed([end - start])
    return ids[start:end], torch.arange(start, end), layout


def test_saved_again_it_loads_in_transformers(tmp_path: Path) -> None:
    model = load_any(saved(GPT2, tmp_path / "one"))
    save_model(model, tmp_path / "two", dtype=torch.bfloat16)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.transformer.wte.weight, model.hf.transformer.wte.weight.bfloat16())


def test_a_family_of_our_own_is_preferred(tmp_path: Path) -> None:
    assert isinstance(load_any(saved(VARIANTS["qwen3"], tmp_path)), CausalLM)


def test_a_leaking_model_is_refused(tmp_path: Path) -> None:
    model = load_foreign(saved(GPT2, tmp_path))
    block = model.hf.transformer.h[0]
    block.register_forward_hook(lambda module, args, out: out + out.mean(dim=(0, 1), keepdim=True))
    with pytest.raises(ModelError, match="sees another one"):
        check_isolation(model, "here")


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    model = load_foreign(saved(GPT2, tmp_path))
    block = model.hf.transformer.h[0]
    block.register_forward_hook(lambda module, args, out: out + out.flip(1) * 0.1)
    with pytest.raises(ModelError, match="after it"):
        check_isolation(model, "here")


def test_a_folder_that_nobody_can_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelError, match="no_such_model"):
        load_any(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_any(tmp_path / "absent")


def test_casting_leaves_the_rotary_frequencies_exact(tmp_path: Path) -> None:
    folder = saved(NEOX, tmp_path)
    model = load_any(folder).to(torch.bfloat16).eval()
    ids, positions, layout = packed([40])
    direct = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        ours = model.output_head().logits(model(ids, positions, layout)[0])
        torch.testing.assert_close(ours, direct(ids[None]).logits[0], atol=0, rtol=0)


def test_recomputed_layers_give_the_same_gradient(tmp_path: Path) -> None:
    gradients = []
    for recompute in (False, True):
        model = load_foreign(saved(GPT2, tmp_path))
        model.checkpoint_activations = recompute
        assert model.checkpoint_activations is recompute
        model.eval().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(*packed([5, 8]))[0].square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert distance(*gradients) < 1e-6
