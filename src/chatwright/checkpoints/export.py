"""Exports a model as a clean Hugging Face folder: weights, config, tokenizer, template and stop ids.

The chat template travels with its record (`chatwright.json`), so that serving the export stays verified.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from chatwright.adapters.peft_files import WEIGHTS_NAME
from chatwright.checkpoints.imports import ADAPTER_CONFIG, ResolvedModel
from chatwright.checkpoints.manifest import manifest_hash, read_manifest
from chatwright.checkpoints.merging import merge_adapter
from chatwright.checkpoints.minimind import read_pth_name
from chatwright.checkpoints.tensors import load_tensors
from chatwright.errors import ModelError
from chatwright.models.families import config_to_hf
from chatwright.models.weights import read_config, save_weights, weight_files
from chatwright.templates.tokenizer import TextTokenizer

MARKER_NAME = "chatwright_export.json"
ExportDtype = Literal["float32", "bfloat16", "float16"]

_TEXT_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
    "chatwright.json",
)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Args:
        folder: the export. kind: "model", "adapter" or "merged model". dtype: of the weights.
        num_bytes: of all its files. notes: what else the user should know, such as the error of a merge.
    """

    folder: Path
    kind: str
    dtype: str
    num_bytes: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in plain lines."""
        return [f"{self.kind}, {self.dtype}, {self.num_bytes / 1e6:,.1f} MB", *self.notes]


def export_model(
    resolved: ResolvedModel, out: str | Path, *, dtype: str = "bfloat16", merge: bool = False
) -> ExportReport:
    """Write a Hugging Face folder that transformers (or peft) and every server of such folders can load.

    Args:
        out: a new or empty folder, or an earlier export, which is replaced once the new one is complete.
        dtype: of the written weights. An adapter without `merge` stays in the precision it was saved in.
        merge: fold an adapter into its base; without it an adapter becomes a PEFT folder.

    Raises:
        ModelError: for an unknown dtype, a folder that holds something else, weights that don't fit float16,
            or a merge without an adapter.
    """
    out = Path(out).expanduser().resolve()
    _refuse(resolved, out, dtype, merge)
    aside = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        kind, written, notes = _write_weights(resolved, aside, dtype, merge)
        copy_texts(resolved, aside)
        _write_marker(resolved, aside, kind, written)
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return ExportReport(out, kind, written, size, notes)


def check_dtype(dtype: str) -> None:
    """Refuse what weights can't be written in.

    Raises:
        ModelError: unknown dtype.
    """
    if dtype not in get_args(ExportDtype):
        raise ModelError(f"can't export as {dtype!r}", place="dtype", hint=f"one of {', '.join(get_args(ExportDtype))}")


def _refuse(resolved: ResolvedModel, out: Path, dtype: str, merge: bool) -> None:
    check_dtype(dtype)
    if merge and resolved.adapter is None:
        raise ModelError("is no adapter: there is nothing to merge", place=resolved.source, hint="leave --merge off")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MARKER_NAME).is_file()):
        raise ModelError("exists and isn't an export", place=str(out), hint="name a new folder")


def _write_weights(resolved: ResolvedModel, folder: Path, dtype: str, merge: bool) -> tuple[str, str, tuple[str, ...]]:
    """Write weights and config; (kind, dtype as written, notes)."""
    if resolved.adapter is not None and not merge:
        return "adapter", _write_adapter(resolved, resolved.adapter, folder), ()
    config = read_config(resolved.folder)
    if resolved.adapter is not None:
        model, notes = merge_adapter(resolved, getattr(torch, dtype))
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        _save(model.state_dict(), tokens | config_to_hf(model.config), folder, dtype)
        return "merged model", dtype, notes
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(resolved.folder):
        tensors |= load_tensors(path)[0]
    _save(tensors, config, folder, dtype)
    return "model", dtype, ()


def _write_adapter(resolved: ResolvedModel, adapter: Path, folder: Path) -> str:
    """Copy a PEFT folder, with its base under a name that peft can load."""
    for name in (ADAPTER_CONFIG, WEIGHTS_NAME):
        shutil.copyfile(adapter / name, folder / name)
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    hub_name, _, revision = resolved.source.removeprefix("hub:").partition("@")
    if resolved.source.startswith("hub:"):
        config |= {"base_model_name_or_path": hub_name, "revision": revision}
    else:
        config["base_model_name_or_path"] = str(resolved.folder)
    _write_json(path, config)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in load_tensors(folder / WEIGHTS_NAME)[0].values()}
    return " and ".join(sorted(dtypes))


def _save(tensors: Mapping[str, torch.Tensor], config: dict[str, Any], folder: Path, dtype: str) -> None:
    """Write weights in `dtype` (integers stay) and the config that says so."""
    save_weights(finite_in(tensors, dtype), folder)
    config = {**config, "dtype": dtype}
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    _write_json(folder / "config.json", config)


def finite_in(tensors: Mapping[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """The tensors in `dtype`; integers stay.

    Raises:
        ModelError: a number is too large for it.
    """
    target: torch.dtype = getattr(torch, dtype)
    ready = {name: tensor.to(target) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    lost = [name for name, tensor in ready.items() if not bool(tensor.isfinite().all())]
    if lost:
        hint = "export as bfloat16 or float32" if dtype == "float16" else "the model itself is broken"
        raise ModelError(f"{len(lost)} tensors are not finite in {dtype}, such as {lost[0]}", hint=hint)
    return ready


def whole_tensors(
    resolved: ResolvedModel, dtype: torch.dtype, merge: bool
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights of a whole model by name, for formats that know no adapters; notes of the merge, if there was one.

    Args:
        dtype: that a merge is to be judged by. merge: fold the adapter into its base.

    Raises:
        ModelError: it is an adapter and `merge` is False, or the other way round.
    """
    if resolved.adapter is not None:
        if not merge:
            raise ModelError(
                "is an adapter; that format holds a whole model", place=resolved.source, hint="add --merge"
            )
        model, notes = merge_adapter(resolved, dtype)
        return dict(model.state_dict()), notes
    if merge:
        raise ModelError("is no adapter: there is nothing to merge", place=resolved.source, hint="leave --merge off")
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(resolved.folder):
        tensors |= load_tensors(path)[0]
    return tensors, ()


