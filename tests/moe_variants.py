"""Tiny models with experts, with the variations that each family's config allows."""

from __future__ import annotations

import json
from typing import Any

import torch

_TINY: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_QWEN = {"model_type": "qwen3_moe", "rope_parameters": _ROPE, "num_experts": 5, "moe_intermediate_size": 24}

MOE_VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_QWEN, "norm_topk_prob": True},
    "qwen3_moe-plain-weights-tied": {**_QWEN, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    "qwen3_moe-every-second": {**_QWEN, "decoder_sparse_step": 2, "norm_topk_prob": True, "attention_bias": True},
    "qwen3_moe-some-dense": {**_QWEN, "mlp_only_layers": [0, 2], "head_dim": 16, "num_experts_per_tok": 1},
    "qwen3_moe-window": {**_QWEN, "use_sliding_window": True, "sliding_window": 7, "router_aux_loss_coef": 0.02},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "rope_parameters": _ROPE},
    "mixtral-window": {"model_type": "mixtral", "num_local_experts": 3, "sliding_window": 6, "head_dim": 12},
    "minimind_moe": {"model_type": "minimind", "use_moe": True},
    "minimind_moe-more": {
        "model_type": "minimind",
        "use_moe": True,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "seq_aux": False,
        "aux_loss_alpha": 0.01,
        "norm_topk_prob": False,
    },
}
"""Name → Hugging Face config dict; transformers knows all but MiniMind's."""

MOE_VARIANTS = {name: {**_TINY, **fields} for name, fields in MOE_VARIANTS.items()}
HF_MOE_VARIANTS = {name: fields for name, fields in MOE_VARIANTS.items() if fields["model_type"] != "minimind"}


def hf_moe_model(fields: dict[str, Any]) -> Any:
    """A transformers model of this config with random weights, in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)))
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
