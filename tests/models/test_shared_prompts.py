"""A prompt computed once for two replies = computed for each, values and gradients, in every family and kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import VARIANTS
from random_segments import distance

from chatwright.batches.pairs import PairBatch, collate_pairs
from chatwright.batches.token_store import TokenStore
from chatwright.layouts import SegmentLayout
from chatwright.losses.settings import DpoSettings
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model
from chatwright.train.pair_objectives import DpoObjective, side_log_probs
from pair_examples import SIZES, pair_store, plain_sides

PAIRS = [(9, 4, 7), (1, 3, 2), (20, 9, 9), (5, 1, 12)]


def model_of(name: str = "llama", dtype: torch.dtype = torch.float64) -> CausalLM:
    return init_model(config_from_hf(VARIANTS[name]), seed=0).to(dtype)


def plain_log_probs(model: CausalLM, store: TokenStore) -> torch.Tensor:
    """`[P, 2]`, each side alone: whole logits, its own shift."""
    rows = []
    for index in range(len(store)):
        for ids, weights in plain_sides(store, index):
            x = torch.tensor(ids).long()
            logits = model.logits(x, torch.arange(len(x)), SegmentLayout.from_lengths([len(x)]))
            found = -F.cross_entropy(logits[:-1], x[1:], reduction="none")
            rows.append((found * torch.tensor(weights[1:] > 0)).sum())
    return torch.stack(rows).view(-1, 2)


def values_and_gradients(model: CausalLM, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sums = log_probs
    probe = torch.linspace(-1, 2, sums.numel(), dtype=sums.dtype).view_as(sums)
    (sums * probe).sum().backward()
    return {"values": sums.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def batch_of(store: TokenStore, **options: Any) -> PairBatch:
    batch = collate_pairs(store, range(len(store)), **options)
    assert isinstance(batch, PairBatch)
    return batch


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(distance(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_shared_is_written_out_is_one_by_one(name: str) -> None:
    model, store = model_of(name), pair_store(PAIRS)
    plain = values_and_gradients(model, plain_log_probs(model, store))
    batch = batch_of(store, pad_to=store.num_tokens + 3)
    shared = values_and_gradients(model, side_log_probs(model, batch).sums)
    written_out = values_and_gradients(model, side_log_probs(model, batch.unshared()).sums)
    assert worst(shared, plain) < 1e-12
    assert worst(written_out, plain) < 1e-12


@settings(max_examples=15, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_any_pairs_packed_are_the_pairs_alone(sizes: list[tuple[int, int, int]], seed: int) -> None:
    model, store = model_of("mistral-window"), pair_store(sizes, seed=seed)
    with torch.no_grad():
        packed, plain = side_log_probs(model, batch_of(store)).sums, plain_log_probs(model, store)
    assert torch.allclose(packed, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_checkpointed_activations_change_nothing(name: str) -> None:
    model, store = model_of(name), pair_store(PAIRS)
    plain = values_and_gradients(model, side_log_probs(model, batch_of(store)).sums)
    model.checkpoint_activations = True
    assert worst(values_and_gradients(model, side_log_probs(model, batch_of(store)).sums), plain) < 1e-14


def test_bf16_training_on_a_cpu_is_near_float64() -> None:
    """The kernels of bf16 training on CPUs: blocks for whole sides, flash for replies behind a shared prompt."""
    store, exact = pair_store([(60, 30, 40), (30, 50, 20)], seed=3), model_of()
    model = copy.deepcopy(exact).to(torch.bfloat16)
    exact = copy.deepcopy(model).double()
    wanted = values_and_gradients(exact, plain_log_probs(exact, store))
    shared = values_and_gradients(model, side_log_probs(model, batch_of(store)).sums)
    written_out = values_and_gradients(model, side_log_probs(model, batch_of(store).unshared()).sums)
    assert worst(shared, wanted) < max(0.03, 1.5 * worst(written_out, wanted))


def test_a_reply_sees_neither_the_other_reply_nor_another_pair() -> None:
    model, store = model_of(), pair_store(PAIRS)
    with torch.no_grad():
        before = side_log_probs(model, batch_of(store)).sums
        ids = store.ids.copy()
        start = int(store.offsets[1] + store.prompt_lengths[1])
        ids[start : start + int(store.chosen_lengths[1])] += 1  # the better reply of pair 1
        object.__setattr__(store, "ids", ids)
        after = side_log_probs(model, batch_of(store)).sums
    moved = (after != before).nonzero().tolist()
    assert moved == [[1, 0]]


def objective(store: TokenStore, **options: Any) -> DpoObjective:
    generator = torch.Generator().manual_seed(5)
    reference = -60 * torch.rand(len(store), 2, generator=generator, dtype=torch.float64)
    return DpoObjective(reference, DpoSettings(**options))


@pytest.mark.parametrize("options", [{}, {"loss": "ipo"}, {"label_smoothing": 0.2, "sft_weight": 0.3}])
def test_any_split_of_a_step_adds_up_to_the_whole(options: dict[str, Any]) -> None:
    model, store = model_of(), pair_store(PAIRS)
    minimize = objective(store, **options)

    def step(groups: list[list[int]]) -> tuple[float, float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = weight = 0.0
        for group in groups:
            outcome = minimize(model, collate_pairs(store, group, pad_to=64 if len(group) < 2 else None))
            outcome.total.backward()
            total, weight = total + outcome.total.item(), weight + outcome.weight
        return total, weight, {name: p.grad.clone() for name, p in model.named_parameters()}

    whole = step([[0, 1, 2, 3]])
    for groups in ([[0], [1], [2], [3]], [[3, 1], [], [0, 2]]):
        total, weight, gradients = step(groups)
        assert weight == whole[1] == 4.0
        assert total == pytest.approx(whole[0], rel=1e-12)
        assert worst(gradients, whole[2]) < 1e-12


def test_what_a_model_gives_at_first_costs_log_2() -> None:
    model, store = model_of(), pair_store(PAIRS)
    with torch.no_grad():
        reference = side_log_probs(model, batch_of(store)).sums
        found = DpoObjective(reference, DpoSettings())(model, batch_of(store))
    assert found.total.item() / found.weight == pytest.approx(0.6931471805599453, rel=1e-12)


def test_experts_balance_is_added_a_pair_at_a_time() -> None:
    from moe_variants import MOE_VARIANTS

    name = next(iter(MOE_VARIANTS))
    model = init_model(config_from_hf(MOE_VARIANTS[name]), seed=0).double()
    store = pair_store(PAIRS)
    minimize = objective(store)
    whole = minimize(model, batch_of(store, pad_to=100))
    assert "aux_loss" in whole.metrics and whole.metrics["aux_loss"][0] > 0
    parts = [minimize(model, collate_pairs(store, [index])) for index in range(len(store))]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-12)
