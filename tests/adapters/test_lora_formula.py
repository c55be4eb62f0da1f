"""LoRA as MA-RLHF's notebook defines it, in its own layout: formula, where it begins, merge, and peft's file of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_models import our_logits, our_model, probe_ids, same_in_transformers, shake_adapter
from torch import nn

from chatwright.adapters.lora import adapted_layers, attach_lora, require_learnable
from chatwright.adapters.lora_linear import LoraLinear
from chatwright.adapters.peft_files import load_peft, save_peft
from chatwright.adapters.settings import LoraSettings
from chatwright.errors import ModelError

RAW = LoraSettings(rank=4, alpha=0.1, scaling="raw")
"""The notebook's own values: rank 4, alpha 0.1, not divided by the rank."""


def raw_layer(d_in: int = 24, d_out: int = 10) -> LoraLinear:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(d_in, d_out, bias=False).double(), 4, 0.1 * 4)  # raw: alpha · r ÷ r
    layer.init_adapter(0)
    return layer


def test_the_formula_in_the_notebooks_layout() -> None:
    """h = X W + α · X W_A W_B with W `[in, out]`, W_A `[in, r]`, W_B `[r, out]`: ours transposed."""
    layer = raw_layer()
    shake_adapter(layer)
    w, w_a, w_b = layer.weight.T, layer.lora_A.T, layer.lora_B.T
    x = torch.randn(5, 24, dtype=torch.float64)
    assert torch.allclose(layer(x), x @ w + 0.1 * (x @ w_a @ w_b), rtol=1e-12)
    assert not torch.allclose(layer(x), x @ w + 0.1 / 4 * (x @ w_a @ w_b), rtol=1e-3)
    plain, _ = layer.merged()
    assert torch.allclose(plain.weight.T, w + 0.1 * w_a @ w_b, rtol=1e-12)


@pytest.mark.parametrize(
    ("zeros", "moves"),
    [(("lora_A", "lora_B"), []), (("lora_B",), ["lora_B"]), (("lora_A",), ["lora_A"])],
    ids=["both zero", "B zero (ours)", "A zero"],
)
def test_where_an_adapter_can_begin(zeros: tuple[str, ...], moves: list[str]) -> None:
    """Each factor's gradient is a product with the other: both zero is a point that no step ever leaves."""
    layer = raw_layer()
    shake_adapter(layer)
    with torch.no_grad():
        for name in zeros:
            getattr(layer, name).zero_()
    x = torch.randn(5, 24, dtype=torch.float64)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight)), "every start changes nothing at first"
    layer(x).square().sum().backward()
    gradients = {"lora_A": layer.lora_A.grad, "lora_B": layer.lora_B.grad}
    assert [name for name, grad in gradients.items() if grad is not None and bool(grad.any())] == moves
    assert layer.learnable == bool(moves)


def test_an_attached_adapter_is_never_both_zero_and_a_loaded_one_is_refused(tmp_path: Path) -> None:
    model = our_model()
    attach_lora(model, RAW, seed=0)
    assert all(layer.learnable and not layer.lora_B.any() for layer in adapted_layers(model).values())
    require_learnable(model)
    name, dead = next(iter(adapted_layers(model).items()))
    with torch.no_grad():
        dead.lora_A.zero_()
    save_peft(model, tmp_path, "base")
    again = our_model()
    load_peft(again, tmp_path)  # to chat with it is harmless
    with pytest.raises(ModelError, match=f"both zero in 1 layers, such as {name}"):
        require_learnable(again)


def test_raw_scaling_is_written_for_peft_as_alpha_times_rank(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, ids = our_model(), probe_ids()
    base = same_in_transformers(our_model())
    attach_lora(model, RAW, seed=0)
    shake_adapter(model)
    save_peft(model, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, pytest.approx(0.4))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).double()
    assert torch.allclose(theirs(ids[None]).logits[0], our_logits(model, ids), atol=1e-5)
