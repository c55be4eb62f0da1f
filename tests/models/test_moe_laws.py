"""Experts under the laws of every model: packed = one by one, cached = whole, checkpointed = plain; LoRA, int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_segments import distance, packed
from torch import nn

from chatwright.adapters.lora import attach_lora, merge_lora
from chatwright.adapters.settings import LoraSettings
from chatwright.errors import ConfigError
from chatwright.inference.engine import Engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.layouts import SegmentLayout
from chatwright.models.compact_linear import Int8Linear, PackedLinear
from chatwright.models.expert_dispatch import Dispatch, grouped_linear, segment_sums, sums_by_splitting
from chatwright.models.families import config_from_hf
from chatwright.models.generation_weights import GenerationWeights, generating, prepare_for_generation
from chatwright.models.moe import EXPERT_COUNTS, ROUTER_PROBS, MoeFeedForward
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, load_model, save_model
from chatwright.optim.flat_gradients import FlatGradients
from moe_variants import MOE_VARIANTS

LENGTHS = [9, 1, 17, 9, 30, 2]
NAMES = ["qwen3_moe", "qwen3_moe-every-second", "mixtral-window", "minimind_moe-more"]


def tiny(name: str, dtype: torch.dtype = torch.float64) -> CausalLM:
    return init_model(config_from_hf(MOE_VARIANTS[name]), seed=0).to(dtype)


def gradients(model: CausalLM, separately: bool = False) -> dict[str, torch.Tensor]:
    """Gradient of a fixed linear function of logits and router probabilities, packed or segment by segment."""
    ids, positions, layout = packed(LENGTHS)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(len(ids), 131, generator=generator, dtype=torch.float64).to(next(model.parameters()).dtype)
    router_probe = torch.randn(len(LENGTHS), model.config.moe.num_experts, generator=generator).to(probe.dtype)
    model.zero_grad()
    first = 0
    groups = [[length] for length in LENGTHS] if separately else [LENGTHS]
    for number, group in enumerate(groups):
        part = slice(first, first + sum(group))
        hidden, aux = model(ids[part], positions[part], SegmentLayout.from_lengths(group) if separately else layout)
        total = (model.output_head().logits(hidden) * probe[part]).sum()
        mine = router_probe[number : number + 1] if separately else router_probe
        (total + (aux[ROUTER_PROBS] * mine).sum()).backward()
        first = part.stop
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_packed_gradients_with_experts_are_the_sum_of_separate_ones(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    model = tiny(name, dtype)
    together, apart = gradients(model), gradients(model, separately=True)
    assert {key: d for key in apart if (d := distance(together[key], apart[key])) > bound} == {}


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_experts_change_no_gradient(name: str) -> None:
    model = tiny(name, torch.float32)
    plain = gradients(model)
    model.checkpoint_activations = True
    assert all(torch.equal(plain[key], value) for key, value in gradients(model).items())


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_with_experts_is_the_whole(name: str) -> None:
    model = tiny(name)
    ids, positions, layout = packed([13, 6])
    with torch.no_grad():
        whole = model(ids, positions, layout)[0].split([13, 6])
        cache = model.new_cache(2, 16)
        done, texts = [0, 0], ids.split([13, 6])
        for news in ([8, 2], [1, 1], [4, 3]):
            part = torch.cat([text[d : d + n] for text, d, n in zip(texts, done, news, strict=True)])
            places = torch.cat([torch.arange(d, d + n) for d, n in zip(done, news, strict=True)])
            hidden, aux = model(part, places, SegmentLayout.from_lengths(news), cache, [0, 1])
            assert aux == {}
            for row, found in enumerate(hidden.split(news)):
                assert distance(found, whole[row][done[row] : done[row] + news[row]]) < 1e-12
            done = [d + n for d, n in zip(done, news, strict=True)]


def test_replies_of_a_batch_are_those_of_one_row() -> None:
    model = tiny("qwen3_moe", torch.float32).eval()
    prompts = [list(range(3, 3 + n)) for n in (2, 5, 9)]
    engine, settings = Engine(model, stop_ids=()), SamplingSettings(temperature=0.0, max_new_tokens=6)
    together = [reply.ids for reply in engine.generate(prompts, settings)]
    alone = [engine.generate([prompt], settings)[0].ids for prompt in prompts]
    assert together == alone


def test_no_token_gives_no_state() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        hidden, _ = tiny("qwen3_moe")(nothing, nothing, SegmentLayout.from_lengths([]))
    assert hidden.shape == (0, 48)


def test_sums_say_which_experts_each_segment_chose() -> None:
    model = tiny("qwen3_moe-every-second")
    ids, positions, layout = packed(LENGTHS)
    _, aux = model(ids, positions, layout)
    assert aux[EXPERT_COUNTS].shape == aux[ROUTER_PROBS].shape == (1, len(LENGTHS), 5)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    assert torch.equal(aux[EXPERT_COUNTS].sum(-1)[0], 2 * lengths)
    torch.testing.assert_close(aux[ROUTER_PROBS].sum(-1)[0], lengths)
    assert not aux[EXPERT_COUNTS].requires_grad and aux[ROUTER_PROBS].requires_grad


def test_router_is_float32_in_a_bf16_model() -> None:
    gate = tiny("qwen3_moe", torch.bfloat16).model.layers[0].mlp.gate
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    probs, weights, chosen = gate(x)
    exact = torch.softmax((x @ gate.weight.t()).float(), dim=-1)
    assert torch.equal(probs, exact) and not torch.equal(probs, exact.bfloat16().float())
    picked = exact.gather(1, chosen)
    assert torch.equal(weights, picked / picked.sum(-1, keepdim=True))


def test_experts_without_a_token_have_a_gradient_of_zero() -> None:
    model = tiny("mixtral", torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.block_sparse_moe.gate.weight[3] = 0.0
            layer.block_sparse_moe.gate.weight[:3] *= 50.0
    ids, positions, layout = packed([2])
    hidden, aux = model(ids, positions, layout)
    unused = {(m, e) for m, counts in enumerate(aux[EXPERT_COUNTS][:, 0]) for e in range(4) if not counts[e]}
    assert unused
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        buffer = FlatGradients(list(model.parameters()))
        buffer.zero()
        hidden, _ = model(ids, positions, layout)
        model.output_head().logits(hidden).sum().backward()
        buffer.require_connected()
        assert buffer.settle().isfinite().all() and buffer.norm() > 0
        views = dict(zip((name for name, _ in model.named_parameters()), buffer.views, strict=True))
        for m, e in unused if dtype is torch.float32 else ():
            assert not views[f"model.layers.{m}.block_sparse_moe.experts.{e}.w1.weight"].any()
        buffer.close()
    model.zero_grad()
    hidden, _ = model(ids, positions, layout)
    hidden.float().sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "lm_head" not in name)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(7, 4, 2), (5, 3, 3), (1, 6, 1)])
def test_dispatch_against_a_plain_sum_and_finite_differences(tokens: int, experts: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(tokens, k, generator=generator, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    dispatch = Dispatch.of(chosen, experts)

    def through(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parts = dispatch.rows(x).split(dispatch.counts.tolist())
        return dispatch.combined(torch.cat([part * (e + 1.0) for e, part in enumerate(parts)]), weights)

    expected = (weights * (chosen + 1.0)).sum(1, keepdim=True) * x
    torch.testing.assert_close(through(x, weights), expected)
    assert torch.autograd.gradcheck(through, (x, weights))


def test_segment_sums_are_the_same_with_and_without_the_operator() -> None:
    _, _, layout = packed(LENGTHS)
    x = torch.randn(sum(LENGTHS), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = segment_sums(x, layout)
    torch.testing.assert_close(found, sums_by_splitting(x, layout), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[2], x[10:27].sum(0))


def test_block_with_experts_against_finite_differences() -> None:
    block = tiny("qwen3_moe").model.layers[0].mlp
    _, _, layout = packed([3, 2])
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    router = block.gate.weight

    def run(x: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, routing = block(x, layout)
        return out[:, :4], routing.probs

    assert torch.autograd.gradcheck(run, (x, router), eps=1e-7, atol=1e-5)


def test_one_kernel_for_all_experts_is_each_by_itself() -> None:
    """CUDA's path, run here by the same operator's CPU form; one expert has no row."""
    block: MoeFeedForward = tiny("qwen3_moe", torch.float32).model.layers[0].mlp
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 48, generator=generator)
    grad = torch.randn(16, 48, generator=generator)
    counts = torch.tensor([3, 0, 8, 4, 1])
    found = []
    for run in (block._through_experts, block.through_all_at_once):
        rows = x.clone().requires_grad_()
        block.zero_grad()
        out = run(rows, counts)
        out.backward(grad)
        found.append([out, rows.grad, *(p.grad for p in block.experts.parameters())])
    assert all(distance(a, b) < 1e-5 for a, b in zip(*found, strict=True))
    frozen = [expert.gate_proj.weight.detach() for expert in block.experts]
    assert grouped_linear(x, counts.cumsum(0).int(), frozen).requires_grad is False


def test_an_expert_without_a_row_gets_no_gradient_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some GPUs write nothing where a group is empty, so that its gradient would be what the memory held."""
    real = torch.nn.functional.grouped_mm

    def leaving_empty_groups(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        out = real(a, b, offs=offs)
        if out.ndim == 3:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", leaving_empty_groups)
    block: MoeFeedForward = tiny("qwen3_moe", torch.float32).model.layers[0].mlp
    block.through_all_at_once(torch.randn(16, 48), torch.tensor([0, 3, 0, 13, 0])).sum().backward()
    grads = [expert.gate_proj.weight.grad for expert in block.experts]
    assert [bool(grad.any()) for grad in grads] == [False, True, False, True, False]
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "minimind_moe"])
def test_adapters_reach_every_expert_and_merge(name: str) -> None:
    model = tiny(name, torch.float32)
    names = attach_lora(model, LoraSettings(rank=2, alpha=4.0, targets=("all-linear",)), seed=0)
    assert any("experts.2" in each for each in names) and not any(each.endswith(".gate") for each in names)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.2)
    found = gradients_of_adapter(model)
    assert {key for key, grad in found.items() if "lora_A" in key and grad.any()} == {k for k in found if "lora_A" in k}
    before = model.logits(*packed([12]))
    merge_lora(model)
    assert distance(model.logits(*packed([12])), before) < 1e-5


