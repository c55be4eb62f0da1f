"""Writes a model as nanochat's own code loads it: weights, settings and tokenizer in its folders.

    OUT/chatsft_checkpoints/d10/model_000700.pt, meta_000700.json
    OUT/tokenizer/tokenizer.pkl, token_bytes.pt

With NANOCHAT_BASE_DIR=OUT its scripts find them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from chatwright.checkpoints.export import ExportReport, check_dtype, finite_in, whole_tensors
from chatwright.checkpoints.imports import ResolvedModel
from chatwright.checkpoints.manifest import Manifest, read_manifest
from chatwright.checkpoints.nanochat import SOURCES
from chatwright.checkpoints.nanochat_names import model_config_of, nanochat_weights
from chatwright.checkpoints.tiktoken_files import TiktokenEncoding, dump_encoding, encoding_of, token_lengths
from chatwright.errors import ModelError
from chatwright.models.families import config_from_hf, config_to_hf
from chatwright.models.weights import read_config
from chatwright.templates.native import NATIVE_FORMATS
from chatwright.templates.tokenizer import TextTokenizer

PADDED = 64
"""Some versions of nanochat's code have rows for the next multiple of it, and load nothing else."""
STAGES = {"pretrain": "base", "mid": "mid", "sft": "sft", "dpo": "sft", "rl": "rl"}
"""Our stage → nanochat's source."""


def export_nanochat(
    resolved: ResolvedModel, out: str | Path, *, source: str | None = None, dtype: str = "float32", merge: bool = False
) -> ExportReport:
    """Write one checkpoint of nanochat's, tag `d<layers>`, at the step of ours.

    Args:
        out: what becomes NANOCHAT_BASE_DIR; made if it isn't there.
        source: base, mid, sft or rl; None takes the stage's.
        merge: fold an adapter into its base.

    Raises:
        ModelError: nanochat's code (December 2025) has no such model or tokenizer, or the file is there already.
    """
    out = Path(out).expanduser().resolve()
    check_dtype(dtype)
    config = config_to_hf(config_from_hf(read_config(resolved.folder)))
    _refuse(config, resolved.source)
    manifest = read_manifest(resolved.checkpoint) if resolved.checkpoint is not None else None
    folder = out / SOURCES[_source(source, manifest, resolved.source)] / f"d{config['num_hidden_layers']}"
    step = manifest.step if manifest is not None else 0
    encoding = _encoding(resolved)
    tensors, notes = whole_tensors(resolved, getattr(torch, dtype), merge)
    if encoding.vocab_size > config["vocab_size"]:
        raise ModelError("its tokenizer has more tokens than its embedding has rows", place=resolved.source)
    spare = config["vocab_size"] - encoding.vocab_size
    if spare:
        notes = (*notes, f"{spare} rows behind the tokenizer's tokens are left out: nanochat's models have none")
    if encoding.vocab_size % PADDED:
        line = f"nanochat's versions that fill the vocabulary up to a multiple of {PADDED} can't load these"
        notes = (*notes, f"{encoding.vocab_size:,} tokens are no multiple of {PADDED}: {line}")
    weights = nanochat_weights(finite_in(tensors, dtype), encoding.vocab_size)
    meta = {"step": step, "model_config": model_config_of(config, encoding.vocab_size), "user_config": {}}
    path = folder / f"model_{step:06d}.pt"
    if path.exists():
        raise ModelError("exists already", place=str(path), hint="delete it, or give another folder")
    _write_tokenizer(out / "tokenizer", encoding)
    _save(weights, path)
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    line = f"{path.relative_to(out)}: nanochat's scripts load it with NANOCHAT_BASE_DIR={out}"
    return ExportReport(out, "nanochat checkpoint", dtype, path.stat().st_size, (*notes, line))


def _refuse(config: dict[str, Any], place: str) -> None:
    """Name what nanochat's model doesn't have."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    fixed = {
        "family": (config["model_type"], "nanochat"),
        "intermediate size": (config.get("intermediate_size"), 4 * config["hidden_size"]),
        "soft cap": (config.get("final_logit_softcapping"), 15.0),
        "head size": (config.get("head_dim"), config["hidden_size"] // config["num_attention_heads"]),
        "rope theta": (rope.get("rope_theta"), 10_000.0),
        "rope type": (rope.get("rope_type", "default"), "default"),
        "activation": (config.get("hidden_act"), "relu2"),
        "biases": (config.get("attention_bias"), False),
        "tied embedding": (config.get("tie_word_embeddings"), False),
    }
    wrong = [f"{name} {found!r} (only {only!r})" for name, (found, only) in fixed.items() if found != only]
    if wrong:
        message = f"nanochat's code has no model with {', '.join(wrong)}"
        raise ModelError(message, place=place, hint="export it as a Hugging Face folder (without --to)")


def _source(named: str | None, manifest: Manifest | None, place: str) -> str:
    found = named if named is not None else STAGES.get(manifest.stage) if manifest is not None else None
    if found not in SOURCES:
        what = f"unknown source {named!r}" if named is not None else "no stage tells which of nanochat's sources it is"
        raise ModelError(what, place=place, hint=f"give --prefix, one of {', '.join(SOURCES)}")
    return found


def _encoding(resolved: ResolvedModel) -> TiktokenEncoding:
    """The model's tokenizer with nanochat's special tokens."""
    place = resolved.text_folder / "tokenizer.json"
    tokenizer = TextTokenizer.load(resolved.text_folder)
    missing = NATIVE_FORMATS["nanochat"].missing(tokenizer)
    if missing:
        raise ModelError(f"its tokenizer lacks nanochat's tokens {', '.join(missing)}", place=str(place))
    return encoding_of(json.loads(place.read_text(encoding="utf-8")), tokenizer.control_ids, str(place))


def _write_tokenizer(folder: Path, encoding: TiktokenEncoding) -> None:
    """tokenizer.pkl and token_bytes.pt; one that is there must be the same.

    Raises:
        ModelError: another tokenizer is there, which other checkpoints need.
    """
    content, path = dump_encoding(encoding, "rustbpe"), folder / "tokenizer.pkl"
    if path.exists() and path.read_bytes() != content:
        raise ModelError("is another tokenizer", place=str(path), hint="give a folder of its own to each tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    torch.save(torch.tensor(token_lengths(encoding), dtype=torch.int32), folder / "token_bytes.pt")


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
