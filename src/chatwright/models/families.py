"""Hugging Face configs ↔ `DecoderConfig`: one registry entry a family.

Reads both layouts: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5, for Gemma 3
one per layer type); writes both, so that older tools read what we save. Dropout fields are not carried: training here
is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatwright.errors import ModelError
from chatwright.models.config import Activation, DecoderConfig, Initialization
from chatwright.models.gemma_fields import (
    GEMMA2_DEFAULTS,
    GEMMA3_DEFAULTS,
    read_gemma2,
    read_gemma3,
    write_gemma2,
    write_gemma3,
)
from chatwright.models.moe_fields import (
    MINIMIND_DEFAULTS,
    MIXTRAL_DEFAULTS,
    QWEN3_MOE_DEFAULTS,
    read_minimind,
    read_mixtral,
    read_qwen3_moe,
    write_minimind,
    write_mixtral,
    write_qwen3_moe,
)
from chatwright.models.rope_fields import read_rope, rope_to_hf

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """How one `model_type` spells its config.

    Args:
        architecture: the class name written to `architectures`.
        defaults: what transformers assumes for a field that config.json leaves out.
        fixed: `DecoderConfig` fields that every model of the family shares.
        read_extra: fields that need a formula, from the completed Hugging Face dict.
        write_extra: their way back.
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read_extra: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    write_extra: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}


_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _read_biases(raw: dict[str, Any]) -> dict[str, Any]:
    bias = bool(raw["attention_bias"])
    return {"qkv_bias": bias, "o_bias": bias}


def _read_llama(raw: dict[str, Any]) -> dict[str, Any]:
    return {**_read_biases(raw), "mlp_bias": bool(raw["mlp_bias"])}


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _read_mistral(raw: dict[str, Any]) -> dict[str, Any]:
    return {"layer_windows": (raw["sliding_window"],) * raw["num_hidden_layers"]}


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
    return {"sliding_window": config.layer_windows[0] if config.layer_windows else None}


def _qwen_windows(raw: dict[str, Any]) -> tuple[int | None, ...]:
    """Qwen's windows: off unless `use_sliding_window`; by `layer_types`, else from layer `max_window_layers` on."""
    layers = range(raw["num_hidden_layers"])
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    types = raw["layer_types"] or [_SLIDING if i >= raw["max_window_layers"] else _FULL for i in layers]
    return tuple(window if types[i] == _SLIDING else None for i in layers)


def _write_qwen_windows(config: DecoderConfig) -> dict[str, Any]:
    windows = [window for window in config.layer_windows if window is not None]
    written = {"layer_types": [_FULL if window is None else _SLIDING for window in config.layer_windows]}
    return {**written, "use_sliding_window": bool(windows), "sliding_window": windows[0] if windows else None}


def _read_qwen2(raw: dict[str, Any]) -> dict[str, Any]:
    return {"layer_windows": _qwen_windows(raw)}


def _read_qwen3(raw: dict[str, Any]) -> dict[str, Any]:
    return {**_read_biases(raw), "layer_windows": _qwen_windows(raw)}


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    return {**_write_qwen_windows(config), "attention_bias": config.qkv_bias}


def _read_nanochat(raw: dict[str, Any]) -> dict[str, Any]:
    ropes = tuple(replace(rope, reverse=True) for rope in _read_rope_and_windows(raw)["ropes"])
    return {**_read_biases(raw), "ropes": ropes, "final_soft_cap": raw["final_logit_softcapping"]}


def _write_nanochat(config: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "final_logit_softcapping": config.final_soft_cap}


_QWEN_DEFAULTS = {
    **_COMMON,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

_NANOCHAT_DEFAULTS = {
    **_COMMON,
    "vocab_size": 50304,
    "hidden_size": 768,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "max_position_embeddings": 2048,
    "hidden_act": "relu2",
    "attention_bias": False,
    "final_logit_softcapping": 15.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {**_COMMON, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        read_extra=_read_llama,
        write_extra=_write_llama,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096},
        read_extra=_read_mistral,
        write_extra=_write_mistral,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32},
        fixed={"qkv_bias": True},
        read_extra=_read_qwen2,
        write_extra=_write_qwen_windows,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
        fixed={"qk_norm": True},
        read_extra=_read_qwen3,
        write_extra=_write_qwen3,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {**_COMMON, **GEMMA2_DEFAULTS},
        fixed={"norm_plus_one": True, "sandwich_norms": True},
        read_extra=read_gemma2,
        write_extra=write_gemma2,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {**_COMMON, **GEMMA3_DEFAULTS},
        fixed={"qk_norm": True, "norm_plus_one": True, "sandwich_norms": True},
        read_extra=read_gemma3,
        write_extra=write_gemma3,
    ),
    "nanochat": Family(
        "NanoChatForCausalLM",
        _NANOCHAT_DEFAULTS,
        fixed={"qk_norm": True, "qk_norm_last": True, "norm_weights": False, "embed_norm": True, "gated": False},
        read_extra=_read_nanochat,
        write_extra=_write_nanochat,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {**_COMMON, **QWEN3_MOE_DEFAULTS},
        fixed={"qk_norm": True},
        read_extra=read_qwen3_moe,
        write_extra=write_qwen3_moe,
    ),
    "mixtral": Family(
        "MixtralForCausalLM", {**_COMMON, **MIXTRAL_DEFAULTS}, read_extra=read_mixtral, write_extra=write_mixtral
    ),
    "minimind_moe": Family(
        "MiniMindForCausalLM", {**_COMMON, **MINIMIND_DEFAULTS}, read_extra=read_minimind, write_extra=write_minimind
    ),
}
"""Every family with a decoder of our own, by `model_type`."""

