"""Every trainable parameter in exactly one group, and no rule in vain."""

from __future__ import annotations

import pytest
from torch import nn

from chatwright.errors import ConfigError
from chatwright.optim.param_groups import build_groups
from chatwright.optim.settings import OptimizerSettings, Rule
from chatwright.settings import build


def small_model() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(7, 4)
    model.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    model.norm = nn.LayerNorm(4)
    return model


def test_each_parameter_is_in_exactly_one_group() -> None:
    model = small_model()
    settings = OptimizerSettings(
        learning_rate=1e-3,
        weight_decay=0.1,
        rules=(Rule(pattern="layers.0.*", multiplier=0.5), Rule(pattern="layers.*", learning_rate=3e-3)),
    )
    groups = build_groups(model.named_parameters(), settings)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    rates = {name: (g.learning_rate, g.weight_decay) for g in groups for name in g.names}
    assert rates["layers.0.weight"] == (5e-4, 0.1)
    assert rates["layers.0.bias"] == (5e-4, 0.0)
    assert rates["layers.2.weight"] == (3e-3, 0.1)
    assert rates["embed.weight"] == (1e-3, 0.1)
    assert rates["norm.weight"] == (1e-3, 0.0)


def test_a_rule_can_decay_vectors() -> None:
    settings = OptimizerSettings(weight_decay=0.1, rules=(Rule(pattern="norm.*", weight_decay=0.2),))
    groups = build_groups(small_model().named_parameters(), settings)
    assert {g.weight_decay for g in groups if "norm.weight" in g.names} == {0.2}


def test_frozen_and_tied_parameters_count_right() -> None:
    model = small_model()
    model.embed.weight.requires_grad_(False)
    model.again = model.norm
    named = [*model.named_parameters(), ("again.weight", model.norm.weight)]
    names = [name for g in build_groups(named, OptimizerSettings()) for name in g.names]
    assert "embed.weight" not in names and "again.weight" not in names and names.count("norm.weight") == 1


def test_a_rule_that_matches_nothing_names_near_parameters() -> None:
    settings = OptimizerSettings(rules=(Rule(pattern="layer.0.weight", multiplier=2),))
    with pytest.raises(ConfigError, match=r"rules\.0\.pattern.*near names: .*layers\.0\.weight"):
        build_groups(small_model().named_parameters(), settings)


def test_a_shadowed_rule_is_an_error() -> None:
    settings = OptimizerSettings(rules=(Rule(pattern="*", multiplier=2), Rule(pattern="norm.*", multiplier=3)))
    with pytest.raises(ConfigError, match="earlier rules already decide"):
        build_groups(small_model().named_parameters(), settings)


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_groups(small_model().requires_grad_(False).named_parameters(), OptimizerSettings())


@pytest.mark.parametrize(
    ("rule", "says"),
    [({"multiplier": 1, "learning_rate": 1}, "not both"), ({}, "changes nothing"), ({"multiplier": -1}, "rules.0")],
)
def test_impossible_rules_are_named(rule: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(OptimizerSettings, {"rules": [{"pattern": "*", **rule}]}, "recipe")


def test_betas_are_checked() -> None:
    with pytest.raises(ConfigError, match="betas"):
        build(OptimizerSettings, {"betas": [0.9, 1.0]}, "recipe")
