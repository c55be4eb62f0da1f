"""How each fresh parameter is drawn: one rule an `Initialization`, by the parameter's name and shape."""

from __future__ import annotations

import math

import torch

from chatwright.models.config import DecoderConfig, Initialization

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_RESIDUAL_WRITERS = ("o_proj.weight", "fc2.weight", "down_proj.weight")


def initialize(name: str, parameter: torch.Tensor, config: DecoderConfig, generator: torch.Generator) -> None:
    """Fill one parameter in place: norms 1 (0 where the norm adds 1), biases 0, all else by `deviation`.

    `torch_linear` is uniform within ±1/√in, what `torch.nn.Linear` begins with: MiniMind's code of 2025 leaves it so,
    its tied embedding (the head's weight) included.

    Args:
        name: its full name in the model. parameter: any shape, on the host.
        generator: moved on by every matrix, so that the order of the calls belongs to the result.
    """
    with torch.no_grad():
        if parameter.ndim < 2:
            parameter.fill_(1.0 if name.endswith("norm.weight") and not config.norm_plus_one else 0.0)
            return
        if config.initialization is Initialization.TORCH_LINEAR:
            bound = 1.0 / math.sqrt(parameter.shape[-1])
            parameter.uniform_(-bound, bound, generator=generator)
            return
        parameter.normal_(0.0, deviation(name, parameter.shape, config), generator=generator)


def deviation(name: str, shape: torch.Size, config: DecoderConfig) -> float:
    """Standard deviation of a fresh matrix.

    `normal`: `initializer_range` for all (Hugging Face's `_init_weights`). `nanochat` (its `init_weights` of
    December 2025): 1 for the embedding; 0 for the output head and for what writes to the residual stream, so that the
    fresh model is the identity and its loss log V; for the others min(1, √(out / in)) / √in (Yang et al. 2023, "A
    spectral condition for feature learning").
    """
    if config.initialization is Initialization.NORMAL:
        return config.initializer_range
    if name == _EMBEDDING:
        return 1.0
    if name == _HEAD or name.endswith(_RESIDUAL_WRITERS):
        return 0.0
    fan_out, fan_in = shape[-2], shape[-1]
    return min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
