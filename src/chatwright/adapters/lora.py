"""Attach low-rank adapters by name pattern, and merge them back with a report of the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from chatwright.adapters.lora_linear import LoraLinear
from chatwright.adapters.quantized import Nf4Linear, Nf4LoraLinear, refuse_merging
from chatwright.adapters.settings import ALL_LINEAR, LoraSettings
from chatwright.adapters.token_rows import merge_token_rows
from chatwright.errors import ConfigError, ModelError
from chatwright.runtime import seed_for

HEAD_NAME = "lm_head"
PROBE_ROWS = 32


def attach_lora(model: nn.Module, settings: LoraSettings, seed: int) -> list[str]:
    """Freeze the model and put an adapter on every layer that a target names.

    Args:
        model: any module with `nn.Linear` layers.
        settings: rank, alpha, targets.
        seed: each layer's A is drawn from (seed, layer name), whatever other layers are adapted.

    Returns:
        The names of the adapted layers, in the model's order: print them.

    Raises:
        ConfigError: a target matches nothing (lists what there is), or names the output head.
        ModelError: the model has an adapter already.
    """
    if adapted_layers(model):
        raise ModelError("the model has an adapter already", hint="merge it first, or train that one on")
    names = find_targets(model, settings.targets)
    model.requires_grad_(False)
    alpha = settings.alpha * settings.rank if settings.scaling == "raw" else settings.alpha
    for name in names:
        layer = adapt_layer(model, name, settings.rank, alpha, settings.scaling == "rslora", settings.dropout)
        layer.init_adapter(seed_for(seed, "lora", name))
    return names


def adapt_layer(
    model: nn.Module, name: str, rank: int, alpha: float, rslora: bool = False, dropout: float = 0.0
) -> LoraLinear:
    """Replace one linear layer by its adapted form (A and B zero)."""
    base = model.get_submodule(name)
    assert isinstance(base, nn.Linear)
    kind = Nf4LoraLinear if isinstance(base, Nf4Linear) else LoraLinear
    layer = kind(base, rank, alpha, rslora=rslora, dropout=dropout)  # type: ignore[arg-type]
    _replace(model, name, layer)
    return layer


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers that can be adapted: every `nn.Linear` but the output head."""
    output_head = getattr(model, "output_head", None)
    head_weight = output_head().weight if callable(output_head) else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] != HEAD_NAME
        and module.weight is not head_weight  # a head by another name, such as GPT-NeoX's embed_out
    ]


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def require_learnable(model: nn.Module) -> None:
    """Refuse to train on an adapter that can't learn.

    Raises:
        ModelError: in some layer A and B are both zero, so that neither ever gets a gradient.
    """
    dead = [name for name, layer in adapted_layers(model).items() if not layer.learnable]
    if dead:
        raise ModelError(
            f"the adapter can't be trained on: A and B are both zero in {len(dead)} layers, such as {dead[0]}, "
            "where neither would ever get a gradient",
            hint="begin a new adapter on the base model",
        )


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The linear layers that the targets name, in the model's order.

    Raises:
        ConfigError: for every target that matches nothing, with the endings that exist.
    """
    layers = linear_layers(model)
    chosen: set[str] = set()
    problems = []
    for target in targets:
        found = [name for name in layers if _matches(name, target)]
        chosen.update(found)
        if found:
            continue
        if _matches(HEAD_NAME, target):
            problems.append(f"adapter.targets: {target!r} names the output head, which can't carry an adapter")
        else:
            endings = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers)) or "none"
            example = f", such as {layers[0]}" if layers else ""
            problems.append(f"adapter.targets: {target!r} matches no linear layer; there are: {endings}{example}")
    if problems:
        raise ConfigError(problems)
    return [name for name in layers if name in chosen]


def _matches(name: str, target: str) -> bool:
    return target == ALL_LINEAR or fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging changed.

    Args:
        layers: names of the merged layers. num_token_rows: trained rows that were written into the embedding.
        output_error: largest difference of a layer's outputs on a random probe ÷ the largest output of that layer.
        worst_layer: the layer with it.
        lost_update: largest share of a layer's update that rounding to the weight's dtype lost (norms).
        logit_error: largest difference of the probe's logits, absolute; None without a probe.
        greedy_agreement: share of the probe's rows whose most likely token stayed; None without a probe.
    """

    layers: tuple[str, ...]
    num_token_rows: int
    output_error: float
    worst_layer: str | None
    lost_update: float
    logit_error: float | None = None
    greedy_agreement: float | None = None

    def summary(self) -> str:
        """One line for people."""
        text = f"merged {len(self.layers)} layers and {self.num_token_rows} token rows"
        text += f"; largest output error {self.output_error:.2e}"
        text += f" ({self.worst_layer}), lost to rounding {self.lost_update:.2%}" if self.worst_layer else ""
        if self.logit_error is not None and self.greedy_agreement is not None:
            text += f"; largest logit error {self.logit_error:.2e}, greedy agreement {self.greedy_agreement:.2%}"
        return text


@torch.no_grad()
def merge_lora(model: nn.Module, probe: Callable[[], torch.Tensor] | None = None) -> MergeReport:
    """Add every adapter's update to its weight and every trained token row to its embedding; plain layers stay.

    Args:
        model: a model with adapters; changed in place, all parameters stay frozen.
        probe: returns logits `[N, V]` of the model on some text; called before and after.

    Raises:
        ModelError: the model has no adapter, or a weight is quantized.
    """
    layers = adapted_layers(model)
    quantized = [name for name, layer in layers.items() if not layer.weight.is_floating_point()]
    if quantized:
        raise refuse_merging(quantized[0])
    was_training = model.training
    model.eval()
    before = probe().float() if probe else None
    worst, worst_layer, lost = 0.0, None, 0.0
    for name, layer in layers.items():
        plain, layer_lost = layer.merged()
        error = _output_error(layer, plain)
        if worst_layer is None or error > worst:
            worst, worst_layer = error, name
        lost = max(lost, layer_lost)
        _replace(model, name, plain)
    num_rows = merge_token_rows(model)
    if not layers and not num_rows:
        raise ModelError("the model has no adapter to merge")
    logit_error = agreement = None
    if probe and before is not None:
        after = probe().float()
        logit_error = (after - before).abs().max().item()
        agreement = (after.argmax(-1) == before.argmax(-1)).float().mean().item()
    model.train(was_training)
    return MergeReport(tuple(layers), num_rows, worst, worst_layer, lost, logit_error, agreement)


def _output_error(adapted: LoraLinear, plain: nn.Linear) -> float:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBE_ROWS, adapted.in_features, generator=generator).to(adapted.weight)
    expected = adapted(probe).float()
    largest = expected.abs().max().item()
    return (plain(probe).float() - expected).abs().max().item() / largest if largest > 0 else 0.0
