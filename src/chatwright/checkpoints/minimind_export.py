"""Writes a model as the `.pth` file that MiniMind's own code loads with `strict=True`: its names, half precision.

The file is called as MiniMind calls it, `<prefix>_<hidden>[_moe].pth`; beside it stand the tokenizer, and in a `.json`
what the weights don't tell, so that the file comes back here as it was.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from chatwright.checkpoints.export import ExportReport, check_dtype, copy_texts, finite_in, whole_tensors
from chatwright.checkpoints.imports import ResolvedModel
from chatwright.checkpoints.manifest import read_manifest
from chatwright.checkpoints.minimind_names import EMBED, HEAD, pairs_from_halves, to_minimind_lm
from chatwright.errors import ModelError
from chatwright.models.config import Activation, DecoderConfig, RopeKind
from chatwright.models.families import config_from_hf
from chatwright.models.weights import is_classifier, read_config

MinimindLayout = Literal["minimind", "minimind-notebook"]
PREFIXES = {"pretrain": "pretrain", "mid": "mid", "sft": "full_sft", "dpo": "dpo", "rl": "grpo"}
"""What MiniMind calls the files of a stage."""

_FAMILIES = ("llama", "qwen3", "minimind_moe", "qwen3_moe")
_VOCABULARY = 6_400
_HEADS = 8


def export_minimind(
    resolved: ResolvedModel,
    out: str | Path,
    *,
    layout: MinimindLayout = "minimind",
    prefix: str | None = None,
    dtype: str = "float16",
    merge: bool = False,
) -> ExportReport:
    """Write one `.pth` file into a folder, with the tokenizer and a `.json` beside it.

    Args:
        out: the folder; made if it isn't there.
        layout: names of `model/model_minimind.py` (2025, and 2026 where q and k are normalized), or of the notebooks'
            `MiniMindLM`.
        prefix: what the file's name begins with; None takes the stage's (`PREFIXES`).
        merge: fold an adapter into its base.

    Raises:
        ModelError: MiniMind's code has no such model, weights don't fit `dtype`, or the file is there already.
    """
    out = Path(out).expanduser().resolve()
    check_dtype(dtype)
    if layout not in get_args(MinimindLayout):
        raise ModelError(f"unknown layout {layout!r}; known: {', '.join(get_args(MinimindLayout))}", place="--to")
    raw = read_config(resolved.folder)
    config = config_from_hf(raw)
    _refuse(config, layout, resolved.source, scores=is_classifier(raw))
    if prefix is not None and not re.fullmatch(r"\w[\w.-]*", prefix):
        raise ModelError(f"{prefix!r} is no beginning of a file's name", place="--prefix", hint="such as full_sft")
    path = out / file_name(config, prefix or _prefix_of(resolved))
    if path.exists():
        raise ModelError("exists already", place=str(path), hint="delete it, or give another --prefix or folder")
    tensors, notes = whole_tensors(resolved, getattr(torch, dtype), merge)
    written = _renamed(finite_in(tensors, dtype), config, layout)
    out.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        torch.save(written, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    texts = path.with_name(f"{path.stem}_tokenizer")
    texts.mkdir(exist_ok=True)
    copy_texts(resolved, texts)
    path.with_suffix(".json").write_text(json.dumps(_beside(config), indent=2) + "\n", encoding="utf-8")
    size = path.stat().st_size
    line = f"{path.name}: loads with strict=True into {constructor(config, layout)}"
    return ExportReport(out, "MiniMind weights", dtype, size, (*notes, line))


def file_name(config: DecoderConfig, prefix: str) -> str:
    """`<prefix>_<hidden>.pth`, with `_moe` where a layer has experts."""
    return f"{prefix}_{config.hidden_size}{'_moe' if config.moe else ''}.pth"


def _prefix_of(resolved: ResolvedModel) -> str:
    stage = read_manifest(resolved.checkpoint).stage if resolved.checkpoint is not None else None
    if stage not in PREFIXES:
        raise ModelError(
            "no stage tells what the file is to be called",
            place=resolved.source,
            hint="give --prefix, such as full_sft",
        )
    return PREFIXES[stage]


def _refuse(config: DecoderConfig, layout: str, place: str, *, scores: bool) -> None:
    """Name everything that MiniMind's code doesn't have."""
    rope = config.ropes[0] if len(config.ropes) == 1 else None
    cut = config.head_dim * config.num_heads == config.hidden_size
    problems = {
        "a score instead of an output head (a reward model)": scores,
        f"the family {config.family}": config.family not in _FAMILIES,
        "biases": config.qkv_bias or config.o_bias or config.mlp_bias,
        "windows": any(config.layer_windows),
        "a stretched rotary embedding": rope is None or rope.kind is not RopeKind.DEFAULT,
        f"the activation {config.activation.value}": config.activation is not Activation.SILU,
        "an output head of its own": not config.tied,
        f"heads of {config.head_dim} dimensions": not cut and not config.qk_norm,
        "norms over q and k": layout == "minimind-notebook" and config.qk_norm,
        "experts in some layers only": config.moe is not None and len(config.moe.layers) != config.num_layers,
    }
    found = [name for name, has in problems.items() if has]
    if found:
        message = f"MiniMind's code has no model with {', '.join(found)}"
        raise ModelError(message, place=place, hint="export it as a Hugging Face folder (without --to)")


def _renamed(tensors: Mapping[str, torch.Tensor], config: DecoderConfig, layout: str) -> dict[str, torch.Tensor]:
    """Under the names of its code, the tied head among them, since `strict=True` asks for it."""
    complete = {**tensors, HEAD: tensors[EMBED]}
    if layout == "minimind":
        return complete
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in complete.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_heads if "q_proj" in name else config.num_kv_heads
            tensor = pairs_from_halves(tensor, heads)
        theirs = to_minimind_lm(name)
        if theirs is None:
            raise ModelError(f"MiniMindLM has no weight for {name}", hint="export with --to minimind")
        renamed[theirs] = tensor
    return renamed


def _beside(config: DecoderConfig) -> dict[str, Any]:
    moe = config.moe
    experts = {"num_experts_per_tok": moe.experts_per_token, "norm_topk_prob": moe.norm_weights} if moe else {}
    return {
        "num_attention_heads": config.num_heads,
        "rope_theta": config.ropes[0].theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        **experts,
    }


def constructor(config: DecoderConfig, layout: str) -> str:
    """The line of Python that makes the model in MiniMind's code: sizes, and what differs from its defaults."""
    normed = config.qk_norm
    inner = math.ceil(config.hidden_size * math.pi / 64) * 64 if normed else -(-config.hidden_size * 8 // 3 // 64) * 64
    theirs: dict[str, tuple[str, Any, Any]] = {
        "num_attention_heads": ("n_heads", config.num_heads, _HEADS),
        "num_key_value_heads": ("n_kv_heads", config.num_kv_heads, 4 if normed else 2),
        "vocab_size": ("vocab_size", config.vocab_size, _VOCABULARY),
        "intermediate_size": ("hidden_dim", config.intermediate_size, inner),
        "rms_norm_eps": ("norm_eps", config.norm_eps, 1e-6 if normed else 1e-5),
        "rope_theta": ("rope_theta", config.ropes[0].theta, 1e6),
    }
    if normed:
        theirs["head_dim"] = ("head_dim", config.head_dim, config.hidden_size // config.num_heads)
    theirs |= _expert_options(config)
    notebook = layout == "minimind-notebook"
    hidden, layers = ("dim", "n_layers") if notebook else ("hidden_size", "num_hidden_layers")
    given = [f"{hidden}={config.hidden_size}", f"{layers}={config.num_layers}"]
    given += [
        f"{older if notebook else name}={value}" for name, (older, value, usual) in theirs.items() if value != usual
    ]
    given += ["use_moe=True"] if config.moe else []
    return f"{'LMConfig' if notebook else 'MiniMindConfig'}({', '.join(given)})"


def _expert_options(config: DecoderConfig) -> dict[str, tuple[str, Any, Any]]:
    """(older name, value, what its code has anyway) of the options that a mixture of experts has."""
    moe = config.moe
    if moe is None:
        return {}
    if config.family == "qwen3_moe":
        options = {"num_experts": (moe.num_experts, 4), "num_experts_per_tok": (moe.experts_per_token, 1)}
        options["moe_intermediate_size"] = (moe.intermediate_size, config.intermediate_size)
    else:
        options = {"n_routed_experts": (moe.num_experts, 4), "num_experts_per_tok": (moe.experts_per_token, 2)}
        options["n_shared_experts"] = (moe.num_shared, 1)
    if config.family == "qwen3_moe" or moe.experts_per_token > 1:  # its code of 2025 leaves a single one as it is
        options["norm_topk_prob"] = (moe.norm_weights, True)
    return {name: (name, value, usual) for name, (value, usual) in options.items()}
