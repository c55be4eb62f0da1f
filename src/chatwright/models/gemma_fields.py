"""How Gemma 2 and Gemma 3 spell what other families don't have: windows by layer, score scale, caps, two rotations."""

from __future__ import annotations

from typing import Any

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.rope_fields import read_rope, rope_to_hf

_SLIDING, _FULL = "sliding_attention", "full_attention"

GEMMA2_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}
"""What transformers assumes where a Gemma 2 config is silent."""

GEMMA3_DEFAULTS: dict[str, Any] = {
    **GEMMA2_DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
"""What transformers assumes where a Gemma 3 text config is silent."""


def _layer_types(raw: dict[str, Any]) -> list[str]:
    """The kind of each layer: listed, or every `sliding_window_pattern`-th one full."""
    layers, pattern = range(raw["num_hidden_layers"]), raw["sliding_window_pattern"]
    return raw["layer_types"] or [_SLIDING if (i + 1) % pattern else _FULL for i in layers]


def read_gemma2(raw: dict[str, Any]) -> dict[str, Any]:
    """`DecoderConfig` fields of a completed Gemma 2 config.

    Raises:
        ModelError: for a model that attends in both directions.
    """
    if raw["use_bidirectional_attention"]:
        raise ModelError(
            "this Gemma model attends in both directions (use_bidirectional_attention: true)",
            place="config.json",
            hint="use a causal language model; bidirectional ones are encoders",
        )
    window, bias = raw["sliding_window"], bool(raw["attention_bias"])
    return {
        "qkv_bias": bias,
        "o_bias": bias,
        "layer_windows": tuple(window if kind == _SLIDING else None for kind in _layer_types(raw)),
        "attention_scale": raw["query_pre_attn_scalar"] ** -0.5,
        "attention_soft_cap": raw["attn_logit_softcapping"],
        "final_soft_cap": raw["final_logit_softcapping"],
        "embed_scale": raw["hidden_size"] ** 0.5,
    }


def read_gemma3(raw: dict[str, Any]) -> dict[str, Any]:
    """`DecoderConfig` fields of a completed Gemma 3 text config: its windowed layers rotate by a base of their own.

    `attn_logit_softcapping` is not read: Gemma 3 has none, and transformers ignores the field too.

    Raises:
        ModelError: for a model that attends in both directions, or an unknown rotary embedding.
    """
    types, positions = _layer_types(raw), raw["max_position_embeddings"]
    nested = raw.get("rope_parameters") or {}
    full = {"rope_theta": raw.get("rope_theta") or 1_000_000.0, **(raw.get("rope_scaling") or {})}
    sliding = {"rope_theta": raw.get("rope_local_base_freq") or 10_000.0}
    return {
        **read_gemma2(raw),
        "attention_soft_cap": None,
        "ropes": (
            read_rope({**full, **(nested.get(_FULL) or {})}, positions),
            read_rope({**sliding, **(nested.get(_SLIDING) or {})}, positions),
        ),
        "layer_ropes": tuple(1 if kind == _SLIDING else 0 for kind in types),
    }


def write_gemma2(config: DecoderConfig) -> dict[str, Any]:
    """The way back of `read_gemma2`."""
    windows = [window for window in config.layer_windows if window is not None]
    return {
        "attention_bias": config.qkv_bias,
        "layer_types": [_FULL if window is None else _SLIDING for window in config.layer_windows],
        "sliding_window": windows[0] if windows else None,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
    }


def write_gemma3(config: DecoderConfig) -> dict[str, Any]:
    """The way back of `read_gemma3`, in the nested layout of transformers 5 and the flat one of 4."""
    full, sliding = (rope_to_hf(rope) for rope in config.ropes)
    scaling = {key: value for key, value in full.items() if key != "rope_theta"}
    return {
        **write_gemma2(config),
        "layer_types": [_SLIDING if index else _FULL for index in config.layer_ropes],
        "rope_theta": full["rope_theta"],
        "rope_local_base_freq": sliding["rope_theta"],
        "rope_scaling": None if full["rope_type"] == "default" else scaling,
        "rope_parameters": {_FULL: full, _SLIDING: sliding},
    }