def gradients_of_adapter(model: CausalLM) -> dict[str, torch.Tensor]:
    model.logits(*packed(LENGTHS)).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapter_on_the_router_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gate.*matches no linear layer"):
        attach_lora(tiny("qwen3_moe"), LoraSettings(rank=2, alpha=4.0, targets=("gate",)), seed=0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "minimind_moe"])
def test_packed_and_int8_experts(name: str) -> None:
    model = tiny(name, torch.float32)
    with torch.inference_mode():
        before = model.logits(*packed([9, 4])).clone()
        with generating(model):
            block = getattr(model.model.layers[0], model.model.layers[0].block_name)
            assert any(isinstance(part, PackedLinear) for part in block.experts.modules())
            assert distance(model.logits(*packed([9, 4])), before) < 1e-5
        assert torch.equal(model.logits(*packed([9, 4])), before)
        prepare_for_generation(model, GenerationWeights.INT8)
        assert not any(isinstance(part, nn.Linear) for part in block.modules())
        assert any(isinstance(part, Int8Linear) for part in block.experts.modules())
        hidden = model.logits(*packed([9, 4]))
    assert hidden.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_experts_come_back_from_a_folder(name: str, tmp_path: Path) -> None:
    model = tiny(name, torch.float32)
    save_model(model, tmp_path, dtype=torch.bfloat16, max_shard_bytes=40_000)
    loaded = load_model(tmp_path)
    assert all(torch.equal(loaded.state_dict()[k], v.bfloat16().float()) for k, v in model.state_dict().items())
