"""Laws of what leaves the program: a saved model read by transformers, and an adapter merged into its base."""

from __future__ import annotations

import importlib.util
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatwright.adapters.lora import adapted_layers, merge_lora
from chatwright.checkpoints.export import export_model
from chatwright.checkpoints.imports import resolve_model
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import read_config
from chatwright.recipes.model import build_model, load_weights
from chatwright.selftest.context import Context, stir_adapter
from chatwright.selftest.outcome import LawOutcome, bound_for, judged, not_applicable, waived
from chatwright.selftest.short_run import whole_run

LOGITS = "saved checkpoint, loaded by transformers: logits = ours"
STOPS = "transformers' generation stops at every stop token of ours"
MERGED = "merged adapter = unmerged adapter: logits"


def saving_laws(context: Context) -> list[LawOutcome]:
    """The short run's checkpoint in float32; an adapter is exported merged, and compared with itself unmerged."""
    if importlib.util.find_spec("transformers") is None:
        reason = "transformers is not installed (pip install 'chatwright[hf]')"
        return [waived("saving", LOGITS, reason), waived("stopping", STOPS, reason)]
    resolved = resolve_model(whole_run(context).checkpoint)
    ours = load_weights(resolved, torch.float32, "cpu").eval()
    folder = whole_run(context).checkpoint
    if resolved.adapter is not None:
        if not isinstance(ours, CausalLM):
            reason = "an adapter on an architecture that runs through transformers is not merged by us"
            return [waived("saving", LOGITS, reason), waived("stopping", STOPS, reason)]
        folder = context.folder / "merged"
        export_model(resolved, folder, dtype="float32", merge=True)
    if unknown := _unknown_to_transformers(folder):
        reason = f"transformers knows no model_type {unknown}; its own project's code reads the folder"
        return [waived("saving", LOGITS, reason), waived("stopping", STOPS, reason)]
    theirs = _load_with_transformers(folder)
    return [_logits_law(context, ours, theirs), _stopping_law(context, theirs)]


def _unknown_to_transformers(folder: Path) -> str | None:
    """The folder's `model_type` where transformers has none of that name."""
    import transformers

    kind = str(read_config(folder).get("model_type"))
    return None if kind in transformers.CONFIG_MAPPING else kind


def _load_with_transformers(folder: Path) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _logits_law(context: Context, ours: nn.Module, theirs: Any) -> LawOutcome:
    batch = context.packed().to("cpu")
    expected = _packed_logits(ours, context)
    worst, size = 0.0, float(expected.abs().max())
    starts = [0, *accumulate(context.sample.lengths)]
    for start, end in pairwise(starts):
        found = theirs(input_ids=batch.input_ids[None, start:end]).logits[0]
        if found.shape != expected[start:end].shape:
            detail = f"{found.shape[-1]} columns of logits, ours {expected.shape[-1]}"
            return judged("saving", LOGITS, float("nan"), "largest difference ÷ largest logit", 1e-4, detail)
        error = float((found - expected[start:end]).abs().max()) / size
        worst = error if not error <= worst else worst
    return judged("saving", LOGITS, worst, "largest difference ÷ largest logit", 1e-4, f"{starts[-1]} tokens, float32")


@torch.no_grad()
def _stopping_law(context: Context, theirs: Any) -> LawOutcome:
    """Force each stop token as the second of a generation: exactly two tokens must come."""
    template = context.text.template
    prompt = context.packed().input_ids[None, :8].cpu()
    listed = theirs.generation_config.eos_token_id
    listed = set(listed if isinstance(listed, list | tuple) else [listed])
    plain = next(i for i in range(template.tokenizer.vocab_size) if i not in {*listed, *template.stop_ids})
    failures = []
    for stop in template.stop_ids:
        forced = [plain, stop, plain, plain]

        def force(ids: torch.Tensor, scores: torch.Tensor, forced: list[int] = forced) -> torch.Tensor:
            token = forced[ids.shape[1] - prompt.shape[1]]
            return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([token]), 0.0)

        made = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, logits_processor=[force]
        )
        if made.shape[1] - prompt.shape[1] != 2 or stop not in listed:
            failures.append(f"{template.tokenizer.token_text(stop)} (id {stop})")
    if not template.stop_ids:
        failures.append("the template has no stop token")
    detail = f"stop ids {', '.join(map(str, template.stop_ids))}"
    detail += f"; it runs on after {', '.join(failures)}" if failures else ""
    return judged("stopping", STOPS, len(failures), "stop tokens missed", 0, detail)


@torch.no_grad()
def merging_law(context: Context) -> list[LawOutcome]:
    """A stirred adapter before and after merging, against what the adapter changes at all."""
    if not context.setup.adapted:
        return [not_applicable("merging", MERGED, "the recipe trains no adapter")]
    adapter = context.settings.adapter
    if adapter is not None and adapter.base == "nf4":
        reason = "an adapter can't be merged into a 4-bit base; `export --merge` says what the full base changes"
        return [waived("merging", MERGED, reason)]
    base_and_adapter = build_model(context.settings, context.text, context.runtime).model.eval()
    stir_adapter(base_and_adapter)
    before = _packed_logits(base_and_adapter, context)
    effect = _adapter_effect(base_and_adapter, context, before)
    report = merge_lora(base_and_adapter)
    after = _packed_logits(base_and_adapter, context)
    error = float((after - before).abs().max()) / effect if effect else float("nan")
    greedy = float((after.argmax(-1) == before.argmax(-1)).double().mean())
    detail = f"{report.summary()}; the adapter moves logits by up to {effect:.1e}; greedy agreement {greedy:.2%}"
    bound = bound_for(context.dtype, 1e-3, 1e-10)
    return [judged("merging", MERGED, error, "largest difference ÷ the adapter's effect", bound, detail)]


def _adapter_effect(model: nn.Module, context: Context, adapted: torch.Tensor) -> float:
    """The largest change of a logit by the adapter."""
    layers = adapted_layers(model)
    alphas = {name: layer.alpha for name, layer in layers.items()}
    for layer in layers.values():
        layer.alpha = 0.0
    without = _packed_logits(model, context)
    for name, layer in layers.items():
        layer.alpha = alphas[name]
    return float((adapted - without).abs().max())


@torch.no_grad()
def _packed_logits(model: nn.Module, context: Context) -> torch.Tensor:
    """`[T, V]` of the chosen examples in one pack."""
    batch = context.packed().to(next(model.parameters()).device)
    hidden, _ = model(batch.input_ids, batch.position_ids, batch.layout)
    logits: torch.Tensor = model.output_head().logits(hidden)  # type: ignore[operator]
    return logits