_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
_OWN_KEY = "chatwright_tokenizer_vocab_size"
_INIT_KEY = "chatwright_initialization"


def config_from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read a Hugging Face config dict (the content of config.json).

    Raises:
        ModelError: for a `model_type` without a decoder of our own, a missing or impossible shape, quantized weights,
            an unknown activation or an unknown kind of rotary embedding.
    """
    kind = raw.get("model_type")
    if kind == "minimind":  # its own name on disk, read by its own code; without experts it's refused by what it is
        kind = "minimind_moe"
    if kind == "gemma3":
        outer = {key: raw[key] for key in ("tie_word_embeddings", "eos_token_id") if key in raw}
        raw = {**outer, **raw.get("text_config", {}), "model_type": "gemma3_text"}
        kind = "gemma3_text"
    family = FAMILIES.get(str(kind))
    if family is None:
        raise ModelError(
            f"no decoder of our own for model_type {kind!r}; there is one for {', '.join(FAMILIES)}",
            place="config.json",
            hint="`chatwright.models.foreign.load_any` runs every other causal language model through transformers",
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ModelError(
            f"the weights are quantized ({method})", place="config.json", hint="use the model's unquantized folder"
        )
    full = {**family.defaults, **raw}
    _check_shapes(full)
    fields: dict[str, Any] = {ours: full[theirs] for ours, theirs in _FIELDS.items()}
    fields.update(_read_rope_and_windows(full), family=str(kind), tokenizer_vocab_size=raw.get(_OWN_KEY))
    fields["initialization"] = _initialization(raw)
    fields["activation"] = _activation(full, gated=family.fixed.get("gated", True))
    fields["eos_token_ids"] = _as_tuple(full["eos_token_id"])
    fields.update(family.fixed)
    fields.update(family.read_extra(full))
    return DecoderConfig(**fields)


def _read_rope_and_windows(full: dict[str, Any]) -> dict[str, Any]:
    """One rotary embedding and no window for every layer: what a family's `read_extra` starts from."""
    layers = full["num_hidden_layers"]
    parameters = full.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in parameters.values()):
        parameters = {}
    scaling = full.get("rope_scaling") or {}
    merged = {"rope_theta": full.get("rope_theta") or 10_000.0, **parameters, **scaling}
    merged.setdefault("partial_rotary_factor", full.get("partial_rotary_factor") or 1.0)
    return {
        "ropes": (read_rope(merged, full["max_position_embeddings"]),),
        "layer_ropes": (0,) * layers,
        "layer_windows": (None,) * layers,
        "attention_scale": full["head_dim"] ** -0.5,
    }


def _check_shapes(full: dict[str, Any]) -> None:
    """Complete `head_dim` and `num_key_value_heads` in place; refuse what can't be a decoder."""
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in needed if not isinstance(full.get(name), int)]
    if missing:
        raise ModelError(f"no number given for {', '.join(missing)}", place="config.json")
    full["head_dim"] = full["head_dim"] or full["hidden_size"] // full["num_attention_heads"]
    full["num_key_value_heads"] = full["num_key_value_heads"] or full["num_attention_heads"]
    if full["num_attention_heads"] % full["num_key_value_heads"] or full["head_dim"] % 2:
        raise ModelError(
            f"{full['num_attention_heads']} heads can't share {full['num_key_value_heads']} key/value heads "
            f"of head_dim {full['head_dim']}",
            place="config.json",
            hint="num_attention_heads must be a multiple of num_key_value_heads and head_dim even",
        )


def _activation(full: dict[str, Any], gated: bool) -> Activation:
    name = full.get("hidden_activation") or full.get("hidden_act")
    kinds = [kind.value for kind in Activation if (kind is not Activation.RELU2) == gated]
    if name not in kinds:
        raise ModelError(
            f"unknown activation {name!r}; known for {full['model_type']}: {', '.join(kinds)}", place="config.json"
        )
    return Activation(name)


def _initialization(raw: Mapping[str, Any]) -> Initialization:
    name = raw.get(_INIT_KEY, Initialization.NORMAL.value)
    if name not in {kind.value for kind in Initialization}:
        known = ", ".join(kind.value for kind in Initialization)
        raise ModelError(f"unknown initialization {name!r}; known: {known}", place=f"config.json {_INIT_KEY}")
    return Initialization(name)


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json content that transformers (4 and 5) reads back as the same model, without its dtype."""
    family = FAMILIES[config.family]
    written: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family}
    written.update({theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()})
    activation_key = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    written[activation_key] = config.activation.value
    written["eos_token_id"] = config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids)
    if not config.eos_token_ids:
        written["eos_token_id"] = None
    rope = rope_to_hf(config.ropes[0])
    written["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    written["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    written["rope_parameters"] = rope
    written.update(family.write_extra(config))
    if config.tokenizer_vocab_size is not None:
        written[_OWN_KEY] = config.tokenizer_vocab_size
    if config.initialization is not Initialization.NORMAL:
        written[_INIT_KEY] = config.initialization.value
    return written
