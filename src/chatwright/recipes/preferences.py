"""The stages over preference pairs: their data, and what they minimize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from chatwright.batches.pairs import collate_pairs
from chatwright.batches.token_store import TokenStore
from chatwright.losses.settings import DpoSettings, RewardSettings
from chatwright.preparation.crew import Crew
from chatwright.recipes.data import RunData, build_planned
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.reference import reference_log_probs
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.train.objectives import Objective
from chatwright.train.pair_objectives import DpoObjective, RewardObjective

if TYPE_CHECKING:
    from chatwright.recipes.streaming import TrainingData


def build_pairs(settings: RunSettings, sources: Mapping[str, Any] | None = None, crew: Crew | None = None) -> RunData:
    """Pairs, read, rendered and planned whole; see `build_planned`."""
    return as_pairs(build_planned(settings, sources, crew))


def as_pairs(data: RunData) -> RunData:
    """Data whose examples are pairs, laid out with shared prompts, each pair of weight 1."""
    return replace(
        data,
        store=_counted(data.store),
        heldout=_counted(data.heldout),
        collate=collate_pairs,
        collate_heldout=partial(collate_pairs, first=len(data.store)),
    )


def _counted(store: TokenStore) -> TokenStore:
    """The store with a weight of 1 for each pair: steps divide by pairs, and the schedule runs over pairs."""
    return replace(store, weight_sums=np.ones(len(store)))


def dpo_objective(settings: RunSettings, data: TrainingData, model: ModelSetup, runtime: Runtime) -> Objective:
    """The DPO loss against the model as it is now."""
    assert isinstance(data, RunData)
    return DpoObjective(reference_log_probs(settings, data, model, runtime), settings.dpo or DpoSettings())


def reward_objective(settings: RunSettings, data: TrainingData, model: ModelSetup, runtime: Runtime) -> Objective:
    """The pairwise loss of scores."""
    return RewardObjective(settings.reward or RewardSettings())
