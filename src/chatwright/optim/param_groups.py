"""Which update, learning rate and weight decay each parameter gets: every trainable one is in exactly one group."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from chatwright.errors import ConfigError
from chatwright.optim.settings import OptimizerSettings, Rule

MUON, ADAMW = "muon", "adamw"
_IN_A_LAYER = re.compile(r"(^|\.)\d+\.")
_ADAPTER = re.compile(r"(^|\.)lora_|adapter")


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that share an update rule, a learning rate and a weight decay.

    Args:
        names: parameter names, in the model's order.
        parameters: the parameters themselves.
        learning_rate: absolute, before the schedule's multiplier.
        weight_decay: decoupled weight decay.
        optimizer: `muon`, or `adamw` (with 8-bit moments or without).
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float
    optimizer: str = ADAMW


def build_groups(
    named_params: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, width: int | None = None
) -> list[ParamGroup]:
    """Sort the trainable parameters into groups, Muon's last; frozen ones are left out.

    Args:
        named_params: such as `model.named_parameters()`; a parameter under two names counts once.
        settings: learning rate, weight decay and rules.
        width: the model's hidden size, which `reference_width` asks for.

    Raises:
        ConfigError: nothing is trainable, a rule decides for no parameter (with near names), Muon finds no matrix,
            or the width is needed and not known.
    """
    if settings.reference_width is not None and width is None:
        raise ConfigError(["optimizer.reference_width: this model's hidden size isn't known; remove it"])
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
    members: dict[tuple[str, float, float], list[str]] = {}
    for name, parameter in trainable.items():
        index = chosen[name]
        rule = None if index is None else settings.rules[index]
        optimizer = _optimizer_of(name, parameter, rule, settings)
        rates = _rates(parameter, rule, settings, optimizer, width)
        members.setdefault((optimizer, *rates), []).append(name)
    if settings.name == MUON and not any(key[0] == MUON for key in members):
        raise ConfigError(
            ["optimizer.name: muon finds no matrix of a layer that is trained (adapters are AdamW's); use adamw"]
        )
    return [
        ParamGroup(tuple(names), tuple(trainable[name] for name in names), learning_rate, weight_decay, optimizer)
        for (optimizer, learning_rate, weight_decay), names in sorted(members.items(), key=lambda item: item[0][0])
    ]


def rates_in_words(groups: Sequence[ParamGroup]) -> str:
    """Which parameters get which learning rate, before the schedule, in one line."""
    parts = []
    for group in groups:
        more = f" and {len(group.names) - 1} more" if len(group.names) > 1 else ""
        parts.append(f"{group.optimizer} {group.learning_rate:.3g} for {group.names[0]}{more}")
    return "; ".join(parts)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: a matrix, or a stack of them (experts), inside a numbered layer, and no adapter's.

    The embedding and the output layer stand outside of the layers; a matrix with one row or column is a vector.
    """
    if parameter.ndim not in (2, 3) or min(parameter.shape[-2:]) < 2:
        return False
    return _IN_A_LAYER.search(name) is not None and _ADAPTER.search(name) is None


def _optimizer_of(name: str, parameter: nn.Parameter, rule: Rule | None, settings: OptimizerSettings) -> str:
    if settings.name != MUON:
        return ADAMW
    if rule is None or rule.optimizer is None:
        return MUON if is_hidden_matrix(name, parameter) else ADAMW
    if rule.optimizer == MUON and parameter.ndim not in (2, 3):
        problem = f"optimizer.rules: {rule.pattern!r} gives {name} to Muon, which needs a matrix (it has "
        raise ConfigError([f"{problem}{parameter.ndim} dimensions)"])
    return rule.optimizer


def _first_match(name: str, rules: tuple[Rule, ...]) -> int | None:
    return next((index for index, rule in enumerate(rules) if fnmatchcase(name, rule.pattern)), None)


def _rates(
    parameter: nn.Parameter, rule: Rule | None, settings: OptimizerSettings, optimizer: str, width: int | None
) -> tuple[float, float]:
    """The learning rate, with all its factors but the schedule's, and the weight decay."""
    learning_rate = settings.learning_rate
    if optimizer == MUON and settings.muon is not None:
        learning_rate = settings.muon.learning_rate
    weight_decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
    if rule is not None:
        if rule.learning_rate is not None:
            learning_rate = rule.learning_rate
        if rule.multiplier is not None:
            learning_rate *= rule.multiplier
        if rule.weight_decay is not None:
            weight_decay = rule.weight_decay
    if optimizer == ADAMW and settings.reference_width is not None and width is not None:
        learning_rate *= (width / settings.reference_width) ** -0.5
    return learning_rate * settings.rate_factor, weight_decay


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
