"""What a step minimizes: a function of the model and a batch that returns sums.

A user's own objective is any callable of the same shape; it may return more in `LossSum.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatwright.batches.packed_batch import PackedBatch
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.losses.loss_sum import LossSum

Objective = Callable[[Any, PackedBatch], LossSum]


def next_token_nll(model: Any, batch: PackedBatch) -> LossSum:
    """Negative log-likelihood of the supervised tokens, weighted and summed (never averaged).

    Args:
        model: called as `model(input_ids, position_ids, layout) → (hidden [T, D], aux sums)`.
        batch: the packed batch; only its supervised positions reach the output head.
    """
    hidden, _ = model(batch.input_ids, batch.position_ids, batch.layout)
    return weighted_nll(hidden[batch.supervised_index], model.output_head(), batch.targets, batch.weights)


OBJECTIVES: dict[str, Objective] = {"next_token": next_token_nll}
