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

    `repeated` are the draws of an example beyond its first, over all epochs; an example that no epoch drew is
    `unplaced`. What the plan was not to draw from (held-out examples) isn't counted.

    Args:
        ledger: counted into.
        plan: the run's packs.
        lengths: int `[n]`, tokens of each example.
        sources: the names. source_index: int `[n]`, each example's place in `sources`.
    """
    draws, placed = plan.draws, plan.placed
    again, packed = np.flatnonzero(draws > 1), np.flatnonzero(placed)
    _count(ledger, Stage.REPEATED, again, lengths, sources, source_index, times=draws[again] - 1)
    _count(ledger, Stage.PACKED, packed, lengths, sources, source_index, times=placed[packed])
    for each in plan.unplaced:
        reason = each.reason if each.epoch is None else f"{each.reason} (epoch {each.epoch + 1})"
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
    times: np.ndarray | None = None,
) -> None:
    """Count examples of any sources; `times` int `[n]` says how often each, else once."""
    each = np.ones(len(examples), dtype=np.int64) if times is None else times
    owner = source_index[examples]
    # sums of float64 are exact below 2^53
    rows = np.bincount(owner, weights=each, minlength=len(sources))
    tokens = np.bincount(owner, weights=each * lengths[examples], minlength=len(sources))
    for place in np.flatnonzero(rows).tolist():
        ledger.count(sources[place], stage, int(rows[place]), int(tokens[place]), reason)
