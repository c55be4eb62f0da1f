"""Tiny random models of every family, made by transformers and loaded into ours; weights large enough to disagree."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama_one_group": ("llama", {"num_key_value_heads": 1}),
    "mistral_window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma3_windows": (
        "gemma3_text",
        {
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
}


def make_pair(family: str) -> tuple[Any, CausalLM]:
    """The same float32 weights in transformers' class and in ours."""
    model_type, changes = FAMILIES[family]
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    ours = CausalLM(config_from_hf(config.to_dict()))
    state = dict(theirs.state_dict())
    if ours.lm_head is None:
        state.pop("lm_head.weight", None)
    ours.load_state_dict(state)
    return theirs, ours.eval()
