"""nanochat's family beyond what every family is tested for: its formulas by hand, its initialization, its counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_variants import VARIANTS
from random_segments import distance, packed

from chatwright.adapters.lora import attach_lora
from chatwright.adapters.settings import LoraSettings
from chatwright.errors import ModelError
from chatwright.models.compact_linear import Int8Linear
from chatwright.models.config import DecoderConfig, flops_per_token, num_parameters
from chatwright.models.elementwise import rms_norm, squared_relu
from chatwright.models.families import config_from_hf, config_to_hf
from chatwright.models.generation_weights import GenerationWeights, prepare_for_generation
from chatwright.models.presets import preset_config
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, load_model, save_model

LN = math.log(90)


def preset(depth: int = 2, **options: int) -> DecoderConfig:
    return preset_config("nanochat", 90, {"depth": depth, "head_dim": 32, **options})


def scrambled(config: DecoderConfig, dtype: torch.dtype = torch.float64) -> CausalLM:
    """A model in which nothing is zero."""
    model = init_model(config, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    return model


def by_hand(w: dict[str, torch.Tensor], config: DecoderConfig, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[T, V]` of one text by nanochat's formulas, written plainly."""
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.arange(len(ids))[:, None] * frequencies  # in float32, as everywhere
    cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)

    x = norm(w["model.embed_tokens.weight"][ids])
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        h = norm(x)
        q, k, v = (h @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
        q = norm(turn(q.view(-1, heads, size)))
        k = norm(turn(k.view(-1, kv_heads, size))).repeat_interleave(heads // kv_heads, 1)
        v = v.view(-1, kv_heads, size).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        later = torch.ones(len(ids), len(ids)).triu(1).bool()
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ w[f"{at}self_attn.o_proj.weight"].T
        inner = (norm(x) @ w[f"{at}mlp.fc1.weight"].T).clamp(min=0).square()
        x = x + inner @ w[f"{at}mlp.fc2.weight"].T
    return 15 * torch.tanh(norm(x) @ w["lm_head.weight"].T / 15)


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1}])
def test_logits_and_gradients_are_those_of_its_formulas(options: dict[str, int]) -> None:
    model = scrambled(preset(**options))
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    ids, positions, layout = packed([23], 90)
    probe = torch.randn(23, 90, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, plain = model.logits(ids, positions, layout), by_hand(weights, model.config, ids)
    assert distance(ours, plain) < 1e-12
    (ours * probe).sum().backward()
    (plain * probe).sum().backward()
    apart = {name: distance(p.grad, weights[name].grad) for name, p in model.named_parameters()}
    assert max(apart.values()) < 1e-12, apart


def test_bf16_is_as_near_to_float64_as_transformers_is(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = scrambled(preset(), torch.bfloat16)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids, positions, layout = packed([40], 90)
    with torch.no_grad():
        exact = load_model(tmp_path, dtype=torch.float64).logits(ids, positions, layout)
        ours = distance(load_model(tmp_path, dtype=torch.bfloat16).logits(ids, positions, layout), exact)
        other = distance(theirs(input_ids=ids[None]).logits[0], exact)
    assert 1e-4 < ours < max(1.5 * other, 0.01)


@pytest.mark.parametrize("shape", [(7, 24), (3000, 96)])
@pytest.mark.parametrize("grad", [True, False])
def test_a_norm_without_weight_is_one_of_weight_one(shape: tuple[int, int], grad: bool) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=grad)
    one = torch.ones(shape[1], dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        bare, whole = rms_norm(x, None, 1e-6, False), rms_norm(x, one, 1e-6, False)
        assert distance(bare, whole) < 1e-14
        if grad:
            probe = torch.randn_like(x)
            found, expected = (torch.autograd.grad(each, x, probe)[0] for each in (bare, whole))
            assert distance(found, expected) < 1e-14


def test_squared_relu_passes_gradcheck() -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squared_relu, (x,))
    assert torch.equal(squared_relu(x.detach()), F.relu(x.detach()) ** 2)


def test_fresh_weights_are_nanochats() -> None:
    """Deviation min(1, √(out / in)) / √in; 1 for the embedding; 0 for the head and what writes to the residual."""
    model = init_model(preset(4, num_kv_heads=1), seed=0)
    found = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        rows, columns = parameter.shape
        expected = min(1.0, math.sqrt(rows / columns)) / math.sqrt(columns)
        if name.endswith(("o_proj.weight", "fc2.weight", "lm_head.weight")):
            assert not parameter.any()
        else:
            expected = 1.0 if "embed" in name else expected
            assert abs(found[name] / expected - 1) < 0.03, name
    assert found["model.layers.0.self_attn.k_proj.weight"] < 0.5 * found["model.layers.0.self_attn.q_proj.weight"]


def test_a_fresh_model_passes_its_embedding_through_and_knows_nothing() -> None:
    model = init_model(preset(), seed=0)
    ids, positions, layout = packed([9, 4], 90)
    hidden, _ = model(ids, positions, layout)
    embedded = rms_norm(rms_norm(model.model.embed_tokens.weight[ids], None, 1e-6, False), None, 1e-6, False)
    torch.testing.assert_close(hidden, embedded, atol=1e-6, rtol=0)
    loss = F.cross_entropy(model.logits(ids, positions, layout), ids)
    assert abs(loss.item() - LN) < 1e-6
    loss.backward()
    assert bool(model.lm_head.weight.grad.any())


def test_llama_draws_all_matrices_alike() -> None:
    model = init_model(preset_config("llama", 90, {"num_layers": 1, "hidden_size": 128}), seed=0)
    for parameter in model.parameters():
        spread = float(parameter.detach().std())
        assert abs(spread - 0.02) < 0.001 if parameter.ndim == 2 else bool((parameter == 1).all())


def test_the_initialization_stands_in_the_saved_config() -> None:
    config = preset()
    raw = json.loads(json.dumps(config_to_hf(config)))
    assert raw["chatwright_initialization"] == "nanochat" and config_from_hf(raw) == config
    with pytest.raises(ModelError, match="known: normal, nanochat"):
        config_from_hf({**raw, "chatwright_initialization": "kaiming"})


def test_adapters_find_its_layers_by_name() -> None:
    model = scrambled(preset(), torch.float32)
    before = model.logits(*packed([6], 90)).detach()
    named = attach_lora(model, LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "*fc1", "*fc2")), seed=0)
    assert len(named) == 6 and {name.split(".")[-1] for name in named} == {"q_proj", "fc1", "fc2"}
    torch.testing.assert_close(model.logits(*packed([6], 90)).detach(), before)
    everywhere = attach_lora(scrambled(preset(), torch.float32), LoraSettings(rank=2), seed=0)
    assert len(everywhere) == 2 * 6


