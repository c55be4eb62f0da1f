"""Tiny random decoders as ours and as transformers', with grouped key/value heads and every linear of its own shape."""

from __future__ import annotations

from typing import Any

import torch

from chatwright.layouts import SegmentLayout
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model

VOCAB = 61
HF_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR_ENDINGS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def our_model(*, tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0) -> CausalLM:
    return init_model(config_from_hf({**HF_CONFIG, "tie_word_embeddings": tied}), seed).to(dtype).eval()


def same_in_transformers(model: CausalLM) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = model.lm_head is None
    twin = LlamaForCausalLM(LlamaConfig(**HF_CONFIG, tie_word_embeddings=tied)).to(next(model.parameters()).dtype)
    missing, unexpected = twin.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin.eval()


def probe_ids(length: int = 23, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def our_logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(ids, torch.arange(len(ids)), SegmentLayout.from_lengths([len(ids)]))


@torch.no_grad()
def shake_adapter(model: torch.nn.Module, seed: int = 5) -> None:
    """Random values in every trainable parameter, so that the adapter really changes the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
