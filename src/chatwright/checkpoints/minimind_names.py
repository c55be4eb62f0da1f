"""What MiniMind's three generations of code call their weights, and what the same weights are called here.

`MiniMindLM` (model/model.py, 2024 to April 2025, and its notebooks) has names of its own and rotates neighbouring
dimensions; `MiniMindForCausalLM` (model/model_minimind.py, from April 2025) has Hugging Face's names and rotates
halves, since 2026 with norms over q and k. Knows names and the order of rows; knows no file.
"""

from __future__ import annotations

import re

import torch

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFERS = ("pos_cis", "freqs_cos", "freqs_sin", "attention.mask")
"""Ends of names of tables that older files hold beside the weights."""

_TOP = {"tok_embeddings.weight": EMBED, "norm.weight": "model.norm.weight", "output.weight": HEAD}
_PARTS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "mlp.gate",
    "feed_forward.shared_experts.w1": "mlp.shared_experts.0.gate_proj",
    "feed_forward.shared_experts.w2": "mlp.shared_experts.0.down_proj",
    "feed_forward.shared_experts.w3": "mlp.shared_experts.0.up_proj",
}
_EXPERT_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
_EXPERT = re.compile(r"feed_forward\.experts\.(\d+)\.(w[123])")
_OUR_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+_proj)")
_OUR_TOP = {ours: theirs for theirs, ours in _TOP.items()}
_OUR_PARTS = {ours: theirs for theirs, ours in _PARTS.items()}
_OUR_EXPERT_PARTS = {ours: theirs for theirs, ours in _EXPERT_PARTS.items()}


def is_minimind_lm(names: list[str]) -> bool:
    """Whether these are `MiniMindLM`'s names."""
    return any(name.startswith(("tok_embeddings.", "layers.")) for name in names)


def from_minimind_lm(name: str) -> str | None:
    """Hugging Face's name of a weight that `MiniMindLM` calls `name`; None if it has no such weight."""
    if name in _TOP:
        return _TOP[name]
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return None
    part = _PARTS.get(layer[2])
    if expert := _EXPERT.fullmatch(layer[2]):
        part = f"mlp.experts.{expert[1]}.{_EXPERT_PARTS[expert[2]]}"
    return f"model.layers.{layer[1]}.{part}.weight" if part else None


def to_minimind_lm(name: str) -> str | None:
    """What `MiniMindLM` calls a weight; None if it has no such weight."""
    if name in _OUR_TOP:
        return _OUR_TOP[name]
    layer = _LAYER.fullmatch(name.removeprefix("model."))
    if layer is None:
        return None
    part = _OUR_PARTS.get(layer[2])
    if expert := _OUR_EXPERT.fullmatch(layer[2]):
        part = f"feed_forward.experts.{expert[1]}.{_OUR_EXPERT_PARTS[expert[2]]}"
    return f"layers.{layer[1]}.{part}.weight" if part else None


def halves_from_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k reordered from a rotation of neighbours (0,1), (2,3), … to one of halves (0,n/2), (1,n/2+1), …

    Scores don't change, since q and k are reordered alike.

    Args:
        weight: `[heads · n, D]`.
    """
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def pairs_from_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The way back from `halves_from_pairs`."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)
