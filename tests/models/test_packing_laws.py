"""Packed = one by one, values and gradients; no segment sees another; checkpointed = plain."""

from __future__ import annotations

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed

from chatwright.layouts import SegmentLayout
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model

LENGTHS = [9, 1, 17, 9, 30, 2, 64]


def gradients(model: CausalLM, lengths: list[int], separately: bool) -> dict[str, torch.Tensor]:
    """Gradient of a fixed linear function of the logits, from one pack or segment by segment."""
    ids, positions, layout = packed(lengths)
    probe = torch.randn(len(ids), 131, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe = probe.to(next(model.parameters()).dtype)
    model.zero_grad()
    if separately:
        parts = zip(ids.split(lengths), positions.split(lengths), probe.split(lengths), strict=True)
        for part_ids, part_positions, part_probe in parts:
            logits = model.logits(part_ids, part_positions, SegmentLayout.from_lengths([len(part_ids)]))
            (logits * part_probe).sum().backward()
    else:
        (model.logits(ids, positions, layout) * probe).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_packed_gradient_is_the_sum_of_separate_gradients(name: str, dtype: torch.dtype, bound: float) -> None:
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).to(dtype)
    together, apart = gradients(model, LENGTHS, False), gradients(model, LENGTHS, True)
    assert {
        key: distance(together[key], apart[key]) for key in apart if distance(together[key], apart[key]) > bound
    } == {}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "trains"), [(torch.float64, True), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_changing_one_segment_moves_no_other(name: str, dtype: torch.dtype, trains: bool) -> None:
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).to(dtype)
    ids, positions, layout = packed(LENGTHS)
    changed = ids.clone()
    changed[: LENGTHS[0]] = (changed[: LENGTHS[0]] + 1) % 131
    with torch.set_grad_enabled(trains):
        before, after = model(ids, positions, layout)[0], model(changed, positions, layout)[0]
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_bf16_gradients_are_near_those_of_float64(name: str) -> None:
    """The path of CPU training: attention in blocks, norms and rotation in pieces."""
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).to(torch.bfloat16)
    half = gradients(model, LENGTHS, False)
    exact = gradients(model.double(), LENGTHS, False)
    assert max(distance(half[key], exact[key]) for key in exact) < 0.1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_checkpointed_activations_change_no_gradient(name: str) -> None:
    model = init_model(config_from_hf(VARIANTS[name]), seed=0)
    plain = gradients(model, LENGTHS, False)
    model.checkpoint_activations = True
    checkpointed = gradients(model, LENGTHS, False)
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2-capped"])
def test_a_shared_prompt_gives_what_repeating_it_gives(name: str) -> None:
    """Two replies to one prompt: prompt once + kv_gather = prompt twice."""
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).double()
    ids, _, _ = packed([20])
    prompt, first, second = ids[:8], ids[8:13], ids[13:]
    twice = torch.cat([prompt, first, prompt, second])
    twice_positions = torch.cat([torch.arange(13), torch.arange(15)])
    expected, _ = model(twice, twice_positions, SegmentLayout.from_lengths([13, 15]))
    base = SegmentLayout.from_lengths([8, 5, 7], [8, 13, 15])
    gather = torch.cat([torch.arange(8), torch.arange(13), torch.arange(8), torch.arange(13, 20)])
    shared = SegmentLayout(base.cu_q, base.cu_k, base.lengths_q, base.lengths_k, gather)
    positions = torch.cat([torch.arange(8), torch.arange(8, 13), torch.arange(8, 15)])
    found, _ = model(ids, positions, shared)
    assert distance(found[:13], expected[:13]) < 1e-12
    assert distance(found[13:], expected[21:]) < 1e-12
