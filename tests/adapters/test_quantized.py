"""NF4 bases: equal to bitsandbytes' own layer, right gradients, small, trained and resumed exactly, never merged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import our_logits, our_model, probe_ids, same_in_transformers, shake_adapter
from torch import nn

from chatwright.adapters import quantized
from chatwright.adapters.lora import adapted_layers, attach_lora, linear_layers, merge_lora
from chatwright.adapters.peft_files import load_peft, save_peft
from chatwright.adapters.quantized import Nf4Linear, Nf4LoraLinear, nf4_bytes, num_weights, quantize_linears
from chatwright.adapters.settings import LoraSettings
from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.merging import merge_adapter
from chatwright.errors import ConfigError, ModelError, UserError
from chatwright.recipes.data import build_data
from chatwright.recipes.model import load_weights
from chatwright.recipes.planning import plan_run
from chatwright.selftest.laws import check_recipe
from chatwright.settings import build
from tiny_model import make_tiny_model
from training_runs import CPU, Crash, CrashAfter, conversations, differing_bits, recipe, train

bnb = pytest.importorskip("bitsandbytes")
NF4: dict[str, Any] = {"rank": 4, "alpha": 8, "base": "nf4"}


def linear(dtype: torch.dtype, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 40, bias=bias).to(dtype)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_equals_bitsandbytes_own(dtype: torch.dtype, double: bool) -> None:
    base = linear(dtype)
    theirs = bnb.nn.Linear4bit(96, 40, compute_dtype=dtype, compress_statistics=double, quant_type="nf4")
    theirs.load_state_dict(copy.deepcopy(base.state_dict()))
    theirs = theirs.to("cpu")  # bitsandbytes quantizes on the way to the device
    ours = Nf4Linear(base, double)
    assert torch.equal(ours.weight, theirs.weight)
    expected = bnb.functional.dequantize_4bit(theirs.weight, theirs.weight.quant_state).to(dtype)
    assert torch.equal(ours.frozen_weight(), expected) and ours.frozen_weight().dtype == dtype
    x = torch.randn(7, 96, dtype=dtype)
    assert torch.allclose(
        ours(x), theirs(x), **({"atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5})
    )
    error = (ours.frozen_weight() - base.weight).float().norm() / base.weight.float().norm()
    assert 0.05 < error < 0.13  # really 4 bits


def test_gradients_are_those_of_the_dequantized_weight() -> None:
    layer = Nf4LoraLinear(Nf4Linear(linear(torch.float32), False), 4, 8.0)
    shake_adapter(layer)
    layer = layer.to(torch.float64)
    x = torch.randn(5, 96, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    y = x.detach().clone().requires_grad_()
    (y @ layer.frozen_weight().T + layer.bias + layer.scale * (y @ a.T @ b.T)).square().sum().backward()
    for ours, plain in ((x, y), (layer.lora_A, a), (layer.lora_B, b)):
        assert ours.grad is not None and plain.grad is not None
        assert torch.allclose(ours.grad, plain.grad, rtol=1e-12)
    assert layer.weight.grad is None
    assert torch.autograd.gradcheck(layer, (x.detach().requires_grad_(),))


def test_the_dequantized_weight_is_not_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []
    layer = Nf4Linear(linear(torch.float32, bias=False), False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(3, 96, requires_grad=True))
    assert [tensor.dtype for tensor in kept] == [torch.uint8]


def test_a_weight_in_four_bits_is_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    before = num_weights(model)
    quantize_linears(model, ["0"], double=False, device="cpu")
    assert num_weights(model) == before == 64 * 32 + 32 + 32 * 8 + 8


def test_the_dtype_follows_the_model_and_the_codes_stay() -> None:
    layer = Nf4Linear(linear(torch.float32), False)
    before, scales = layer.frozen_weight(), layer.state.absmax.clone()
    assert layer.to(torch.bfloat16).frozen_weight().dtype == torch.bfloat16
    assert layer.weight.dtype == torch.uint8 and layer.state.absmax.dtype == torch.float32
    assert layer.to(torch.float64).frozen_weight().dtype == torch.float64
    assert torch.equal(layer.to(torch.float32).frozen_weight(), before) and torch.equal(layer.state.absmax, scales)


@pytest.mark.parametrize("double", [False, True])
def test_the_bytes_that_plan_tells_are_those_that_are_held(double: bool) -> None:
    base = nn.Linear(512, 384, bias=False)
    layer = Nf4Linear(base, double)
    state = layer.state
    held = layer.weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    assert nf4_bytes(512 * 384, double) == held
    assert held < base.weight.nbytes / 7


def test_linears_alone_are_replaced_and_merging_is_refused() -> None:
    model = our_model(tied=False, dtype=torch.float32)
    plain, ids = copy.deepcopy(model), probe_ids()
    names = linear_layers(model)
    quantize_linears(model, names, False, "cpu")
    kinds = {type(module) for name, module in model.named_modules() if name in names}
    assert kinds == {Nf4Linear} and type(model.lm_head) is nn.Linear
    assert torch.equal(model.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    assert linear_layers(model) == names
    quantized_logits = our_logits(model, ids)
    assert not torch.equal(quantized_logits, our_logits(plain, ids))
    adapted = attach_lora(model, LoraSettings(rank=4), seed=0)
    assert adapted == names and torch.equal(our_logits(model, ids), quantized_logits)
    with pytest.raises(ModelError, match="quantized weights"):
        merge_lora(model)
    with pytest.raises(ModelError, match="quantized weights"):
        next(iter(adapted_layers(model).values())).merged()


def test_the_saved_adapter_loads_with_peft_on_the_plain_base(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    plain, ids = our_model(dtype=torch.float32), probe_ids()
    model = copy.deepcopy(plain)
    quantize_linears(model, linear_layers(model), True, "cpu")
    attach_lora(model, LoraSettings(rank=4, scaling="raw", alpha=0.5), seed=0)
    shake_adapter(model)
    save_peft(model, tmp_path, "base")
    theirs = peft.PeftModel.from_pretrained(same_in_transformers(plain), tmp_path)
    load_peft(plain, tmp_path)
    found = theirs(ids[None]).logits[0]
    assert torch.allclose(found, our_logits(plain, ids), atol=2e-5)
    assert not torch.allclose(found, our_logits(model, ids), atol=1e-2), "the 4-bit base must differ"


def test_missing_bitsandbytes_and_senseless_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no effect with base: full"):
        build(LoraSettings, {"double_quantization": True}, "adapter")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        Nf4Linear(linear(torch.float32), False)
    assert quantized.BLOCK == 64


def test_a_reward_model_is_not_silently_left_at_full_precision(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(ModelError, match="isn't kept in 4 bits"):
        load_weights(resolve_model(folder), torch.float32, "cpu", adapter=build(LoraSettings, NF4, "x"), scores=True)


# Whole runs


def test_a_run_is_resumed_exactly_and_merges_onto_the_full_base(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", hidden_size=64)
    rows = conversations(16)
    train_settings = {"train": {"max_steps": 4, "save_every": 2}}
    whole = train(recipe(base, None, tmp_path / "whole", adapter=NF4, **train_settings), {"rows": rows})
    assert whole.steps[-1]["loss"] < whole.steps[0]["loss"]
    assert all(isinstance(layer, Nf4LoraLinear) for layer in adapted_layers(whole.model.model).values())
    settings = recipe(base, None, tmp_path / "killed", adapter=NF4, **train_settings)
    with pytest.raises(Crash):
        train(settings, {"rows": rows}, hooks=[CrashAfter(3)])
    train(settings, {"rows": rows}, resume=True)
    assert differing_bits(tmp_path / "killed", tmp_path / "whole") == []

    merged, notes = merge_adapter(resolve_model(whole.folder), torch.float32)
    assert "4-bit base" in notes[-1] and "logit error" in notes[0]
    assert not adapted_layers(merged)


def test_plan_tells_the_smaller_weights(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", hidden_size=64)
    plans = {}
    for kind in ("full", "nf4"):
        settings = recipe(base, None, tmp_path / "run", adapter={**NF4, "base": kind})
        plans[kind] = plan_run(settings, build_data(settings, {"rows": conversations(8)}))  # type: ignore[arg-type]
    assert plans["nf4"].trainable_parameters == plans["full"].trainable_parameters
    linears = sum(layer.in_features * layer.out_features for layer in our_linears(base))
    saved = plans["full"].memory["weights"] - plans["nf4"].memory["weights"]
    assert saved == linears * 4 - sum(nf4_bytes(x.in_features * x.out_features, False) for x in our_linears(base))


def our_linears(folder: Path) -> list[nn.Linear]:
    from chatwright.models.weights import load_model

    model = load_model(folder)
    return [model.get_submodule(name) for name in linear_layers(model)]  # type: ignore[misc]


@pytest.mark.slow
def test_the_laws_hold_on_an_nf4_recipe(tmp_path: Path) -> None:
    from training_runs import write_rows

    base = make_tiny_model(tmp_path / "base", hidden_size=64)
    data = write_rows(tmp_path / "rows.jsonl", conversations(12))
    report = check_recipe(recipe(base, data, tmp_path / "run", adapter=NF4), CPU)
    assert report.broken == []
    assert "merged adapter = unmerged adapter: logits" in report.to_dict()["waived"] or any(
        outcome["status"] == "waived" for outcome in report.to_dict()["laws"]
    )