def copy_texts(resolved: ResolvedModel, folder: Path) -> None:
    """Copy the tokenizer and template files, and name every stop id where generation looks for them."""
    source = resolved.text_folder
    for pattern in _TEXT_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if not (source / "tokenizer.json").is_file():
        return
    stop_ids = TextTokenizer.load(source).stop_ids
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stop_ids:
        _write_json(path, generation | {"eos_token_id": list(stop_ids)})


def _write_marker(resolved: ResolvedModel, folder: Path, kind: str, dtype: str) -> None:
    """Where the export came from; it also marks the folder as one that may be replaced."""
    checkpoint = resolved.checkpoint
    origin = resolved.folder / "chatwright_origin.json"
    pth = read_pth_name(resolved.source)
    record = {
        "kind": kind,
        "dtype": dtype,
        # names only: an export is made to be passed on, and paths tell about this machine
        "base_source": (
            resolved.source if resolved.source.startswith("hub:") else (pth.file if pth else Path(resolved.source)).name
        ),
        "checkpoint": f"{checkpoint.parent.name}/{checkpoint.name}" if checkpoint is not None else None,
        "manifest_sha256": manifest_hash(checkpoint) if checkpoint is not None else None,
        "contamination": read_manifest(checkpoint).contamination if checkpoint is not None else {},
        "base_origin": json.loads(origin.read_text(encoding="utf-8")) if origin.is_file() else None,
    }
    _write_json(folder / MARKER_NAME, record)
    for path in folder.iterdir():
        shutil.copymode(folder / MARKER_NAME, path)  # safetensors makes files that only their owner may read


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
