"""The configuration of a MiniMind model from its weights: what their shapes tell, and what their generation had.

Sources (jingyaogong/minimind): model/LMConfig.py of 2024 (16 heads, 8 key/value heads, wavelength 1e4) and of 2025
(8 and 2, 1e6); model/model_minimind.py of 2025 (8 and 2, epsilon 1e-5; experts: 2 of 4 and shared ones) and of 2026
(norms over q and k, epsilon 1e-6; experts: 1 of 4, none shared).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from chatwright.checkpoints.minimind_names import from_minimind_lm, is_minimind_lm
from chatwright.errors import ModelError

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_HEADS = 8
_HEADS_2024, _QUERIES_PER_KEY_2024 = 16, 2
_CONTEXT = 32_768
_GIVEN = {
    "num_attention_heads": int,
    "rope_theta": float,
    "rms_norm_eps": float,
    "max_position_embeddings": int,
    "num_experts_per_tok": int,
    "norm_topk_prob": bool,
}
"""What may be said beside a file, since the weights don't tell it."""


def infer_config(weights: Mapping[str, torch.Tensor], said: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The Hugging Face config, without special ids and tying.

    Args:
        weights: by the names that the file has. said: settings that win over what is inferred.

    Raises:
        ModelError: the weights are no MiniMind model, or `said` has a setting that isn't known.
    """
    _check_said(said, place)
    older = is_minimind_lm(list(weights))
    shapes = {(from_minimind_lm(name) or name) if older else name: tuple(w.shape) for name, w in weights.items()}
    embed = shapes.get("model.embed_tokens.weight") or shapes.get("lm_head.weight")
    first = "model.layers.0."
    needed = [f"{first}self_attn.q_proj.weight", f"{first}self_attn.k_proj.weight"]
    if embed is None or any(len(shapes.get(name, ())) != 2 for name in needed):
        raise ModelError(
            f"holds no MiniMind model: it begins with {', '.join(list(weights)[:3])}",
            place=place,
            hint="give a file that MiniMind's trainer saved, such as out/full_sft_512.pth",
        )
    q_rows, k_rows = (shapes[name][0] for name in needed)
    config = {**_generation(shapes, older, q_rows // max(k_rows, 1)), **said}
    heads = config["num_attention_heads"]
    if q_rows % heads or k_rows % (q_rows // heads):
        raise ModelError(
            f"{heads} heads don't divide {q_rows} rows of q and {k_rows} of k",
            place=place,
            hint='say how many there are in a .json of the same name beside it: {"num_attention_heads": …}',
        )
    head_dim = q_rows // heads
    layers = [int(found[1]) for name in shapes if (found := _LAYER.match(name))]
    expert = shapes.get(f"{first}mlp.experts.0.gate_proj.weight", (0,))
    inner = shapes.get(f"{first}mlp.gate_proj.weight", expert)[0]
    return (
        _experts(shapes, config["model_type"])
        | config
        | {
            "vocab_size": embed[0],
            "hidden_size": embed[1],
            "num_hidden_layers": max(layers) + 1,
            "num_key_value_heads": k_rows // head_dim,
            "head_dim": head_dim,
            "intermediate_size": inner,
            "hidden_act": "silu",
        }
    )


def _generation(shapes: Mapping[str, tuple[int, ...]], older: bool, queries_per_key: int) -> dict[str, Any]:
    """What each generation's configuration had where the shapes don't tell."""
    norm = shapes.get("model.layers.0.self_attn.q_norm.weight")
    q_rows = shapes["model.layers.0.self_attn.q_proj.weight"][0]
    if norm is not None:
        heads, eps, kind = q_rows // norm[0], 1e-6, "qwen3"
    else:
        heads, eps, kind = _HEADS, 1e-5, "llama"
    theta, context = 1e6, _CONTEXT
    masks = [shape for name, shape in shapes.items() if name.endswith("attention.mask")]
    if older and queries_per_key == _QUERIES_PER_KEY_2024:
        heads, theta = _HEADS_2024, 1e4
        context = masks[0][-1] if masks else context
    if "model.layers.0.mlp.gate.weight" in shapes:
        kind = "qwen3_moe" if norm is not None else "minimind"
    return {
        "model_type": kind,
        "num_attention_heads": heads,
        "rope_theta": theta,
        "rms_norm_eps": eps,
        "max_position_embeddings": context,
    }


def _experts(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, Any]:
    """What a mixture of experts has besides; nothing for a dense model."""
    layer = "model.layers.0.mlp."
    router = shapes.get(f"{layer}gate.weight")
    if router is None:
        return {}
    if kind == "qwen3_moe":
        return {
            "num_experts": router[0],
            "num_experts_per_tok": 1,
            "norm_topk_prob": True,
            "moe_intermediate_size": shapes.get(f"{layer}experts.0.gate_proj.weight", (0,))[0],
            "router_aux_loss_coef": 5e-4,
        }
    shared = [name for name in shapes if name.startswith(f"{layer}shared_experts.") and "gate_proj" in name]
    return {"use_moe": True, "n_routed_experts": router[0], "n_shared_experts": len(shared), "aux_loss_alpha": 0.1}


def _check_said(said: Mapping[str, Any], place: str) -> None:
    for key, value in said.items():
        if key not in _GIVEN:
            raise ModelError(
                f"the .json beside it says {key!r}, which isn't among what it may say: {', '.join(_GIVEN)}", place=place
            )
        if _GIVEN[key] is bool:
            if not isinstance(value, bool):
                raise ModelError(
                    f"the .json beside it says {key}: {value!r}, which is neither true nor false", place=place
                )
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ModelError(f"the .json beside it says {key}: {value!r}, which is no positive number", place=place)
        if _GIVEN[key] is int and not isinstance(value, int):
            raise ModelError(f"the .json beside it says {key}: {value!r}, which is no whole number", place=place)
