"""The load-balance loss of models with experts, added to what any objective minimizes.

Σ over segments of (segment's weight · its own loss), divided with everything else by the step's weight: a weighted mean
over segments. A segment's term depends on that segment alone, so any split of a step into packs and ranks gives the
same gradient. With `moe.exact: false` it is one loss of all that a pack holds, as in transformers, times the pack's
weight: another loss for another split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from chatwright.batches.packed_batch import PackedBatch
from chatwright.losses.load_balance import batch_load_balance, router_metrics, segment_load_balance
from chatwright.losses.loss_sum import LossSum
from chatwright.models.moe import EXPERT_COUNTS, ROUTER_PROBS


def with_auxiliary(
    outcome: LossSum,
    model: Any,
    aux: Mapping[str, torch.Tensor],
    batch: PackedBatch,
    segment_weights: torch.Tensor | None = None,
) -> LossSum:
    """An objective's sums with the model's auxiliary loss and its metrics; unchanged for a dense model.

    Every objective calls it with what the model returned beside the hidden states. Without a gradient models return
    nothing there, so that losses on held-out data are the objective's alone.

    Args:
        outcome: the objective's sums. aux: the model's.
        segment_weights: `[S]`, what each segment counts for; their sum should be `outcome.weight`. None: the weights
            of its supervised tokens.

    Returns:
        `total` with the loss; metrics `aux_loss` (weighted, as it is added), `logits_loss` (without it), and those of
        `router_metrics`.
    """
    if EXPERT_COUNTS not in aux:
        return outcome
    moe = model.config.moe
    counts, probs = aux[EXPERT_COUNTS], aux[ROUTER_PROBS]
    lengths = batch.layout.cu_q.diff().to(probs.dtype)  # [S]
    real = torch.tensor([key is not None for key in batch.keys], device=probs.device)
    if moe.aux_per_segment:
        weights = _supervised_weights(batch) if segment_weights is None else segment_weights
        added = moe.aux_scale * (weights.to(probs.dtype) * segment_load_balance(counts, probs, lengths)).sum()
    elif any(key is not None for key in batch.keys):
        added = outcome.weight * batch_load_balance(counts[:, real], probs[:, real], lengths[real])
    else:
        added = probs.sum() * 0.0
    added = moe.aux_loss_weight * added
    told = {
        "aux_loss": (float(added.detach()), outcome.weight),
        "logits_loss": (float(outcome.total.detach()), outcome.weight),
        **router_metrics(counts[:, real]),
    }
    return replace(outcome, total=outcome.total + added, metrics={**outcome.metrics, **told})


def _supervised_weights(batch: PackedBatch) -> torch.Tensor:
    """`[S]`, the weights of each segment's supervised tokens added up."""
    sums = torch.zeros(batch.layout.num_segments, dtype=batch.weights.dtype, device=batch.weights.device)
    return sums.index_add_(0, batch.segment_of_target, batch.weights)
