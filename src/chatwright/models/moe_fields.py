"""The fields of Hugging Face configs that say where experts stand: Qwen3-MoE, Mixtral, and MiniMind's of 2025."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig, ExpertSpelling, MoeConfig

_SCOPE_KEY = "chatwright_aux_per_segment"

QWEN3_MOE_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}
MIXTRAL_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MINIMIND_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "scoring_func": "softmax",
    "aux_loss_alpha": 0.1,
    "seq_aux": True,
    "norm_topk_prob": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""As MiniMind's `MiniMindConfig` of 2025 has them (its later one, with `num_experts`, is another model)."""


def read_qwen3_moe(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Experts in every `decoder_sparse_step`-th layer that isn't in `mlp_only_layers`; one window for all layers."""
    layers, step = raw["num_hidden_layers"], raw["decoder_sparse_step"]
    if not isinstance(step, int) or step < 1:
        raise ModelError(f"decoder_sparse_step must be a positive number, found {step!r}", place="config.json")
    dense = set(raw["mlp_only_layers"] or ())
    experts = _moe(
        raw,
        num_experts=raw.get("num_experts") or raw.get("num_local_experts") or 128,
        intermediate_size=raw["moe_intermediate_size"],
        layers=tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0),
        norm_weights=bool(raw["norm_topk_prob"]),
    )
    bias = bool(raw["attention_bias"])
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    return {"moe": experts, "qkv_bias": bias, "o_bias": bias, "layer_windows": (window,) * layers}


def write_qwen3_moe(config: DecoderConfig) -> dict[str, Any]:
    """The way back: every layer without experts is listed."""
    moe = _of(config)
    window = config.layer_windows[0] if config.layer_windows else None
    return {
        **_counts(moe),
        "num_experts": moe.num_experts,
        "moe_intermediate_size": moe.intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.num_layers) if layer not in moe.layers],
        "norm_topk_prob": moe.norm_weights,
        "attention_bias": config.qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


def read_mixtral(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Experts of the config's `intermediate_size` in every layer, weights normalized; one window for all layers."""
    layers = raw["num_hidden_layers"]
    experts = _moe(
        raw,
        num_experts=raw.get("num_local_experts") or 8,
        intermediate_size=raw["intermediate_size"],
        layers=tuple(range(layers)),
        spelling=ExpertSpelling.BLOCK_SPARSE_MOE,
    )
    return {"moe": experts, "layer_windows": (raw["sliding_window"],) * layers}


def write_mixtral(config: DecoderConfig) -> dict[str, Any]:
    """The way back."""
    return {**_counts(_of(config)), "sliding_window": config.layer_windows[0] if config.layer_windows else None}


def read_minimind(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Routed and shared experts of one size in every layer; the auxiliary loss a sequence unless `seq_aux` is off."""
    if not raw.get("use_moe"):
        known = "qwen3" if "num_experts" in raw else "llama"  # of 2026, with norms over q and k, or of 2025
        hint = f'it is one of "model_type": "{known}" in all but name: write that, or give its .pth file'
        raise ModelError("this MiniMind has no experts", place="config.json", hint=hint)
    if raw["scoring_func"] != "softmax" or "num_experts" in raw:
        found = "num_experts" if "num_experts" in raw else f"scoring_func {raw['scoring_func']!r}"
        raise ModelError(
            f"only MiniMind's experts of 2025 (n_routed_experts, softmax) are known here, found {found}",
            place="config.json",
            hint='MiniMind\'s later experts are those of "model_type": "qwen3_moe"',
        )
    experts = _moe(
        {**raw, "router_aux_loss_coef": raw["aux_loss_alpha"], _SCOPE_KEY: raw["seq_aux"]},
        num_experts=raw["n_routed_experts"],
        intermediate_size=raw["intermediate_size"],
        layers=tuple(range(raw["num_hidden_layers"])),
        num_shared=raw["n_shared_experts"],
        norm_weights=bool(raw["norm_topk_prob"]) and raw["num_experts_per_tok"] > 1,
        aux_adds_layers=True,
    )
    return {"moe": experts}


def write_minimind(config: DecoderConfig) -> dict[str, Any]:
    """The way back, as MiniMind's own code reads it (`model_type` minimind)."""
    moe = _of(config)
    return {
        "model_type": "minimind",
        "use_moe": True,
        "num_experts_per_tok": moe.experts_per_token,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.num_shared,
        "scoring_func": "softmax",
        "aux_loss_alpha": moe.aux_loss_weight,
        "seq_aux": moe.aux_per_segment,
        "norm_topk_prob": moe.norm_weights,
        "dropout": 0.0,
        "flash_attn": True,
    }


def _moe(raw: Mapping[str, Any], **fields: Any) -> MoeConfig:
    """The fields that all share.

    Raises:
        ModelError: more experts a token than there are, or sizes that are no positive numbers.
    """
    moe = MoeConfig(
        experts_per_token=raw["num_experts_per_tok"],
        aux_loss_weight=float(raw["router_aux_loss_coef"]),
        aux_per_segment=bool(raw.get(_SCOPE_KEY, True)),
        **fields,
    )
    sizes = (moe.num_experts, moe.experts_per_token, moe.intermediate_size)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or moe.experts_per_token > moe.num_experts:
        raise ModelError(
            f"{moe.experts_per_token} of {moe.num_experts} experts of size {moe.intermediate_size} a token can't be",
            place="config.json",
            hint="num_experts_per_tok must be between 1 and the number of experts",
        )
    return moe


def _counts(moe: MoeConfig) -> dict[str, Any]:
    written: dict[str, Any] = {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "router_aux_loss_coef": moe.aux_loss_weight,
    }
    return written if moe.aux_per_segment else {**written, _SCOPE_KEY: False}


def _of(config: DecoderConfig) -> MoeConfig:
    assert config.moe is not None
    return config.moe
