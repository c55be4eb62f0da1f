"""Joined projections: the same hidden states, the same parameters, and no trace of them once something changes."""

from __future__ import annotations

import copy

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed
from torch import nn

from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model


def hidden(model: CausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model(*packed([9, 4]))[0].clone()


def ways(model: CausalLM) -> set[bool]:
    """Which of a model's layers compute joined products."""
    layers = [layer for part in model.model.layers for layer in (part.self_attn, part.mlp)]
    attention, feed_forward = layers[0], layers[1]
    return {
        attention.joined is not None and attention.joined.holds((attention.q_proj, attention.k_proj, attention.v_proj)),
        feed_forward.joined is not None and feed_forward.joined.holds((feed_forward.gate_proj, feed_forward.up_proj)),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_joined_models_compute_the_same(name: str) -> None:
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).double()
    before, state = hidden(model), {key: value.clone() for key, value in model.state_dict().items()}
    model.join_projections()
    assert ways(model) == {True}
    assert distance(hidden(model), before) < 1e-12
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        key: value.tolist() for key, value in state.items()
    }
    assert set(dict(model.named_parameters())) == set(dict(copy.deepcopy(model).named_parameters()))


def test_changed_in_place_they_follow_and_replaced_they_part() -> None:
    model = init_model(config_from_hf(VARIANTS["qwen2"]), seed=0).double()
    model.join_projections()
    other = init_model(config_from_hf(VARIANTS["qwen2"]), seed=1).double()
    model.load_state_dict(other.state_dict())
    assert ways(model) == {True} and distance(hidden(model), hidden(other)) < 1e-12
    model.load_state_dict({key: 2 * value for key, value in other.state_dict().items()}, assign=True)
    other.load_state_dict({key: 2 * value for key, value in other.state_dict().items()})
    assert ways(model) == {False} and distance(hidden(model), hidden(other)) < 1e-12
    model.join_projections()
    assert ways(model) == {True}
    assert ways(copy.deepcopy(model)) == {False} == ways(copy.deepcopy(model).float())


class Doubled(nn.Linear):
    """Stands for an adapted layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_adapted_layers_stay_apart() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    model.join_projections()
    attention, before = model.model.layers[0].self_attn, hidden(model)
    adapted = Doubled(attention.v_proj.in_features, attention.v_proj.out_features, bias=False)
    adapted.weight = attention.v_proj.weight
    attention.v_proj = adapted
    assert distance(hidden(model), before) > 1e-3
    after = hidden(model)
    model.join_projections()
    assert attention.joined is None and torch.equal(hidden(model), after)


def test_training_a_joined_model_goes_through_its_parameters() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    other = copy.deepcopy(model)
    model.join_projections()
    for one in (model, other):
        one(*packed([9, 4]))[0].square().sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
