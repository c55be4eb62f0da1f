"""What each source gives to a run: rows, tokens, how often it is seen, and its part in the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chatwright.conversations.data_settings import DataSettings
from chatwright.recipes.data import RunData
from chatwright.recipes.run_settings import RunSettings


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """One data entry in the plan.

    Args:
        rows: read, of which `skipped` were bad; chosen: which rows the recipe takes, empty for all.
        changed: rows that each transform changed.
        examples, tokens, supervised_tokens: in one pass over the source. supervised_share: of its tokens.
        weight: as set, a share in rows; None where the recipe has no weights. epochs: as set.
        seen_an_epoch: how often an epoch draws each of its examples, on average.
        example_share: its part of all examples in packs, repeats counted.
        trained_supervised_tokens: over the whole plan.
        effective_weight: its part of the summed weight of all supervised tokens of the plan, and so of the gradient.
    """

    name: str
    format: str
    rows: int
    skipped: int
    chosen: str
    changed: dict[str, int]
    examples: int
    tokens: int
    supervised_tokens: int
    supervised_share: float
    weight: float | None
    epochs: int
    seen_an_epoch: float
    example_share: float
    trained_supervised_tokens: int
    effective_weight: float


def planned_sources(settings: RunSettings, data: RunData) -> list[PlannedSource]:
    """The figures of every data entry, in the order of the recipe."""
    store, plan, owner, count = data.store, data.plan, data.entry_index, len(data.entries)

    def by_source(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=count)

    placed, usable = plan.placed, by_source(plan.usable)
    examples, tokens, supervised = (by_source(v) for v in (np.ones(len(store)), store.lengths, store.supervised_counts))
    drawn, in_packs, trained = (by_source(v) for v in (plan.draws, placed, placed * store.supervised_counts))
    gradient = by_source(placed * store.weight_sums)
    return [
        PlannedSource(
            name=info.name,
            format=info.format,
            rows=info.num_rows,
            skipped=sum(info.skipped.values()),
            chosen=chosen_rows(entry),
            changed=info.changed,
            examples=int(examples[place]),
            tokens=int(tokens[place]),
            supervised_tokens=int(supervised[place]),
            supervised_share=float(supervised[place] / max(tokens[place], 1)),
            weight=entry.weight,
            epochs=entry.epochs,
            seen_an_epoch=float(drawn[place] / max(usable[place] * plan.num_epochs, 1)),
            example_share=float(in_packs[place] / max(in_packs.sum(), 1)),
            trained_supervised_tokens=int(trained[place]),
            effective_weight=float(gradient[place] / (gradient.sum() or 1.0)),
        )
        for place, (info, entry) in enumerate(zip(data.entries, _entries(settings, data), strict=True))
    ]


def chosen_rows(entry: DataSettings) -> str:
    """Which rows of a source a recipe takes, such as `rows 10:700:2, at most 300`; empty for all."""
    step = f":{entry.step}" if entry.step > 1 else ""
    sliced = entry.start is not None or entry.stop is not None or entry.step > 1
    parts = [f"rows {entry.start or 0}:{'' if entry.stop is None else entry.stop}{step}"] if sliced else []
    if entry.max_rows is not None:
        parts.append(f"at most {entry.max_rows:,}")
    return ", ".join(parts)


def _entries(settings: RunSettings, data: RunData) -> list[DataSettings]:
    """The recipe's entries; rows that were given in memory have settings of their own."""
    if [entry.name.split(" #")[0] for entry in data.entries] == [entry.source_name for entry in settings.data]:
        return list(settings.data)
    return [DataSettings(path=entry.name) for entry in data.entries]
