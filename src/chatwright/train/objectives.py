"""What a step minimizes: a function of the model and a batch that returns sums.

A user's own objective is any callable of the same shape; it may return more in `LossSum.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chatwright.batches.packed_batch import PackedBatch
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.losses.loss_sum import LossSum
from chatwright.losses.policy import policy_gradient_loss
from chatwright.train.auxiliary import with_auxiliary

Objective = Callable[[Any, PackedBatch], LossSum]


def next_token_nll(model: Any, batch: PackedBatch) -> LossSum:
    """Negative log-likelihood of the supervised tokens, weighted and summed (never averaged); experts' balance added.

    Args:
        model: called as `model(input_ids, position_ids, layout) → (hidden [T, D], aux sums)`.
        batch: the packed batch; only its supervised positions reach the output head.
    """
    hidden, aux = model(batch.input_ids, batch.position_ids, batch.layout)
    nll = weighted_nll(hidden[batch.supervised_index], model.output_head(), batch.targets, batch.weights)
    return with_auxiliary(nll, model, aux, batch)


ADVANTAGES, DRAWN_LOG_PROBS = "advantages", "drawn_log_probs"
"""What `policy_gradient` finds in `PackedBatch.per_token`; the second: log-probabilities that tokens were drawn by."""


def policy_gradient(model: Any, batch: PackedBatch) -> LossSum:
    """Minus the drawn tokens' log-probabilities, each times its reply's advantage, summed.

    A batch that wasn't drawn by the model, such as held-out data, has no advantages: then it's `next_token_nll`.

    Args:
        model, batch: as for `next_token_nll`.

    Returns:
        The sums; the metric `drawn_gap` is how far the log-probabilities are from those that the tokens were drawn
        by (mean of the absolute differences): rounding alone, if the replies are the model's own.
    """
    if ADVANTAGES not in batch.per_token:
        return next_token_nll(model, batch)
    hidden, aux = model(batch.input_ids, batch.position_ids, batch.layout)
    advantages = batch.per_token[ADVANTAGES]
    found = policy_gradient_loss(
        hidden[batch.supervised_index], model.output_head(), batch.targets, batch.weights, advantages
    )
    gap = (found.per_token + batch.per_token[DRAWN_LOG_PROBS]).abs().sum()
    found = replace(found, metrics={"drawn_gap": (float(gap), float(len(batch.targets)))})
    return with_auxiliary(found, model, aux, batch)


OBJECTIVES: dict[str, Objective] = {"next_token": next_token_nll, "policy_gradient": policy_gradient}
