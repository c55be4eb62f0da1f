"""Tiny models of every family, with the variations that each family's config allows."""

from __future__ import annotations

from typing import Any

_TINY: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def _rope(theta: float = 10_000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default", **fields}


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": _rope()},
    "llama-tied": {"model_type": "llama", "rope_parameters": _rope(500.0), "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "rope_parameters": _rope(), "attention_bias": True, "mlp_bias": True},
    "llama-head_dim": {"model_type": "llama", "rope_parameters": _rope(), "head_dim": 16, "num_key_value_heads": 6},
    "llama-linear": {"model_type": "llama", "rope_parameters": _rope(rope_type="linear", factor=3.0)},
    "llama-dynamic": {"model_type": "llama", "rope_parameters": _rope(rope_type="dynamic", factor=2.0)},
    "llama-llama3": {"model_type": "llama", "rope_parameters": {**_rope(), **_LLAMA3}},
    "llama-yarn": {"model_type": "llama", "rope_parameters": {**_rope(), **_YARN}},
    "llama-yarn-factor": {"model_type": "llama", "rope_parameters": {**_rope(), **_YARN, "attention_factor": 1.3}},
    "llama-yarn-mscale": {
        "model_type": "llama",
        "rope_parameters": {**_rope(), **_YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16.0},
    },
    "mistral": {"model_type": "mistral", "rope_parameters": _rope(), "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "rope_parameters": _rope(), "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "rope_parameters": _rope(1e6), "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        "rope_parameters": _rope(1e6),
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "rope_parameters": _rope(1e6), "head_dim": 12},
    "qwen3-bias": {"model_type": "qwen3", "rope_parameters": _rope(1e6), "head_dim": 8, "attention_bias": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": _rope(1e6, rope_type="linear", factor=8.0),
            "sliding_attention": _rope(1e4),
        },
    },
    "gemma3-untied-capped": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 3.0,
        "sliding_window": 100,
    },
    "gemma2-capped": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 12,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "sliding_window": 6,
        "rope_parameters": _rope(),
    },
    "nanochat": {"model_type": "nanochat", "rope_parameters": _rope(), "final_logit_softcapping": 3.0},
    "nanochat-one-kv-head": {
        "model_type": "nanochat",
        "rope_parameters": _rope(1e5),
        "num_key_value_heads": 1,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "final_logit_softcapping": None,
    },
}
"""Name → Hugging Face config dict."""

VARIANTS = {name: {**_TINY, **fields} for name, fields in VARIANTS.items()}
