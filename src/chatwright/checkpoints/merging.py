"""Folds an adapter into its base model, and measures what that and the rounding afterwards change."""

from __future__ import annotations

import torch

from chatwright.adapters.lora import merge_lora
from chatwright.adapters.peft_files import load_peft
from chatwright.checkpoints.imports import ResolvedModel
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
    load_peft(model, resolved.adapter)
    ids = _probe_ids(resolved, model)
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
    return model, tuple(notes)


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
