"""nanochat's names and settings (GPT and GPTConfig, December 2025) as those of transformers' NanoChat."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from chatwright.errors import ModelError

_FIELDS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "vocab_size": "vocab_size",
    "sequence_len": "max_position_embeddings",
}
_PARTS = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENDS = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.weight")
_COMPILED = "_orig_mod."
_SHOWN = 6


def config_of(model_config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The Hugging Face config of a `model_config`.

    Raises:
        ModelError: a field is missing, or one is there that this form of the model doesn't have.
    """
    missing = [name for name in _FIELDS if type(model_config.get(name)) is not int or model_config[name] < 1]
    if missing:
        raise ModelError(f"model_config lacks a positive number for {', '.join(missing)}", place=place)
    width, heads, shared = (model_config[name] for name in ("n_embd", "n_head", "n_kv_head"))
    if width % heads or heads % shared:
        message = f"model_config divides {width} dimensions into {heads} heads and these into {shared} groups"
        raise ModelError(message, place=place)
    unknown = [f"{name}={model_config[name]!r}" for name in model_config if name not in _FIELDS]
    full = {"window_pattern='L'"}  # later versions say so where every layer sees everything
    if set(unknown) - full:
        raise ModelError(
            f"model_config has {', '.join(unknown)}: another form of the model than that of December 2025",
            place=place,
            hint="only that form can be converted, which transformers calls NanoChat too",
        )
    config = {ours: model_config[theirs] for theirs, ours in _FIELDS.items()}
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **config,
        "intermediate_size": 4 * config["hidden_size"],
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "final_logit_softcapping": 15.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def hugging_face_weights(state: Any, config: Mapping[str, Any], place: str) -> dict[str, torch.Tensor]:
    """A state dict's tensors in float32 under transformers' names, in the model's order.

    Rows of the vocabulary that only fill it up to a multiple are cut off: nanochat never reads them.

    Raises:
        ModelError: names are missing or unexpected, or a shape is another; all are listed.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError("holds no weights by name", place=place, hint="give nanochat's model_….pt")
    found = {str(name).removeprefix(_COMPILED): tensor for name, tensor in state.items()}
    named = {_hugging_face_name(name): (name, tensor) for name, tensor in found.items()}
    shapes = expected_shapes(config)
    missing = [nanochat_name(name) for name in shapes if name not in named]
    unexpected = [found_name for name, (found_name, _) in named.items() if name not in shapes]
    problems = [
        f"{kind} {len(names)}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    weights = {}
    for name, shape in shapes.items():
        if name in named:
            tensor = named[name][1]
            rows = tensor[: shape[0]] if name in _ENDS.values() else tensor
            if tuple(rows.shape) != shape:
                problems.append(f"{named[name][0]} has shape {list(tensor.shape)}, expected {list(shape)}")
            weights[name] = rows.float().contiguous()
    if problems:
        hint = "only the model's form of December 2025 can be converted; later ones have more tensors"
        raise ModelError("; ".join(problems), place=place, hint=hint)
    return weights


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The shape of every weight, by transformers' name."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    inner = config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {
        "model.embed_tokens.weight": (vocab, hidden),
        **{f"model.layers.{n}.{part}.weight": shape for n in layers for part, shape in shapes.items()},
        "lm_head.weight": (vocab, hidden),
    }


def model_config_of(config: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """The `model_config` of a Hugging Face config, for a tokenizer of `vocab_size` tokens."""
    shapes = {theirs: int(config[ours]) for theirs, ours in _FIELDS.items()}
    return {**shapes, "vocab_size": vocab_size}


def nanochat_weights(weights: Mapping[str, torch.Tensor], vocab_size: int) -> dict[str, torch.Tensor]:
    """A whole model's tensors under nanochat's names, the vocabulary's rows cut to `vocab_size`."""
    return {
        nanochat_name(name): tensor[:vocab_size] if name in _ENDS.values() else tensor
        for name, tensor in weights.items()
    }


def _hugging_face_name(name: str) -> str:
    """transformers' name of a tensor, or the name itself where nanochat has none such."""
    match = _LAYER.fullmatch(name)
    if match is not None and match[2] in _PARTS:
        return f"model.layers.{match[1]}.{_PARTS[match[2]]}.weight"
    return _ENDS.get(name, f"nanochat's {name}")


def nanochat_name(name: str) -> str:
    """nanochat's name of one of transformers' tensors."""
    ends = {ours: theirs for theirs, ours in _ENDS.items()}
    if name in ends:
        return ends[name]
    _, _, number, part = name.removesuffix(".weight").split(".", 3)
    parts = {ours: theirs for theirs, ours in _PARTS.items()}
    return f"transformer.h.{number}.{parts[part]}.weight"
