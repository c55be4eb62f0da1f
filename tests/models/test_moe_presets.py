"""MiniMind's mixture of experts by name, at its published size."""

from __future__ import annotations

import pytest

from chatwright.errors import ModelError
from chatwright.models.config import active_parameters, num_parameters
from chatwright.models.presets import preset_config
from chatwright.models.weights import init_model


def test_minimind2_moe_has_its_published_size() -> None:
    """145 M, and every token goes through 3 of a layer's 5 feed-forward blocks."""
    config = preset_config("minimind-moe", 6400, {})
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (8, 640, 1728)
    assert (config.moe.num_experts, config.moe.experts_per_token, config.moe.num_shared) == (4, 2, 1)
    assert (config.moe.aux_loss_weight, config.moe.aux_per_segment, config.moe.norm_weights) == (0.1, True, True)
    assert num_parameters(config) == 145_029_760
    assert active_parameters(config) == 145_029_760 - 8 * 2 * 3 * 640 * 1728


def test_a_small_preset_is_a_model_with_that_many_parameters() -> None:
    options = {"hidden_size": 32, "num_layers": 2, "num_experts": 5, "experts_per_token": 3, "num_shared_experts": 2}
    config = preset_config("minimind-moe", 100, options)
    model = init_model(config, seed=0)
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert len(model.model.layers[1].mlp.experts) == 5 and len(model.model.layers[1].mlp.shared_experts) == 2


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(ModelError, match="5 of 4"):
        preset_config("minimind-moe", 100, {"experts_per_token": 5})
