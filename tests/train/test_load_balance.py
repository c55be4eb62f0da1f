"""The load-balance loss: parity with transformers and MiniMind's formula; any split of a step gives one gradient."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches.collate import collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.errors import ConfigError
from chatwright.losses.load_balance import batch_load_balance, router_metrics, segment_load_balance
from chatwright.losses.loss_sum import LossSum
from chatwright.models.families import config_from_hf
from chatwright.models.moe import EXPERT_COUNTS
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, save_model
from chatwright.templates.rendered import ExampleKey, RenderedExample
from chatwright.train.auxiliary import with_auxiliary
from chatwright.train.objectives import next_token_nll
from moe_variants import MOE_VARIANTS, hf_moe_model
from tiny_model import make_tiny_model
from training_runs import conversations, recipe, train, write_rows

LENGTHS = (7, 2, 11, 5, 9, 3)


def examples(lengths: tuple[int, ...] = LENGTHS, even: bool = False) -> TokenStore:
    """Random examples; every third token unsupervised unless `even`."""
    generator = np.random.default_rng(0)
    made = []
    for row, length in enumerate(lengths):
        weights = np.ones(length, dtype=np.float32)
        if not even:
            weights[::3] = 0.0
            weights[-1] = 0.5 + row
        made.append(
            RenderedExample(
                generator.integers(3, 131, length).astype(np.int32), weights, (), ExampleKey("test", row, 0)
            )
        )
    return TokenStore.from_examples(made)


def tiny(name: str = "qwen3_moe", *, weight: float = 0.7, exact: bool = True) -> CausalLM:
    model = init_model(config_from_hf(MOE_VARIANTS[name]), seed=0).double()
    moe = replace(model.config.moe, aux_loss_weight=weight, aux_per_segment=exact)
    model.config = replace(model.config, moe=moe)
    return model


def step_gradient(model: CausalLM, packs: list[list[int]], pad_to: int | None = None) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of a step cut into packs, divided once."""
    model.zero_grad()
    outcomes = [next_token_nll(model, collate(examples(), pack, pad_to=pad_to)) for pack in packs]
    sum(outcome.total for outcome in outcomes).backward()
    weight = sum(outcome.weight for outcome in outcomes)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]) / weight
    return sum(float(outcome.total.detach()) for outcome in outcomes) / weight, flat


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[list[int]], int | None]:
    """A shuffled step cut anywhere, packs filled up or not, with or without an empty pack."""
    order = draw(st.permutations(range(len(LENGTHS))))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1))))
    packs = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    pad_to = draw(st.sampled_from([None, 40]))
    return packs + [[]] * draw(st.integers(0, 1)), pad_to


@pytest.mark.parametrize("name", ["qwen3_moe", "minimind_moe"])
@settings(max_examples=12, deadline=None)
@given(split=splits())
def test_any_split_of_a_step_gives_the_same_gradient(name: str, split: tuple[list[list[int]], int | None]) -> None:
    model = tiny(name)
    loss, expected = step_gradient(model, [list(range(len(LENGTHS)))])
    found_loss, found = step_gradient(model, *split)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert abs(found_loss - loss) < 1e-12 * abs(loss)


def test_the_global_form_depends_on_the_split() -> None:
    """Why `exact` is the default; and that the law above can fail."""
    model = tiny(exact=False)
    _, whole = step_gradient(model, [list(range(6))])
    _, halves = step_gradient(model, [[0, 1, 2], [3, 4, 5]])
    assert float((halves - whole).norm() / whole.norm()) > 1e-4


