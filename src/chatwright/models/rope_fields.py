"""Rotary fields of a Hugging Face config ↔ `RopeConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatwright.errors import ModelError
from chatwright.models.config import RopeConfig, RopeKind

# DecoderConfig field → Hugging Face key, for the kinds that read it.
_FIELDS_OF_KIND: dict[RopeKind, dict[str, str]] = {
    RopeKind.DEFAULT: {},
    RopeKind.LINEAR: {"factor": "factor"},
    RopeKind.DYNAMIC: {"factor": "factor"},
    RopeKind.LLAMA3: {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    RopeKind.YARN: {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "truncate",
    },
}
_REQUIRED = {"factor", "low_freq_factor", "high_freq_factor"}


def read_rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    """Read one rotary dict: `rope_theta`, `rope_type` (or `type`) and the fields of that type.

    Args:
        max_positions: stands in for `original_max_position_embeddings` where the dict leaves it out.

    Raises:
        ModelError: naming an unknown type, a partial rotation or a missing field.
    """
    name = str(raw.get("rope_type") or raw.get("type") or "default")
    if name not in {kind.value for kind in RopeKind}:
        known = ", ".join(kind.value for kind in RopeKind)
        raise ModelError(f"rotary embedding {name!r} is unknown; known: {known}", place="config.json rope_parameters")
    if (raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(
            f"partial rotation (partial_rotary_factor {raw['partial_rotary_factor']}) is unknown to our decoder",
            place="config.json rope_parameters",
            hint="`chatwright.models.foreign.ForeignLM` runs it through transformers",
        )
    kind = RopeKind(name)
    fields: dict[str, Any] = {"kind": kind, "theta": float(raw["rope_theta"])}
    for ours, theirs in _FIELDS_OF_KIND[kind].items():
        value = raw.get(theirs)
        if value is not None:
            fields[ours] = value
        elif ours == "original_max_positions":
            fields[ours] = max_positions
        elif ours in _REQUIRED:
            raise ModelError(f"{name} rotary embedding without {theirs!r}", place="config.json rope_parameters")
    return RopeConfig(**fields)


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The `rope_parameters` dict of one rotary embedding."""
    written: dict[str, Any] = {"rope_type": rope.kind.value, "rope_theta": rope.theta}
    for ours, theirs in _FIELDS_OF_KIND[rope.kind].items():
        value = getattr(rope, ours)
        if value is not None:
            written[theirs] = value
    return written
