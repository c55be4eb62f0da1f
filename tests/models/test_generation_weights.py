"""Compact linear layers: the same hidden states and logits, adapted layers untouched, and all undone after a block."""

from __future__ import annotations

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed
from torch import nn

from chatwright.adapters.lora import attach_lora
from chatwright.adapters.settings import LoraSettings
from chatwright.errors import ModelError
from chatwright.models.compact_linear import Int8Linear, PackedLinear
from chatwright.models.families import config_from_hf
from chatwright.models.generation_weights import GenerationWeights, generating, prepare_for_generation
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model

PACKS = torch.backends.mkldnn.is_available()


def logits(model: CausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(*packed([9, 4])).clone()


def kinds(model: CausalLM) -> set[type]:
    return {type(part) for part in model.modules() if isinstance(part, nn.Linear | PackedLinear | Int8Linear)}


@pytest.mark.skipif(not PACKS, reason="this torch has no oneDNN")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("name", VARIANTS)
def test_packed_models_compute_the_same(name: str, dtype: torch.dtype, bound: float) -> None:
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).to(dtype)
    before, names = logits(model), set(dict(model.named_parameters()))
    with generating(model):
        assert PackedLinear in kinds(model)
        assert distance(logits(model), before) < bound
    assert kinds(model) == {nn.Linear} and set(dict(model.named_parameters())) == names
    assert torch.equal(logits(model), before)


@pytest.mark.skipif(not PACKS, reason="this torch has no oneDNN")
def test_a_step_of_training_after_generating_is_seen_by_the_next_block() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    with generating(model):
        before = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with generating(model):
        changed = logits(model)
    assert distance(changed, logits(model)) < 1e-5 < distance(changed, before)


@pytest.mark.skipif(not PACKS, reason="this torch has no oneDNN")
def test_adapted_layers_stay_as_they_are() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    attach_lora(model, LoraSettings(rank=2, alpha=8.0, targets=("*q_proj", "*up_proj")), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    before = logits(model)
    prepare_for_generation(model)
    assert distance(logits(model), before) < 1e-5
    attention = model.model.layers[0].self_attn
    assert attention.qkv_proj is None and type(attention.k_proj) is PackedLinear
    assert type(attention.q_proj) is not PackedLinear


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_are_within_half_a_step_of_the_true_ones(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 32).to(dtype)
    x = torch.randn(rows, 64, generator=generator).to(dtype)
    with torch.inference_mode():
        compact = Int8Linear(layer.weight, layer.bias)
        steps = layer.weight.float().abs().amax(1, keepdim=True) / 127
        made = compact.numbers.float() * compact.scales.float()[:, None]
        assert ((made - layer.weight.float()).abs() <= steps * (0.51 if dtype is torch.float32 else 1.1)).all()
        exact = x.double() @ made.double().T + layer.bias.double()
        assert distance(compact(x), exact) < (1e-5 if dtype is torch.float32 else 0.02)


def test_int8_models_are_near_the_true_ones_and_refused_where_no_kernel_is() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    before = logits(model)
    prepare_for_generation(model, GenerationWeights.INT8)
    assert Int8Linear in kinds(model) and 1e-4 < distance(logits(model), before) < 0.1
    with pytest.raises(ModelError, match="float64"):
        prepare_for_generation(init_model(config_from_hf(VARIANTS["llama"]), seed=0).double(), GenerationWeights.INT8)


def test_dtypes_without_kernels_change_nothing() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0).double()
    prepare_for_generation(model)
    assert kinds(model) == {nn.Linear} and model.packed_head is None
