"""Trained token rows: only they learn, at both ends, exactly as if the whole embedding had them."""

from __future__ import annotations

import pytest
import torch
from adapter_models import VOCAB, our_logits, our_model, probe_ids, shake_adapter

from chatwright.adapters.token_rows import attach_token_rows, merge_token_rows, replace_rows, row_modules
from chatwright.errors import ModelError
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.models.transformer import CausalLM

IDS = [5, 40, 2]


def loss_of(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    from chatwright.layouts import SegmentLayout

    hidden, _ = model(ids[:-1], torch.arange(len(ids) - 1), SegmentLayout.from_lengths([len(ids) - 1]))
    return weighted_nll(hidden, model.output_head(), ids[1:], torch.ones(len(ids) - 1)).total


@pytest.mark.parametrize("tied", [True, False])
def test_rows_start_where_the_model_stood(tied: bool) -> None:
    model, ids = our_model(tied=tied), torch.tensor([1, 5, 40, 40, 9, 2, 5])
    before = our_logits(model, ids)
    count = attach_token_rows(model, IDS, seed=None)
    assert count == 3 * 32 * (1 if tied else 2)
    torch.testing.assert_close(our_logits(model, ids), before, rtol=1e-12, atol=1e-12)  # other kernels for few rows


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_full_embedding(tied: bool) -> None:
    ids = torch.cat([torch.tensor(IDS * 2), probe_ids()])
    full, ours = our_model(tied=tied), our_model(tied=tied)
    loss_of(full, ids).backward()
    attach_token_rows(ours, IDS, seed=None)
    loss_of(ours, ids).backward()
    names = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    assert list(row_modules(ours)) == names
    for name in names:
        expected = full.get_submodule(name).weight.grad[IDS]
        found = row_modules(ours)[name].token_rows.grad
        assert found is not None and (found - expected).norm() <= 1e-12 * expected.norm()
        assert row_modules(ours)[name].weight.grad is None


@pytest.mark.parametrize("tied", [True, False])
def test_merged_rows_give_the_same_logits_and_leave_the_others(tied: bool) -> None:
    model, ids = our_model(tied=tied), torch.cat([torch.tensor(IDS), probe_ids()])
    base = model.model.embed_tokens.weight.detach().clone()
    model.requires_grad_(False)
    attach_token_rows(model, IDS, seed=None)
    shake_adapter(model)
    before = our_logits(model, ids)
    assert merge_token_rows(model) == 3 * (1 if tied else 2)
    assert torch.allclose(our_logits(model, ids), before, rtol=1e-12)
    others = [i for i in range(VOCAB) if i not in IDS]
    assert torch.equal(model.model.embed_tokens.weight[others], base[others])
    assert not torch.equal(model.model.embed_tokens.weight[IDS], base[IDS])
    assert merge_token_rows(model) == 0


def test_seeded_rows_repeat_and_differ_from_each_other() -> None:
    one, other = our_model(), our_model()
    attach_token_rows(one, IDS, seed=4)
    attach_token_rows(other, IDS, seed=4)
    rows = row_modules(one)["model.embed_tokens"].token_rows
    assert torch.equal(rows, row_modules(other)["model.embed_tokens"].token_rows)
    assert torch.cdist(rows, rows)[0, 1] > 0.1


def test_the_naive_head_and_the_module_agree() -> None:
    model = our_model(tied=False)
    attach_token_rows(model, IDS, seed=None)
    shake_adapter(model)
    hidden = torch.randn(4, 32, dtype=torch.float64)
    assert model.lm_head is not None
    assert torch.allclose(model.lm_head(hidden), model.output_head().logits(hidden), rtol=1e-12)


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(ModelError, match=f"id {VOCAB} is beyond"):
        attach_token_rows(our_model(), [VOCAB], seed=0)
    with pytest.raises(ModelError, match="twice"):
        attach_token_rows(our_model(), [3, 3], seed=None)
    with pytest.raises(ModelError, match="can't be trained in a Linear"):
        attach_token_rows(torch.nn.Linear(2, 2), [1], seed=None)
    with pytest.raises(ModelError, match="different rows"):
        replace_rows(our_model(), embed_ids=[1], head_ids=[2])
    model = our_model()
    attach_token_rows(model, [1], seed=None)
    with pytest.raises(ModelError, match="already"):
        attach_token_rows(model, [1], seed=None)
