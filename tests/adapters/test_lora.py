"""Which layers are adapted, what is trained, and that merging changes nothing but rounding."""

from __future__ import annotations

import pytest
import torch
from adapter_models import LINEAR_ENDINGS, our_logits, our_model, probe_ids, shake_adapter
from torch import nn

from chatwright.adapters.lora import adapted_layers, attach_lora, find_targets, linear_layers, merge_lora
from chatwright.adapters.lora_linear import LoraLinear
from chatwright.adapters.settings import LoraSettings
from chatwright.adapters.token_rows import attach_token_rows
from chatwright.errors import ConfigError, ModelError
from chatwright.models.output_head import OutputHead
from chatwright.settings import build


def test_all_linear_reaches_every_layer_and_shape_but_the_head() -> None:
    model = our_model(tied=False)
    names = attach_lora(model, LoraSettings(rank=4), seed=0)
    assert names == [
        f"model.layers.{i}.{'self_attn' if end in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{end}"
        for i in range(2)
        for end in LINEAR_ENDINGS
    ]
    shapes = {
        name.rpartition(".")[2]: (tuple(layer.lora_A.shape), tuple(layer.lora_B.shape))
        for name, layer in adapted_layers(model).items()
    }
    assert shapes["k_proj"] == ((4, 32), (16, 4))  # grouped key/value heads: not square
    assert shapes["down_proj"] == ((4, 56), (32, 4))
    assert type(model.lm_head) is nn.Linear


def test_only_the_adapter_is_trained_and_base_names_stay() -> None:
    model = our_model()
    before = dict(model.named_parameters())
    attach_lora(model, LoraSettings(rank=4), seed=0)
    after = dict(model.named_parameters())
    assert set(before) <= set(after)
    assert all(after[name] is before[name] for name in before)
    assert {name.rpartition(".")[2] for name, p in after.items() if p.requires_grad} == {"lora_A", "lora_B"}


def test_a_fresh_adapter_changes_nothing_and_then_gets_gradients() -> None:
    model, ids = our_model(), probe_ids()
    before = our_logits(model, ids)
    attach_lora(model, LoraSettings(rank=4), seed=0)
    assert torch.equal(our_logits(model, ids), before)
    shake_adapter(model)
    our_logits(model, ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (("q_proj",), 2),
        (("q_proj", "v_proj"), 4),
        (("mlp.*",), 6),
        (("model.layers.1.*",), 7),
        (("*.self_attn.[kv]_proj",), 4),
        (("all-linear", "q_proj"), 14),
    ],
)
def test_targets_by_ending_and_glob(targets: tuple[str, ...], count: int) -> None:
    assert len(find_targets(our_model(), targets)) == count


def test_a_target_that_matches_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'query' matches no linear layer; there are: q_proj.*down_proj"):
        attach_lora(our_model(), LoraSettings(targets=("q_proj", "query")), seed=0)


def test_the_output_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="output head"):
        attach_lora(our_model(tied=False), LoraSettings(targets=("lm_head",)), seed=0)


def test_a_second_adapter_is_refused() -> None:
    model = our_model()
    attach_lora(model, LoraSettings(), seed=0)
    with pytest.raises(ModelError, match="already"):
        attach_lora(model, LoraSettings(), seed=0)


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 32 / 4), ("rslora", 32 / 2), ("raw", 32.0)])
def test_scalings(scaling: str, scale: float) -> None:
    model = our_model()
    settings = LoraSettings(rank=4, alpha=32, scaling=scaling, targets=("q_proj",))  # type: ignore[arg-type]
    name = attach_lora(model, settings, seed=0)[0]
    layer = adapted_layers(model)[name]
    assert layer.scale == scale
    shake_adapter(model)
    x = torch.randn(3, 32, dtype=torch.float64)
    expected = x @ layer.weight.T + scale * (x @ layer.lora_A.T @ layer.lora_B.T)
    assert torch.allclose(layer(x), expected, rtol=1e-12)


def test_each_layer_starts_from_its_own_seed_whatever_else_is_adapted() -> None:
    few, all_ = our_model(), our_model()
    names = attach_lora(few, LoraSettings(rank=4, targets=("v_proj",)), seed=3)
    attach_lora(all_, LoraSettings(rank=4), seed=3)
    one, other = adapted_layers(few)[names[0]], adapted_layers(all_)[names[0]]
    assert torch.equal(one.lora_A, other.lora_A)
    assert not torch.equal(one.lora_A, adapted_layers(few)[names[1]].lora_A)
    assert one.lora_A.abs().max() <= 32**-0.5 and torch.count_nonzero(one.lora_B) == 0
    different = our_model()
    attach_lora(different, LoraSettings(rank=4), seed=4)
    assert not torch.equal(adapted_layers(different)[names[0]].lora_A, one.lora_A)


def test_dropout_repeats_from_the_seed_and_rests_in_evaluation() -> None:
    base = nn.Linear(16, 8)
    layer = LoraLinear(base, 4, 8.0, dropout=0.5)
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 16)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_equals_unmerged(dtype: torch.dtype, bound: float, tied: bool) -> None:
    model, ids = our_model(tied=tied, dtype=dtype), probe_ids()
    attach_lora(model, LoraSettings(rank=4, alpha=1, scaling="rslora"), seed=0)
    attach_token_rows(model, [3, 7], seed=0)
    shake_adapter(model)
    with torch.no_grad():
        before = our_logits(model, ids).float()
    report = merge_lora(model, probe=lambda: our_logits(model, ids))
    with torch.no_grad():
        after = our_logits(model, ids).float()
    assert (after - before).norm() <= bound * before.norm()
    assert len(report.layers) == 14 and report.num_token_rows == (2 if tied else 4)
    assert report.output_error <= bound and report.lost_update <= bound
    assert report.logit_error == pytest.approx((after - before).abs().max().item())
    assert report.greedy_agreement is not None and report.greedy_agreement >= (1.0 if bound < 1e-3 else 0.7)
    assert "greedy agreement" in report.summary()
    assert not adapted_layers(model) and len(linear_layers(model)) == 14
    assert all(type(m) is not LoraLinear for m in model.modules())
    assert set(model.state_dict()) == set(our_model(tied=tied).state_dict())


def test_a_merge_reports_an_update_too_small_for_the_weights() -> None:
    """bf16 weights of 1 can't hold an update of 1/1000: all of it is lost, and the report says so."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False)).to(torch.bfloat16)
    nn.init.ones_(model[0].weight)
    attach_lora(model, LoraSettings(rank=1, alpha=1, targets=("0",)), seed=0)
    layer = adapted_layers(model)["0"]
    with torch.no_grad():
        layer.lora_A.fill_(1.0)
        layer.lora_B.fill_(0.001)
    assert merge_lora(model).lost_update == pytest.approx(1.0)


def test_merging_nothing_and_merging_quantized_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merge_lora(our_model())
    model = our_model()
    name = attach_lora(model, LoraSettings(), seed=0)[0]
    layer = adapted_layers(model)[name]
    layer.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="quantized"):
        merge_lora(model)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"alpha": -1}, {"dropout": 1.0}, {"targets": []}, {"scaling": "half"}])
def test_impossible_settings_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        build(LoraSettings, bad, "recipe")


def test_a_head_by_another_name_is_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.embed_out = nn.Linear(4, 4), nn.Linear(4, 9)

        def output_head(self) -> OutputHead:
            return OutputHead(self.embed_out.weight)

    assert attach_lora(Other(), LoraSettings(), seed=0) == ["dense"]
