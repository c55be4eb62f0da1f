"""One optimizer step: micro-batches in, one gradient, one division.

Every rank adds up the gradients of its packs, one all-reduce sums over ranks, and the optimizer divides
once by the step's global weight. No mean is ever taken of a mean, so any split of a step into
micro-batches and ranks gives the same update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from chatwright.batches.loader import StepBatches
from chatwright.batches.packed_batch import PackedBatch
from chatwright.errors import TrainingError
from chatwright.losses.loss_sum import LossSum
from chatwright.runtime import Runtime, seed_for
from chatwright.templates.rendered import ExampleKey
from chatwright.train.objectives import Objective


class StepModule(nn.Module):
    """The model and its loss as one module, so that wrappers see one forward."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: PackedBatch) -> LossSum:
        """The batch's loss sums."""
        return self.objective(self.model, batch)


@dataclass(frozen=True, slots=True)
class StepSums:
    """What one step adds up to over all ranks.

    Args:
        loss: Σ weight · loss. weight: Σ weight.
        examples: the step's examples with (sum of their tokens' unweighted losses, supervised tokens).
        metrics: name → (sum, weight).
    """

    loss: float
    weight: float
    examples: tuple[tuple[ExampleKey, float, int], ...]
    metrics: dict[str, tuple[float, float]]


def accumulate_step(
    module: nn.Module, step: StepBatches, runtime: Runtime, *, seed: int, scale: float = 1.0
) -> StepSums:
    """Forward and backward of this rank's packs; gradients stay in the optimizer's buffer, undivided.

    Args:
        scale: multiplies the loss before the backward (fp16's loss scale); the sums are unscaled.

    Raises:
        TrainingError: a loss is not finite; names the rows. No parameter has been touched.
    """
    outcomes: list[tuple[PackedBatch, LossSum]] = []
    for index, batch in enumerate(step.packs):
        torch.manual_seed(seed_for(seed, step.step, runtime.rank + index * runtime.world_size))
        outcome = module(batch)
        (outcome.total * scale if scale != 1.0 else outcome.total).backward()
        outcomes.append((batch, outcome))
    return _sum_over_ranks(step, outcomes, runtime)


def _sum_over_ranks(step: StepBatches, outcomes: list[tuple[PackedBatch, LossSum]], runtime: Runtime) -> StepSums:
    """Add the ranks' losses in one small all-reduce, each example in a slot of its own."""
    slot_of = {key: index for index, key in enumerate(dict.fromkeys(step.keys))}
    slots = torch.zeros(3 + 2 * len(slot_of), dtype=torch.float64)  # loss, weight, number of metrics, examples
    per_example = slots[3:].view(-1, 2)
    for batch, outcome in outcomes:
        slots[0] += float(outcome.total.detach())
        slots[1] += outcome.weight
        slots[2] += len(outcome.metrics)
        sums = torch.zeros(len(batch.keys), 2, dtype=torch.float64)
        losses = outcome.per_token.cpu().double()  # this order: MPS has no float64
        sums.index_add_(0, batch.segment_of_target.cpu(), torch.stack([losses, torch.ones_like(losses)], dim=1))
        for key, row in zip(batch.keys, sums, strict=True):
            if key is not None:
                per_example[slot_of[key]] += row
    if runtime.world_size > 1:
        on_device = slots.to(runtime.messenger)
        runtime.all_reduce(on_device)
        slots.copy_(on_device)
    examples = tuple((key, row[0], int(row[1])) for key, row in zip(slot_of, per_example.tolist(), strict=True))
    _require_finite(step.step, float(slots[0]), examples)
    loss, weight, num_metrics = slots[:3].tolist()
    return StepSums(loss, weight, examples, _metric_sums(outcomes, runtime) if num_metrics else {})


def _metric_sums(outcomes: list[tuple[PackedBatch, LossSum]], runtime: Runtime) -> dict[str, tuple[float, float]]:
    """The objective's own sums over all ranks; a rank whose packs gave no such metric adds nothing to it."""
    names = runtime.union({name for _, outcome in outcomes for name in outcome.metrics})
    mine = [[outcome.metrics.get(name, (0.0, 0.0)) for _, outcome in outcomes] for name in names]
    sums = runtime.all_reduce_scalars([sum(pair[side] for pair in pairs) for pairs in mine for side in (0, 1)])
    return {name: (sums[2 * place], sums[2 * place + 1]) for place, name in enumerate(names)}


def _require_finite(step: int, loss: float, examples: tuple[tuple[ExampleKey, float, int], ...]) -> None:
    bad = [key for key, total, _ in examples if total != total or total in (float("inf"), float("-inf"))]
    if not bad and loss == loss and loss not in (float("inf"), float("-inf")):
        return
    rows = "\n".join(
        f"  {key.source}, row {key.row}, part {key.part}" for key in (bad or [e[0] for e in examples])[:10]
    )
    raise TrainingError(
        f"the loss of step {step + 1} is not finite ({loss}); the rows are:\n{rows}",
        hint="look at them with `chatwright inspect`; else lower optimizer.learning_rate or train in float32",
    )