def test_router_learns_from_the_loss_alone() -> None:
    """Its gradient is that of finite differences, and none flows through the counts."""
    model = tiny("mixtral")
    batch = collate(examples(), range(6))
    router = model.model.layers[0].block_sparse_moe.gate.weight

    def loss() -> torch.Tensor:
        return next_token_nll(model, batch).total

    (grad,) = torch.autograd.grad(loss(), router)
    direction = torch.randn(router.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        router.add_(direction, alpha=step)
    above = float(loss().detach())
    with torch.no_grad():
        router.sub_(direction, alpha=2 * step)
    below = float(loss().detach())
    assert float((grad * direction).sum()) == pytest.approx((above - below) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe-every-second", "mixtral"])
def test_global_form_is_that_of_transformers(name: str) -> None:
    """Loss with the auxiliary loss, and the auxiliary loss itself, of a padded batch."""
    pytest.importorskip("transformers")
    ours = tiny(name, weight=0.7, exact=False)
    theirs = hf_moe_model({**MOE_VARIANTS[name], "router_aux_loss_coef": 0.7}).double()
    theirs.set_experts_implementation("eager")
    load_into(theirs, ours)
    store = examples((9, 6), even=True)
    batch = collate(store, [0, 1], pad_to=20)
    ids = torch.zeros(2, 9, dtype=torch.int64)
    ids[0], ids[1, :6] = batch.input_ids[:9], batch.input_ids[9:15]
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    labels = ids.masked_fill(mask == 0, -100)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=True)
    found = next_token_nll(ours, batch)
    assert float(found.total.detach()) / found.weight == pytest.approx(float(expected.loss), rel=1e-6)
    total, weight = found.metrics["aux_loss"]
    assert total / weight == pytest.approx(0.7 * float(expected.aux_loss), rel=1e-6)
    found.total.backward()
    (expected.loss * found.weight).backward()
    layer = max(ours.config.moe.layers)
    mine = getattr(ours.model.layers[layer], ours.model.layers[layer].block_name).gate.weight.grad
    expected_grad = theirs.model.layers[layer].mlp.gate.weight.grad  # by a softmax in float32
    assert float((mine - expected_grad).norm() / expected_grad.norm()) < 1e-5


def load_into(theirs: torch.nn.Module, ours: CausalLM) -> None:
    """Give transformers' model our weights, whose experts it holds in one tensor."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, folder)
        loaded = type(theirs).from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    theirs.load_state_dict(loaded.state_dict())


def minimind_sequence_loss(scores: torch.Tensor, k: int) -> torch.Tensor:
    """MiniMind's `seq_aux` of one layer, `[B, L, E]`, without its weight: mean over sequences of Σ share · score."""
    _, length, experts = scores.shape
    per_sequence = []
    for one in scores:
        chosen = one.topk(k, dim=-1).indices.flatten()
        share = torch.stack([(chosen == e).sum() for e in range(experts)]) / (length * k / experts)
        per_sequence.append((share * one.mean(0)).sum())
    return torch.stack(per_sequence).mean()


def test_segment_form_is_minimind_s_where_sequences_weigh_alike() -> None:
    model = tiny("minimind_moe", weight=0.1)
    store = examples((8, 8, 8), even=True)
    batch = collate(store, [0, 1, 2])
    scores: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in model.model.layers]
    handles = [gate.register_forward_hook(lambda _m, _i, out: scores.append(out[0])) for gate in gates]
    found = next_token_nll(model, batch)
    for handle in handles:
        handle.remove()
    expected = 0.1 * sum(float(minimind_sequence_loss(each.view(3, 8, -1), 2)) for each in scores)
    total, weight = found.metrics["aux_loss"]
    logits_total, _ = found.metrics["logits_loss"]
    assert total / weight == pytest.approx(expected, rel=1e-12)
    assert float(found.total) == pytest.approx(total + logits_total, rel=1e-12)


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe-every-second", "mixtral"])
def test_a_weight_means_the_same_in_both_forms(name: str) -> None:
    """Routers without a preference: k in both, however many layers have experts."""
    totals = []
    for exact in (True, False):
        model = tiny(name, weight=0.3, exact=exact)
        for layer in model.config.moe.layers:
            block = model.model.layers[layer]
            getattr(block, block.block_name).gate.weight.data.zero_()
        total, weight = next_token_nll(model, collate(examples((12, 7)), [0, 1])).metrics["aux_loss"]
        totals.append(total / weight)
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)
    assert totals[0] == pytest.approx(0.3 * model.config.moe.experts_per_token, rel=1e-9)


def test_even_routing_costs_one_a_layer_or_k_in_the_global_form() -> None:
    counts = torch.full((3, 2, 4), 6.0, dtype=torch.float64)  # 12 tokens a segment, 2 experts each
    probs = torch.full((3, 2, 4), 3.0, dtype=torch.float64)
    lengths = torch.full((2,), 12.0, dtype=torch.float64)
    assert segment_load_balance(counts, probs, lengths).tolist() == [3.0, 3.0]
    assert float(batch_load_balance(counts, probs, lengths)) == 2.0
    one = torch.zeros(1, 1, 4, dtype=torch.float64)
    one[0, 0, 0] = 12.0
    assert segment_load_balance(one, one, lengths[:1]).tolist() == [4.0]


