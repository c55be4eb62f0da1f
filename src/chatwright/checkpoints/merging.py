"""Folds an adapter into its base model, and measures what that and the rounding afterwards change."""

from __future__ import annotations

from pathlib import Path

import torch

from chatwright.adapters.lora import linear_layers, merge_lora
from chatwright.adapters.peft_files import load_peft
from chatwright.adapters.quantized import quantize_linears
from chatwright.adapters.settings import LoraSettings
from chatwright.checkpoints.imports import ResolvedModel
from chatwright.checkpoints.manifest import MANIFEST_NAME, read_manifest
from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import load_model
from chatwright.templates.tokenizer import TextTokenizer

# any plain text: it's only there to compare the same model with itself
_PROBE = (
    "The river runs past the old mill, where three people wait for a boat. One of them counts: 7, 12, 2048. "
    "def area(width, height):\n    return width * height\n\nWhy is the sky blue? Because air scatters short waves."
)
_MAX_PROBE_TOKENS = 128


@torch.no_grad()
def merge_adapter(resolved: ResolvedModel, dtype: torch.dtype) -> tuple[CausalLM, tuple[str, ...]]:
    """The base model with its adapter folded in (float32 holding values that are exact in `dtype`).

    Returns:
        the model, and lines that say how far its logits are from the unmerged adapter's in float32.

    Raises:
        ModelError: if there is no adapter, it doesn't fit, or the model isn't one of our own families.
    """
    if resolved.adapter is None:
        raise ModelError("is no adapter: there is nothing to merge", place=resolved.source, hint="leave --merge off")
    model = load_model(resolved.folder)
    ids = _probe_ids(resolved, model)
    trained = _as_trained(resolved, ids)
    load_peft(model, resolved.adapter)
    before = _logits(model, ids)
    notes = [merge_lora(model, lambda: _logits(model, ids)).summary()]
    if dtype != torch.float32:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        after = _logits(model, ids)
        error = (after - before).abs().max().item()
        agreement = (after.argmax(-1) == before.argmax(-1)).float().mean().item()
        name = str(dtype).removeprefix("torch.")
        notes.append(f"rounded to {name}: largest logit error {error:.2e}, greedy agreement {agreement:.2%}")
    if trained is not None:
        error = (before - trained).abs().max().item()
        agreement = (before.argmax(-1) == trained.argmax(-1)).float().mean().item()
        notes.append(
            "the adapter was trained beside a 4-bit base and is merged into the full one: largest logit difference "
            f"{error:.2e}, greedy agreement {agreement:.2%}"
        )
    return model, tuple(notes)


def _as_trained(resolved: ResolvedModel, ids: torch.Tensor) -> torch.Tensor | None:
    """The logits on the base as it was in training, where that was quantized; else None."""
    settings = _adapter_settings(resolved.checkpoint)
    if settings is None or settings.base != "nf4" or resolved.adapter is None:
        return None
    model = load_model(resolved.folder)
    quantize_linears(model, linear_layers(model), settings.double_quantization, "cpu")
    load_peft(model, resolved.adapter)
    return _logits(model, ids)


def _adapter_settings(checkpoint: Path | None) -> LoraSettings | None:
    """How a checkpoint's adapter was trained; None for one that isn't ours."""
    if checkpoint is None or not (checkpoint / MANIFEST_NAME).is_file():
        return None
    found = read_manifest(checkpoint).adapter
    return None if found is None else LoraSettings.model_validate(found)


def _probe_ids(resolved: ResolvedModel, model: CausalLM) -> torch.Tensor:
    """int64 `[N]`."""
    if (resolved.text_folder / "tokenizer.json").is_file():
        ids = TextTokenizer.load(resolved.text_folder).encode_text(_PROBE)[:_MAX_PROBE_TOKENS]
    else:
        ids = list(range(min(_MAX_PROBE_TOKENS, model.config.vocab_size)))
    return torch.tensor(ids, dtype=torch.int64)


def _logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """float32 `[N, V]`, as one segment."""
    hidden, _ = model(ids, torch.arange(len(ids)), SegmentLayout.from_lengths([len(ids)]))
    return model.output_head().logits(hidden).float()
