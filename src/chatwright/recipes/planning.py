"""What a run would do, without touching a weight: rows, tokens, steps, learning rates, parameters, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from chatwright.batches.token_store import TokenStore
from chatwright.inspection.contamination_account import ContaminationAccount, rows_met
from chatwright.inspection.ledger import Ledger
from chatwright.models.weights import read_config
from chatwright.optim.schedules import multipliers
from chatwright.recipes.data import RunData, TextSetup
from chatwright.recipes.joined_packs import NOT_EXACT
from chatwright.recipes.model_figures import model_figures
from chatwright.recipes.planned_sources import PlannedSource, planned_sources
from chatwright.recipes.reinforcement_settings import rl_account
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import TrainingData

MOST_REPEATS = 4
"""Sources that weights make an epoch see more often than this are warned of (Muennighoff et al. 2023)."""
SKIPPED_SHOWN = 5
"""Bad rows of an entry that are named; the ledger counts all."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The figures of a planned run. Memory in bytes; learning rates of up to 60 evenly spaced steps.

    What is counted by epoch is what an epoch of the mixture draws, on average. `contamination` says in a line what the
    rows were compared with.
    """

    rows: int
    examples: int
    heldout_examples: int
    tokens_per_epoch: int
    supervised_tokens_per_epoch: int
    supervised_share: float
    longest_example: int
    epochs: float
    steps: int
    packs: int
    tokens: int
    supervised_tokens: int
    packing_waste: float
    mean_tokens_per_step: float
    learning_rates: list[float]
    parameters: int | None
    trainable_parameters: int | None
    training_flops: float | None
    memory: dict[str, int] = field(default_factory=dict)
    sources: list[PlannedSource] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contamination: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def learning_rate_multipliers(settings: RunSettings, data: TrainingData) -> list[float]:
    """The schedule's multiplier of every step, by the planned fraction of supervised weight; of a stream, of steps."""
    return multipliers(settings.schedule, data.step_weights)


def shown_learning_rates(settings: RunSettings, data: TrainingData) -> list[float]:
    """The learning rates of up to 60 evenly spaced steps."""
    return some_rates(settings, learning_rate_multipliers(settings, data))


def some_rates(settings: RunSettings, multiplied: Sequence[float]) -> list[float]:
    """The learning rates at up to 60 evenly spaced ones of a schedule's multipliers."""
    peak = settings.optimizer.learning_rate * settings.optimizer.rate_factor
    places = np.unique(np.linspace(0, len(multiplied) - 1, min(60, len(multiplied))).astype(int))
    return [float(multiplied[place] * peak) for place in places]


def plan_run(settings: RunSettings, data: RunData) -> RunPlan:
    """The plan's figures.

    Raises:
        ModelError: the model's configuration can't be read.
    """
    store, plan = data.store, data.plan
    lengths = store.lengths
    drawn, epochs = plan.draws, max(plan.num_epochs, 1)
    tokens, supervised = int((drawn * lengths).sum()), int((drawn * store.supervised_counts).sum())
    steps_tokens, steps_supervised = plan.step_sums(lengths), plan.step_sums(store.supervised_counts)
    sources = planned_sources(settings, data)
    model = model_figures(settings, data.text, int(steps_tokens.max()))
    mean_length = float(lengths.mean())
    compared = contamination_account(settings, data.contamination, data.ledger)
    return RunPlan(
        rows=sum(entry.num_rows for entry in data.entries),
        examples=len(store),
        heldout_examples=len(data.heldout),
        tokens_per_epoch=round(tokens / epochs),
        supervised_tokens_per_epoch=round(supervised / epochs),
        supervised_share=supervised / max(tokens, 1),
        longest_example=int(lengths.max()),
        epochs=float(plan.num_epochs) if settings.train.epochs is None else settings.train.epochs,
        steps=plan.num_steps,
        packs=plan.num_packs,
        tokens=int(steps_tokens.sum()),
        supervised_tokens=int(steps_supervised.sum()),
        packing_waste=plan.waste(lengths).fraction,
        mean_tokens_per_step=float(steps_tokens.mean()),
        learning_rates=shown_learning_rates(settings, data),
        parameters=model.parameters,
        trainable_parameters=model.trainable,
        training_flops=model.flops(mean_length, float(steps_tokens.sum())),
        memory=model.memory,
        sources=sources,
        warnings=[
            *stage_notes(settings),
            *([] if settings.packing.exact else [NOT_EXACT]),
            *_warnings(data),
            *_repeated(sources),
            *([compared.warning] if compared.warning else []),
        ],
        contamination=compared.line,
    )