def test_router_metrics_count_choices() -> None:
    counts = torch.tensor([[[6.0, 0.0, 2.0]], [[0.0, 8.0, 0.0]]])
    told = {name: total / weight for name, (total, weight) in router_metrics(counts).items()}
    assert told["expert_load_max"] == pytest.approx((6 / (8 / 3) + 3.0) / 2)
    assert told["expert_unused"] == pytest.approx(3 / 6)
    assert [told[f"expert_share_{e}"] for e in range(3)] == [6 / 16, 8 / 16, 2 / 16]
    assert router_metrics(counts * 0) == {}
    assert "expert_share_0" not in router_metrics(torch.ones(1, 1, 17))


def test_padding_and_unsupervised_segments_weigh_nothing() -> None:
    model = tiny()
    outcome = next_token_nll(model, collate(examples(), [], pad_to=12))
    assert float(outcome.total) == 0.0 and outcome.weight == 0.0 and outcome.total.requires_grad
    assert float(next_token_nll(tiny(exact=False), collate(examples(), [], pad_to=12)).total) == 0.0


def test_other_objectives_give_their_own_segment_weights() -> None:
    """As preferences do, whose unit is the pair."""
    model = tiny(weight=1.0)
    batch = collate(examples(), [0, 2])
    _, aux = model(batch.input_ids, batch.position_ids, batch.layout)
    base = LossSum(torch.zeros((), dtype=torch.float64), 1.0, 0, torch.zeros(0))
    parts = [
        float(with_auxiliary(base, model, aux, batch, torch.tensor(weights)).total)
        for weights in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0])
    ]
    assert parts[0] == pytest.approx((parts[1] + parts[2]) / 2, rel=1e-12) and parts[1] != parts[2]


def test_held_out_losses_are_without_it() -> None:
    model = tiny()
    batch: PackedBatch = collate(examples(), range(3))
    with torch.no_grad():
        outcome = next_token_nll(model, batch)
    trained = next_token_nll(model, batch)
    assert outcome.metrics == {}
    assert float(outcome.total) == pytest.approx(trained.metrics["logits_loss"][0], rel=1e-12)


MOE_FIELDS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "head_dim": 8,
}


def test_a_run_logs_the_loss_and_keeps_its_weight(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **MOE_FIELDS)
    data = write_rows(tmp_path / "data.jsonl", conversations(8))
    finished = train(
        recipe(model, data, tmp_path / "run", moe={"aux_loss_weight": 0.05}, train={"activation_checkpointing": True})
    )
    for step in finished.steps:
        assert step["loss"] == pytest.approx(step["logits_loss"] + step["aux_loss"], rel=1e-6)
        assert 0.09 < step["aux_loss"] < 0.4  # 0.1 where all is even: two experts a token
        assert sum(step[f"expert_share_{e}"] for e in range(4)) == pytest.approx(1.0)
    assert finished.model.model.config.moe.aux_loss_weight == 0.05
    assert '"router_aux_loss_coef": 0.05' in (finished.folder / "config.json").read_text()


def test_a_new_weight_leaves_the_scope_as_the_model_has_it(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", **MOE_FIELDS)
    data = write_rows(tmp_path / "data.jsonl", conversations(4))
    first = train(recipe(model, data, tmp_path / "first", moe={"exact": False}))
    then = train(recipe(first.folder, data, tmp_path / "then", moe={"aux_loss_weight": 0.05}))
    assert not then.model.model.config.moe.aux_per_segment
    back = train(recipe(first.folder, data, tmp_path / "back", moe={"exact": True}))
    assert back.model.model.config.moe.aux_per_segment


def test_moe_settings_without_experts_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    data = write_rows(tmp_path / "data.jsonl", conversations(4))
    with pytest.raises(ConfigError, match="no experts"):
        train(recipe(model, data, tmp_path / "run", moe={"exact": True}))


def test_what_the_model_returns_is_named() -> None:
    batch = collate(examples(), [0])
    _, aux = tiny()(batch.input_ids, batch.position_ids, batch.layout)
    assert EXPERT_COUNTS in aux
