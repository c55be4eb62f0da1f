"""What is measured while a run trains: when, by which metric its best checkpoint is told, and what came out.

How it's measured, `recipes` knows: the trainer gets a callable, since this room never imports evals or inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HELDOUT_LOSS = "heldout_loss"
"""Nats a unit of weight over the held-out conversations."""
BITS_PER_BYTE = "heldout_bits_per_byte"
"""The same in bits a byte of supervised text, which tokenizers can be compared by."""
LOSSES = (HELDOUT_LOSS, BITS_PER_BYTE)
"""The metrics of which less is better; more of all others is."""
PAIR_METRICS = (HELDOUT_LOSS, "heldout_accuracy", "heldout_margin")
"""What is measured on held-out preference pairs, of what can tell the best checkpoint."""


@dataclass(frozen=True, slots=True)
class Score:
    """Points of `total` problems, one for a problem that was solved in full."""

    points: float
    total: int

    @property
    def mean(self) -> float:
        """Points a problem."""
        return self.points / self.total


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured after `step` steps, the same on every rank.

    Args:
        values: metric → value; of a task with a score, its mean.
        scores: metric → points and problems, of those metrics that are a mean over problems.
        samples: (prompt, reply) of every prompt of the recipe.
        seconds: the time it took.
    """

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    samples: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """When to evaluate and how.

    Args:
        measure: gives what is measured after so many steps. Called on all ranks; it finds the model in evaluation
            mode and must leave its weights and gradients alone.
        steps: the steps after which to measure; 0 is before training.
        best: the metric that tells the best checkpoint and is early stopping's, one of those measured; None for none.
        higher_is_better: as for scores, and not for losses.
        keep_best: save a checkpoint whenever a better one is found, also between those that are saved anyway.
    """

    measure: Callable[[int], Evaluation]
    steps: frozenset[int]
    best: str | None = HELDOUT_LOSS
    higher_is_better: bool = False
    keep_best: bool = False

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best so far; one that is no number never does, and a draw doesn't."""
        if math.isnan(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)
