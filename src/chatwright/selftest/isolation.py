"""The law of isolation: what one conversation says never moves another's logits."""

from __future__ import annotations

from dataclasses import replace

import torch

from chatwright.selftest.context import Context
from chatwright.selftest.outcome import LawOutcome, bound_for, judged, waived

MEASURED = "change conversation 1: the logits of the others"


@torch.no_grad()
def isolation_law(context: Context) -> list[LawOutcome]:
    """Change every token of the first conversation of a pack: its logits move, and no other conversation's do."""
    if not context.settings.packing.exact:
        reason = "packing.by: constant_length joins conversations on purpose; the other laws are checked on packs apart"
        return [waived("isolation", MEASURED, reason)]
    batch = context.packed()
    first = context.sample.lengths[0]
    vocabulary = context.text.tokenizer.vocab_size
    ids = batch.input_ids.clone()
    ids[:first] = (ids[:first] + 1 + torch.arange(first, device=ids.device)) % vocabulary
    before = _logits(context, batch.input_ids)
    moved = (_logits(context, ids) - before).abs()
    size = float(before.abs().max())
    own, others = float(moved[:first].max()) / size, float(moved[first:].max()) / size
    bound = bound_for(context.dtype, 1e-6, 1e-12)
    detail = f"its own logits move by {own:.1e}; the others' " + ("not by one bit" if others == 0 else "do")
    if not own > 10 * bound:
        others, detail = float("nan"), f"the changed conversation's own logits did not move ({own:.1e})"
    return [judged("isolation", MEASURED, others, "largest change ÷ largest logit", bound, detail)]


def _logits(context: Context, ids: torch.Tensor) -> torch.Tensor:
    """`[T, V]` of the packed batch with other tokens in it."""
    batch = replace(context.packed(), input_ids=ids)
    hidden, _ = context.model(batch.input_ids, batch.position_ids, batch.layout)
    logits: torch.Tensor = context.model.output_head().logits(hidden)  # type: ignore[operator]
    return logits