def stage_notes(settings: RunSettings) -> list[str]:
    """What figures of rows don't tell of the recipe's stage."""
    return [rl_account(settings.reinforcement, settings.packing.examples_per_step)] if settings.stage == "rl" else []


def contamination_account(
    settings: RunSettings, report: Mapping[str, Any] | None, ledger: Ledger
) -> ContaminationAccount:
    """What became of the comparison of a recipe's rows with evaluations; `report`: of `Rendered.contamination`."""
    chosen = settings.contamination
    return ContaminationAccount.of(report, ledger, drops=chosen is not None and chosen.on_hit == "drop")


def contamination_marks(settings: RunSettings, data: TrainingData) -> dict[str, int]:
    """Evaluation → rows of the training data that hold items of it; what a checkpoint carries on.

    Of a stream only what is left out is known: its rows are compared as they come, and not listed by evaluation.
    """
    chosen = settings.contamination
    drops = chosen is not None and chosen.on_hit == "drop"
    if isinstance(data, RunData):
        return rows_met(data.contamination, drops=drops)
    return rows_met(data.job.check.empty, drops=True) if drops and data.job.check is not None else {}


def _warnings(data: RunData) -> list[str]:
    """What can be done as asked, but may not be what was meant."""
    entries = (*data.entries, *data.heldout_entries)
    found = [f"{entry.name}: {count:,} rows {reason}" for entry in entries for reason, count in entry.notes.items()]
    found += [f"skipped {place}" for entry in entries for place in entry.skip_places[:SKIPPED_SHOWN]]
    if data.plan.joined:
        packs = np.add.reduceat(data.store.lengths[data.plan.members], data.plan.pack_starts[:-1])
        return found + longer_than_context(data.text, int(packs.max()), "a pack", "packing.tokens_per_pack")
    return found + longer_than_context(data.text, int(_sequence_lengths(data.store).max()))


def _sequence_lengths(store: TokenStore) -> np.ndarray:
    """int `[n]`, the tokens that the model sees in a row of each example: of a pair the longer side's."""
    worse = store.lengths - store.prompt_lengths - store.chosen_lengths
    return store.lengths - np.where(store.chosen_lengths > 0, np.minimum(store.chosen_lengths, worse), 0)


def _repeated(sources: Sequence[PlannedSource]) -> list[str]:
    """A warning for each source that the weights repeat so often that it is learned by heart."""
    return [
        f"{each.name} is seen {each.seen_an_epoch:.3g} times an epoch, so that the other sources get their weight: "
        "lower its weight, or set mixture.until: first"
        for each in sources
        if each.weight is not None and each.seen_an_epoch > MOST_REPEATS
    ]


def longer_than_context(
    text: TextSetup, longest: int, what: str = "the longest example", remedy: str = "max_tokens and set overflow"
) -> list[str]:
    """A warning where the longest sequence has more tokens than the model was made for."""
    context = context_length(text)
    if context is None or longest <= context:
        return []
    return [f"{what} has {longest:,} tokens in a row, but the model was made for {context:,}: lower {remedy}"]


def context_length(text: TextSetup) -> int | None:
    """How many tokens the model was made for, where its configuration says so."""
    context = read_config(text.resolved.folder).get("max_position_embeddings")
    return context if isinstance(context, int) else None