def test_int8_weights_reach_all_its_layers() -> None:
    model = scrambled(preset(), torch.float32)
    with torch.inference_mode():
        before = model.logits(*packed([9], 90)).clone()
        prepare_for_generation(model, GenerationWeights.INT8)
        assert sum(isinstance(part, Int8Linear) for part in model.modules()) == 2 * 4 + 1
        assert 1e-5 < distance(model.logits(*packed([9], 90)), before) < 0.1


def test_flops_count_each_matrix_six_times_and_each_pair_that_is_seen() -> None:
    """d20's 561 M less its embedding; attention by the positions that a token really sees."""
    config = preset_config("nanochat", 65_536, {})
    matrices = num_parameters(config) - 65_536 * 1280
    assert flops_per_token(config, 2048) == 6 * matrices + 12 * 20 * 1280 * 2049 / 2
    # nanochat's own estimate prints 3.491758e+09 for d20 at 2,048 tokens: it counts all 2,048 positions for each token
    assert 6 * matrices + 12 * 20 * 1280 * 2048 == pytest.approx(3.491758e9, rel=1e-6)


@pytest.mark.parametrize(("family", "activation"), [("nanochat", "silu"), ("llama", "relu2")])
def test_activations_of_the_other_kind_of_block_are_refused(family: str, activation: str) -> None:
    with pytest.raises(ModelError, match=f"unknown activation '{activation}'; known for {family}"):
        config_from_hf({**VARIANTS[family], "hidden_act": activation})
