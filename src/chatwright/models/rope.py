"""Rotary position embeddings: the frequencies of each kind, and the cos/sin tables of a batch.

T flat tokens · H heads · D head_dim. Halves are rotated against each other (Hugging Face's layout):
out[:D/2] = x1 · cos − x2 · sin and out[D/2:] = x2 · cos + x1 · sin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from chatwright.errors import ModelError
from chatwright.models.config import RopeConfig, RopeKind


class Rope:
    """One rotary embedding: makes the cos and sin tables of a batch's positions.

    Not a module, for its frequencies are derived, stay float32 whatever the model is cast to, and are never saved.
    """

    def __init__(self, config: RopeConfig, head_dim: int, max_positions: int) -> None:
        self.config, self.head_dim, self.max_positions = config, head_dim, max_positions
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin `[T, D/2]` in `dtype`, computed in float32 as transformers does, attention factor included."""
        device = position_ids.device
        if device not in self._frequencies:
            self._frequencies[device] = frequencies(self.config, self.head_dim).to(device)
        angles = position_ids[:, None].float() * self._frequencies[device]  # [T, D/2]
        factor = attention_factor(self.config)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)

    def check_length(self, tokens: int) -> None:
        """Refuse segments beyond what a `dynamic` embedding holds without changing the frequencies of all tokens.

        Raises:
            ModelError: with both lengths.
        """
        if self.config.kind is RopeKind.DYNAMIC and tokens > self.max_positions:
            raise ModelError(
                f"a segment of {tokens} tokens is longer than the {self.max_positions} that this model's dynamic "
                "rotary embedding holds; beyond it the frequencies would depend on the other tokens of the batch",
                hint=f"cut segments to {self.max_positions} tokens, or give the model another rope_type such as yarn",
            )


def frequencies(config: RopeConfig, head_dim: int) -> torch.Tensor:
    """float32 `[D/2]` on the host: radians a position for each pair of dimensions."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    scaled = _SCALINGS[config.kind](1.0 / config.theta**exponents, config, head_dim)
    return -scaled if config.reverse else scaled


def attention_factor(config: RopeConfig) -> float:
    """What cos and sin are multiplied by: 1 but for yarn (Peng et al. 2023, section 3.4; DeepSeek's mscale)."""
    if config.kind is not RopeKind.YARN:
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _unscaled(base: torch.Tensor, config: RopeConfig, head_dim: int) -> torch.Tensor:
    return base


def _linear(base: torch.Tensor, config: RopeConfig, head_dim: int) -> torch.Tensor:
    """Position interpolation (Chen et al. 2023)."""
    return base / config.factor


def _llama3(base: torch.Tensor, config: RopeConfig, head_dim: int) -> torch.Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended (Meta's reference code)."""
    assert config.original_max_positions is not None
    turns = config.original_max_positions * base / (2 * math.pi)  # rotations within the original context
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * base / config.factor + blend * base


def _yarn(base: torch.Tensor, config: RopeConfig, head_dim: int) -> torch.Tensor:
    """YaRN, "NTK by parts" (Peng et al. 2023, section 3.2): a ramp over dimensions between two rotation counts."""
    assert config.original_max_positions is not None

    def dimension(rotations: float) -> float:
        wave = config.original_max_positions / (rotations * 2 * math.pi)  # type: ignore[operator]
        return head_dim * math.log(wave) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0.0, 1.0)
    return base / config.factor * ramp + base * (1 - ramp)


_SCALINGS: dict[RopeKind, Callable[[torch.Tensor, RopeConfig, int], torch.Tensor]] = {
    RopeKind.DEFAULT: _unscaled,
    RopeKind.LINEAR: _linear,
    RopeKind.DYNAMIC: _unscaled,
    RopeKind.LLAMA3: _llama3,
    RopeKind.YARN: _yarn,
}
