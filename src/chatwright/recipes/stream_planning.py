"""What can be known of a streamed run before it runs: its length, and what the readers' first windows hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from chatwright.inspection.ledger import Ledger
from chatwright.preparation.logical_reader import Window
from chatwright.recipes.data import RunData
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.model_figures import model_figures
from chatwright.recipes.planning import longer_than_context, plan_run, shown_learning_rates
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import StreamedData, TrainingData

UNKNOWN = (
    "a stream's rows, tokens and epochs aren't known before it is read; the learning rate runs over the number of steps"
)


@dataclass(frozen=True, slots=True)
class StreamedSource:
    """An entry in the readers' first windows.

    Args:
        asked_share: of the rows that are trained on, by weight.
        examples, tokens, supervised_tokens: in the windows. example_share: of all examples there.
        effective_weight: its part of the summed weight of all supervised tokens there.
    """

    name: str
    format: str
    asked_share: float
    examples: int
    tokens: int
    supervised_tokens: int
    example_share: float
    effective_weight: float


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The figures of a streamed run: sure ones first, then those of the readers' first windows.

    Args:
        steps: of the run. readers, window: how many logical readers plan how many examples at a time.
        most_tokens: of the whole run, if every pack were full; None where steps count examples.
        heldout_examples: measured on, never trained on.
        examples … packing_waste: of the first windows. mean_tokens_per_step: as full as there.
        tokens, supervised_tokens, training_flops: of the whole run, if all of it were as the first windows.
        parameters … memory: see `RunPlan`.
    """

    steps: int
    readers: int
    window: int
    most_tokens: int | None
    heldout_examples: int
    examples: int
    packs: int
    longest_example: int
    supervised_share: float
    packing_waste: float
    mean_tokens_per_step: float
    tokens: int
    supervised_tokens: int
    learning_rates: list[float]
    parameters: int | None
    trainable_parameters: int | None
    training_flops: float | None
    memory: dict[str, int] = field(default_factory=dict)
    sources: list[StreamedSource] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contamination: str = ""
    streaming: bool = True
    unknown: str = UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan_record(settings: RunSettings, data: TrainingData, hardware: Hardware | None = None) -> dict[str, Any]:
    """What `chatwright plan --json` gives and a run folder keeps: the plan and the ledger.

    Args:
        hardware: devices whose hours are told too, as `time` in the plan.
    """
    figures = plan_run(settings, data) if isinstance(data, RunData) else plan_stream(settings, data)
    ledger = data.ledger if isinstance(data, RunData) else first_ledger(data)
    time = {"time": hardware.account(figures.training_flops)} if hardware is not None else {}
    return {"plan": {**figures.to_dict(), **time}, "ledger": ledger.to_dict()}


def first_ledger(data: StreamedData) -> Ledger:
    """The account of what the readers read for their first windows."""
    total = Ledger()
    for window in data.windows():
        total.merge(window.ledger)
    return total


def plan_stream(settings: RunSettings, data: StreamedData) -> StreamPlan:
    """The stream's figures; reads what the first step needs, and one window of every other reader.

    Raises:
        DataError: a row of the first windows can't be used. ModelError: the model's configuration can't be read.
    """
    windows = data.windows()
    lengths = np.concatenate([window.store.lengths for window in windows])
    supervised = sum(int(window.store.supervised_counts.sum()) for window in windows)
    tokens, packing = int(lengths.sum()), settings.packing
    packs = sum(len(window.units.pack_starts) - 1 for window in windows)
    units = sum(window.units.num_units for window in windows)
    a_step = tokens / units * (packing.packs_per_step if packing.by == "tokens" else 1)
    in_all = a_step * data.num_steps
    full = packing.tokens_per_pack * packing.packs_per_step * data.num_steps
    model = model_figures(settings, data.text, packing.tokens_per_pack)
    compared = data.contamination(first_ledger(data))
    notes = [f"{name}: {count:,} rows {why}" for name, found in data.notes().items() for why, count in found.items()]
    return StreamPlan(
        steps=data.num_steps,
        readers=len(windows),
        window=data.job.window,
        most_tokens=full if packing.by == "tokens" else None,
        heldout_examples=len(data.heldout),
        examples=len(lengths),
        packs=packs,
        longest_example=int(lengths.max()),
        supervised_share=supervised / tokens,
        packing_waste=1 - tokens / (packs * packing.tokens_per_pack),
        mean_tokens_per_step=a_step,
        tokens=round(in_all),
        supervised_tokens=round(in_all * supervised / tokens),
        learning_rates=shown_learning_rates(settings, data),
        parameters=model.parameters,
        trainable_parameters=model.trainable,
        training_flops=model.flops(float(lengths.mean()), in_all),
        memory=model.memory,
        sources=_sources(data, windows),
        warnings=[
            *notes,
            *longer_than_context(data.text, int(lengths.max())),
            *([compared.warning] if compared.warning else []),
        ],
        contamination=compared.line,
    )


def _sources(data: StreamedData, windows: list[Window]) -> list[StreamedSource]:
    count = len(data.entries)

    def by_entry(name: str) -> np.ndarray:
        values = [np.ones(len(w.store)) if name == "examples" else getattr(w.store, name) for w in windows]
        return sum(np.bincount(w.owner, v, count) for w, v in zip(windows, values, strict=True)) + np.zeros(count)

    examples, tokens, supervised, weights = map(by_entry, ("examples", "lengths", "supervised_counts", "weight_sums"))
    asked = np.array([entry.weight for entry in data.job.entries])
    return [
        StreamedSource(
            name=info.name,
            format=info.format,
            asked_share=float(asked[place] / asked.sum()),
            examples=int(examples[place]),
            tokens=int(tokens[place]),
            supervised_tokens=int(supervised[place]),
            example_share=float(examples[place] / examples.sum()),
            effective_weight=float(weights[place] / (weights.sum() or 1.0)),
        )
        for place, info in enumerate(data.entries)
    ]
