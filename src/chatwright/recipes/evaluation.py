"""Evaluation during training, as the trainer gets it: a model in memory → losses, scores and sample replies.

The ranks share the work. Each measures its part by itself, then all meet and add up: so none waits for a message of one
that failed, and a mistake that one finds ends all of them.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import nn

from chatwright.batches.collate import collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.packing.plan import plan_packs
from chatwright.preparation.crew import Crew
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import TrainingData
from chatwright.runtime import Runtime
from chatwright.train.evaluation import BITS_PER_BYTE, HELDOUT_LOSS, Evaluation, EvaluationPlan
from chatwright.train.objectives import Objective
from chatwright.train.step import StepModule
from chatwright.train.validation import HeldoutSums, heldout_sums


def plan_evaluations(
    settings: RunSettings, data: TrainingData, model: nn.Module, objective: Objective, runtime: Runtime
) -> EvaluationPlan | None:
    """What the recipe's `eval` asks for; None where it comes to nothing.

    Args:
        model: the model in training, measured as it is: its compute weights, nothing joined or copied.
    """
    chosen, has_heldout = settings.eval, settings.has_heldout
    steps, heldout = chosen.steps(data.num_steps), None
    if chosen.measures_heldout(has_heldout) and len(data.heldout):
        packs = heldout_packs(data, settings, runtime)
        sizes = torch.from_numpy(data.text.template.tokenizer.token_bytes)
        heldout = HeldoutMeasure(StepModule(model, objective), packs, sizes, runtime)
    if heldout is None or not steps:
        return None
    metrics, best = chosen.metrics(has_heldout=has_heldout), chosen.chosen_best(has_heldout=has_heldout)
    assert best is not None
    return EvaluationPlan(
        Evaluator(heldout, Crew.of(runtime)),
        steps,
        best,
        higher_is_better=metrics[best],
        keep_best=chosen.best is not None,
    )


def heldout_packs(data: TrainingData, settings: RunSettings, runtime: Runtime) -> list[PackedBatch]:
    """The held-out examples in packs, in the order of the data; this rank's share of them."""
    packing = settings.packing.model_copy(update={"by": "tokens", "shuffle": False})
    plan = plan_packs(data.heldout.lengths, packing, seed=0, epochs=1, name_of=data.heldout.name)
    mine = range(runtime.rank, plan.num_packs, runtime.world_size)
    return [collate(data.heldout, plan.pack(index)).to(runtime.device) for index in mine]


@dataclass(frozen=True, slots=True)
class HeldoutMeasure:
    """The held-out loss of this rank's packs, and that of all ranks."""

    module: nn.Module
    packs: list[PackedBatch]
    token_bytes: torch.Tensor
    runtime: Runtime

    def here(self) -> HeldoutSums:
        """This rank's share."""
        return heldout_sums(self.module, self.packs, self.token_bytes)

    def values(self, here: HeldoutSums) -> dict[str, float]:
        """The metrics, over all ranks."""
        sums = HeldoutSums(*self.runtime.all_reduce_scalars(astuple(here)))
        bits = sums.bits_per_byte
        return {HELDOUT_LOSS: sums.loss} | ({} if bits is None else {BITS_PER_BYTE: bits})


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Measures all that a recipe asks for."""

    heldout: HeldoutMeasure
    crew: Crew

    def __call__(self, step: int) -> Evaluation:
        """What the model as it is gives, the same on every rank.

        Raises:
            UserError: the model, its template or a task can't be measured so.
        """
        heldout = self.crew.together(self.heldout.here)
        return Evaluation(step, self.heldout.values(heldout))
