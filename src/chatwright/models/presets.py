"""Model shapes by name, for models that begin from nothing: a preset and a few options → `DecoderConfig`.

Knows shapes and where they come from; knows no tokenizer, no file and no weight.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatwright.errors import ConfigError, ModelError
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_from_hf

Option = int | float | bool | None


@dataclass(frozen=True, slots=True)
class Preset:
    """A kind of model.

    Args:
        summary: one line for the user.
        options: name → default; their types are what a recipe may give (None stands for "follows from the others").
        make: (vocabulary size, all options) → the Hugging Face config it is.
    """

    summary: str
    options: Mapping[str, Option]
    make: Callable[[int, Mapping[str, Any]], dict[str, Any]]


def preset_config(name: str, vocab_size: int, options: Mapping[str, Any]) -> DecoderConfig:
    """The shapes of a preset.

    Args:
        vocab_size: rows of the embedding: the tokenizer's size.
        options: what differs from the preset's defaults.

    Raises:
        ConfigError: there is no such preset, it has no such option, or an option has a value of another type.
        ModelError: the options make no possible decoder.
    """
    if name not in PRESETS:
        raise ConfigError([f"new_model.preset: unknown preset {name!r}; {_nearest(name, PRESETS)}"])
    preset = PRESETS[name]
    problems = [
        f"new_model.{key}: the preset {name} has no such option; {_nearest(key, preset.options)}"
        for key in options
        if key not in preset.options
    ]
    problems += [
        f"new_model.{key}: must be {'true or false' if isinstance(preset.options[key], bool) else 'a positive number'} "
        f"(found {value!r})"
        for key, value in options.items()
        if key in preset.options and not _fits(value, preset.options[key])
    ]
    if problems:
        raise ConfigError(problems)
    return config_from_hf(preset.make(vocab_size, {**preset.options, **options}))


def _fits(value: Any, default: Option) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if value is None:
        return default is None
    number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return number and (isinstance(default, float) or isinstance(value, int))


def _nearest(given: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _llama(vocab_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama; without a given size its feed-forward is 8/3 of the hidden size, rounded up to a multiple of 64."""
    hidden, heads = options["hidden_size"], options["num_heads"]
    if hidden % heads:
        raise ModelError(f"num_heads: {heads} don't divide a hidden_size of {hidden}")
    inner = options["intermediate_size"] or -(-8 * hidden // 3 // 64) * 64
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": options["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": options["num_kv_heads"] or heads,
        "max_position_embeddings": options["max_positions"],
        "rope_theta": options["rope_theta"],
        "tie_word_embeddings": options["tied"],
        "rms_norm_eps": 1e-5,
    }


def _nanochat(vocab_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """nanochat's model of December 2025: all follows from the depth (karpathy/nanochat, scripts/base_train.py)."""
    depth = options["depth"]
    hidden = depth * options["aspect_ratio"]
    heads = _nearest_divisor(hidden, hidden / options["head_dim"])
    return {
        "model_type": "nanochat",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": options["num_kv_heads"] or heads,
        "max_position_embeddings": options["max_positions"],
        "rope_theta": 10_000.0,
        "final_logit_softcapping": 15.0,
        "chatwright_initialization": "nanochat",
    }


def _nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of `number` that is nearest to `wanted`; of two, the greater: how nanochat finds its heads."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return min(reversed(divisors), key=lambda each: abs(each - max(1, round(wanted))))


def _minimind(vocab_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """MiniMind's model/model_minimind.py of 2025: a Llama that begins with torch's own weights."""
    return {**_llama(vocab_size, options), "chatwright_initialization": "torch_linear"}


def _minimind_moe(vocab_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The same file's mixture of experts: all experts, the shared ones too, are as large as the dense block."""
    return {
        **_minimind(vocab_size, options),
        "model_type": "minimind",
        "use_moe": True,
        "n_routed_experts": options["num_experts"],
        "num_experts_per_tok": options["experts_per_token"],
        "n_shared_experts": options["num_shared_experts"],
        "aux_loss_alpha": options["aux_loss_weight"],
    }


PRESETS: dict[str, Preset] = {
    "llama": Preset(
        "a Llama of any size",
        {
            "hidden_size": 256,
            "num_layers": 6,
            "num_heads": 4,
            "num_kv_heads": None,
            "intermediate_size": None,
            "max_positions": 2048,
            "rope_theta": 10_000.0,
            "tied": True,
        },
        _llama,
    ),
    "nanochat": Preset(
        "nanochat's model by depth; 20 layers and 65,536 tokens make its 560,988,160 parameters",
        {"depth": 20, "aspect_ratio": 64, "head_dim": 128, "num_kv_heads": None, "max_positions": 2048},
        _nanochat,
    ),
    "minimind": Preset(
        "MiniMind's dense model of 2025, a Llama; 512 × 8 and 6,400 tokens make its 25.8 million parameters",
        {
            "hidden_size": 512,
            "num_layers": 8,
            "num_heads": 8,
            "num_kv_heads": 2,
            "intermediate_size": None,
            "max_positions": 32_768,
            "rope_theta": 1_000_000.0,
            "tied": True,
        },
        _minimind,
    ),
    "minimind-moe": Preset(
        "MiniMind's mixture of experts of 2025; 640 × 8 and 6,400 tokens make MiniMind2-MoE's 145 million parameters",
        {
            "hidden_size": 640,
            "num_layers": 8,
            "num_heads": 8,
            "num_kv_heads": 2,
            "intermediate_size": None,
            "num_experts": 4,
            "experts_per_token": 2,
            "num_shared_experts": 1,
            "aux_loss_weight": 0.1,
            "max_positions": 32_768,
            "rope_theta": 1_000_000.0,
            "tied": True,
        },
        _minimind_moe,
    ),
}
"""Every preset by name."""
