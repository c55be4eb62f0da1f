"""Count a packing plan into the ledger: what each source gave to the packs, and to the steps that were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatwright.inspection.ledger import Ledger, Stage
from chatwright.packing.pack_plan import PackPlan


def count_plan(
    ledger: Ledger, plan: PackPlan, lengths: np.ndarray, sources: Sequence[str], source_index: np.ndarray
) -> None:
    """Count `repeated`, `packed` and `unplaced` for a plan over examples that were all counted as `kept`.

    Args:
        ledger: counted into.
        plan: the run's packs.
        lengths: int `[n]`, tokens of each example.
        sources: the names. source_index: int `[n]`, each example's place in `sources`.
    """
    everything = np.arange(plan.num_examples)
    for _ in range(plan.num_epochs - 1):
        _count(ledger, Stage.REPEATED, everything, lengths, sources, source_index)
    _count(ledger, Stage.PACKED, plan.members, lengths, sources, source_index)
    for each in plan.unplaced:
        reason = f"{each.reason} (epoch {each.epoch + 1})"
        _count(ledger, Stage.UNPLACED, each.examples, lengths, sources, source_index, reason)


def count_trained(
    ledger: Ledger, examples: np.ndarray, lengths: np.ndarray, sources: Sequence[str], source_index: np.ndarray
) -> None:
    """Count the examples of finished steps, such as `plan.examples_of_step(step)`, as `trained`."""
    _count(ledger, Stage.TRAINED, examples, lengths, sources, source_index)


def _count(
    ledger: Ledger,
    stage: Stage,
    examples: np.ndarray,
    lengths: np.ndarray,
    sources: Sequence[str],
    source_index: np.ndarray,
    reason: str | None = None,
) -> None:
    owner = source_index[examples]
    rows = np.bincount(owner, minlength=len(sources))
    tokens = np.bincount(owner, weights=lengths[examples], minlength=len(sources))  # exact below 2^53
    for place in np.flatnonzero(rows).tolist():
        ledger.count(sources[place], stage, int(rows[place]), int(tokens[place]), reason)
