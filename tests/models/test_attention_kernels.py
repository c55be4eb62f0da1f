"""Every attention kernel that runs here against plain attention in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import VARIANTS
from random_segments import distance

from chatwright.layouts import SegmentLayout
from chatwright.models.block_attention import block_attention
from chatwright.models.block_plan import plan_blocks
from chatwright.models.cached_attention import CacheView, attend_decode
from chatwright.models.config import Activation
from chatwright.models.elementwise import apply_rope, gated, rms_norm, whole_tables
from chatwright.models.families import config_from_hf
from chatwright.models.kv_cache import KVCache
from chatwright.models.segment_attention import (
    BLOCKS_UP_TO,
    Scores,
    attend_runs,
    attend_segments,
    visible,
)

LENGTHS = (9, 1, 17, 300, 9, 64, 530, 12, 45, 3)


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], scores: Scores) -> torch.Tensor:
    """Attention written out, one segment after another."""
    out = []
    for q_, k_, v_ in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        groups = q.shape[1] // k.shape[1]
        k_, v_ = k_.repeat_interleave(groups, 1), v_.repeat_interleave(groups, 1)
        logits = torch.einsum("qhd,khd->hqk", q_, k_) * scores.scale
        if scores.soft_cap is not None:
            logits = scores.soft_cap * torch.tanh(logits / scores.soft_cap)
        hidden = ~visible(len(q_), len(k_), scores.window, q.device)
        out.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(hidden, -torch.inf).softmax(-1), v_))
    return torch.cat(out)


def random_heads(tokens: int, dtype: torch.dtype, heads: int = 6, kv_heads: int = 2) -> list[torch.Tensor]:
    """q, k, v that want gradients, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, heads, 16), (tokens, kv_heads, 16), (tokens, kv_heads, 16), (tokens, heads, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def far(heads: list[torch.Tensor], out: torch.Tensor, lengths: tuple[int, ...], scores: Scores) -> list[float]:
    """How far output and gradients are from those of `naive` in float64."""
    q, k, v, grad = heads
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = naive(*exact, lengths, scores)
    found = torch.autograd.grad(out, (q, k, v), grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    return [distance(a, b) for a, b in zip((out, *found), (expected, *wanted), strict=True)]


@pytest.mark.parametrize("scores", [Scores(0.25), Scores(0.3, 40), Scores(0.25, 300), Scores(0.25, None, 2.0)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_attention_is_exact(scores: Scores, dtype: torch.dtype, bound: float) -> None:
    heads = random_heads(sum(LENGTHS), dtype)
    out = attend_segments(*heads[:3], SegmentLayout.from_lengths(LENGTHS), scores)
    assert max(far(heads, out, LENGTHS, scores)) < bound


@pytest.mark.parametrize("window", [None, 40, 300])
def test_blocks_are_closer_to_exact_gradients_than_the_flash_kernel(window: int | None) -> None:
    heads, scores = random_heads(sum(LENGTHS), torch.bfloat16), Scores(0.25, window)
    blocks = far(heads, block_attention(*heads[:3], plan_blocks(LENGTHS, 6, 2, window), 0.25), LENGTHS, scores)
    layout = SegmentLayout.from_lengths(LENGTHS)
    flash = far(heads, attend_runs(*heads[:3], layout, scores), LENGTHS, scores)
    assert max(blocks) < 0.005 and max(blocks[1:]) < max(flash[1:])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 600), min_size=1, max_size=12).filter(any), st.sampled_from([None, 1, 7, 250]))
def test_every_score_that_counts_stands_in_one_block(lengths: list[int], window: int | None) -> None:
    """The plan alone, in exact arithmetic: flat rows come back, and each visible pair is met once."""
    plan = plan_blocks(tuple(lengths), 4, 2, window)
    tokens = sum(lengths)
    assert torch.equal(plan.q_index[plan.q_inverse], torch.arange(tokens * 4))
    assert torch.equal(plan.k_index[plan.k_inverse], torch.arange(tokens * 2))
    assert len(plan.q_index) - len(plan.q_padding) == tokens * 4
    met = torch.zeros(tokens, tokens, dtype=torch.int32)
    real = torch.ones(len(plan.q_index), dtype=torch.bool)
    real[plan.q_padding] = False
    for block in plan.blocks:
        rows, keys = block.last_row - block.first_row, block.last_row - block.first_key
        mask = torch.zeros(rows, keys)
        mask[:, keys - block.mask.shape[1] :] = block.mask
        q_rows = plan.q_index[block.q_start :][: block.batch * 2 * rows].view(block.batch, 2, rows)[::2, 0] // 4
        q_real = real[block.q_start :][: block.batch * 2 * rows].view(block.batch, 2, rows)[::2, 0]
        k_rows = plan.k_index[block.k_start :][: block.batch * block.length].view(block.batch, -1)[::2] // 2
        for q_row, is_real, k_row in zip(q_rows, q_real, k_rows[:, block.first_key : block.last_row], strict=True):
            pairs = (mask == 0) & is_real[:, None]
            i, j = pairs.nonzero(as_tuple=True)
            met.index_put_((q_row[i], k_row[j]), met.new_ones(()), accumulate=True)
    expected = torch.block_diag(*[visible(n, n, window, met.device).int() for n in lengths if n])
    assert torch.equal(met, expected.to(met.dtype))


def test_long_segments_go_through_flash_and_agree() -> None:
    lengths = (BLOCKS_UP_TO + 40, 30)
    heads = random_heads(sum(lengths), torch.bfloat16)
    out = attend_segments(*heads[:3], SegmentLayout.from_lengths(lengths), Scores(0.25))
    assert max(far(heads, out, lengths, Scores(0.25))) < 0.01


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.006)])
def test_elementwise_parts_are_exact(plus_one: bool, dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    x, weight, up, grad = make(700, 4, 64), make(64), make(700, 4, 64), make(700, 4, 64)
    angles = torch.rand(700, 32, generator=generator).to(dtype).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    activation = Activation.GELU_TANH if plus_one else Activation.SILU

    def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (weight + plus_one)

    def exact_rope(x: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(*x.chunk(2, -1)) * torch.complex(cos.double(), sin.double())[:, None]
        return torch.cat([turned.real, turned.imag], -1)

    def exact_gate(x: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gelu = torch.nn.functional.gelu(x, approximate="tanh")
        return (gelu if plus_one else torch.nn.functional.silu(x)) * up

    for ours, exact, inputs in (
        (lambda x, w: rms_norm(x, w, 1e-5, plus_one), exact_norm, (x, weight)),
        (lambda x: apply_rope(x, cos, sin), exact_rope, (x,)),
        (lambda x, up: gated(x, up, activation), exact_gate, (x, up)),
    ):
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        found, expected = ours(*inputs), exact(*wide)
        assert distance(found, expected) < bound
        gradients = torch.autograd.grad(found, inputs, grad)
        for a, b in zip(gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True):
            assert distance(a, b) < bound


@pytest.mark.parametrize("scores", [Scores(0.25), Scores(0.25, 7), Scores(0.25, 9, 2.0)])
@pytest.mark.parametrize(
    "held",
    [
        {3: 20},
        {0: 11, 1: 11, 2: 11},
        {4: 20, 0: 6, 3: 1},
        {1: 9, 2: 17, 4: 10},
        {5: 490, 4: 500, 3: 480, 0: 3, 1: 4, 7: 2},
        {0: 500, 7: 20, 6: 31, 5: 18},
    ],
)
def test_decoding_in_groups_is_attention_row_by_row(scores: Scores, held: dict[int, int]) -> None:
    """In order and not, with holes, with rows too different to be put together."""
    config = config_from_hf({**VARIANTS["llama"], "head_dim": 16})
    cache = KVCache(config, 8, 512, torch.float64)
    generator = torch.Generator().manual_seed(0)
    for tensor in (cache.keys, cache.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    for row, length in held.items():
        cache.lengths[row] = length
    q = torch.randn(len(held), 6, 16, generator=generator, dtype=torch.float64)
    view = CacheView(cache, list(held), [1] * len(held))
    found = attend_decode(q, cache.keys[0], cache.values[0], view, scores)
    for query, (row, length) in enumerate(held.items()):
        k, v = (
            cache.keys[0, row, :, : length + 1].transpose(0, 1),
            cache.values[0, row, :, : length + 1].transpose(0, 1),
        )
        expected = attend_runs(q[query, None], k, v, SegmentLayout.from_lengths([1], [length + 1]), scores)
        assert distance(found[query, None], expected) < 1e-12
    assert sum(group.last - group.first for group in view.groups) <= 8
    if max(held.values()) > 400:
        assert len(view.groups) > 1, "short rows don't pay for a long one"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 0.008)])
def test_small_inputs_without_gradient_give_the_same(dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, up = (torch.randn(5, 4, 64, generator=generator).to(dtype) for _ in range(2))
    weight, angles = torch.randn(64, generator=generator).to(dtype), torch.rand(5, 32, generator=generator).to(dtype)
    for call in (
        lambda: rms_norm(x, weight, 1e-5, True),
        lambda: rms_norm(x, weight, 1e-5, False),
        lambda: apply_rope(x, angles.cos(), angles.sin()),
        lambda: gated(x, up, Activation.SILU),
    ):
        trained = call()
        with torch.no_grad():
            assert distance(call(), trained) < bound


def test_whole_tables_rotate_as_halves_do() -> None:
    generator = torch.Generator().manual_seed(0)
    x, angles = (torch.randn(5, 4, 64, generator=generator).double(), torch.rand(5, 32, generator=generator).double())
    expected = apply_rope(x, angles.cos(), angles.sin())
    assert distance(apply_rope(x, *whole_tables(angles.cos(), angles.sin())), expected) < 1e-12
