"""Which learning rate and weight decay each parameter gets: every trainable parameter is in exactly one group."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from chatwright.errors import ConfigError
from chatwright.optim.settings import OptimizerSettings, Rule


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that share a learning rate and a weight decay.

    Args:
        names: parameter names, in the model's order.
        parameters: the parameters themselves.
        learning_rate: absolute, before the schedule's multiplier.
        weight_decay: decoupled weight decay.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float


def build_groups(named_params: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> list[ParamGroup]:
    """Sort the trainable parameters into groups; frozen ones are left out.

    Args:
        named_params: such as `model.named_parameters()`; a parameter under two names counts once.
        settings: learning rate, weight decay and rules.

    Raises:
        ConfigError: nothing is trainable, or a rule decides for no parameter (with near names).
    """
    trainable: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in named_params:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            trainable[name] = parameter
    if not trainable:
        raise ConfigError(["optimizer: the model has no trainable parameter"])
    chosen = {name: _first_match(name, settings.rules) for name in trainable}
    _require_rules_used(settings.rules, chosen)
    members: dict[tuple[float, float], list[str]] = {}
    for name, parameter in trainable.items():
        index = chosen[name]
        rule = None if index is None else settings.rules[index]
        members.setdefault(_rates(parameter, rule, settings), []).append(name)
    return [
        ParamGroup(tuple(names), tuple(trainable[name] for name in names), learning_rate, weight_decay)
        for (learning_rate, weight_decay), names in members.items()
    ]


def _first_match(name: str, rules: tuple[Rule, ...]) -> int | None:
    return next((index for index, rule in enumerate(rules) if fnmatchcase(name, rule.pattern)), None)


def _rates(parameter: nn.Parameter, rule: Rule | None, settings: OptimizerSettings) -> tuple[float, float]:
    learning_rate = settings.learning_rate
    weight_decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
    if rule is not None:
        if rule.learning_rate is not None:
            learning_rate = rule.learning_rate
        if rule.multiplier is not None:
            learning_rate *= rule.multiplier
        if rule.weight_decay is not None:
            weight_decay = rule.weight_decay
    return learning_rate, weight_decay


def _require_rules_used(rules: tuple[Rule, ...], chosen: dict[str, int | None]) -> None:
    problems = []
    for index, rule in enumerate(rules):
        if index in chosen.values():
            continue
        taken = [name for name in chosen if fnmatchcase(name, rule.pattern)]
        if taken:
            reason = f"earlier rules already decide for all it matches, such as {taken[0]}"
        else:
            near = difflib.get_close_matches(rule.pattern, chosen, n=3, cutoff=0.3) or list(chosen)[:3]
            reason = f"matches no trainable parameter; near names: {', '.join(near)}"
        problems.append(f"optimizer.rules.{index}.pattern: {rule.pattern!r} {reason}")
    if problems:
        raise ConfigError(problems)
