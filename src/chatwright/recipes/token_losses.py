"""The loss of every trained token of some examples, under a run's model as it began and as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.console import progress
from chatwright.errors import CheckpointError
from chatwright.recipes.data import prepare_text
from chatwright.recipes.model import build_model, load_weights
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.runtime import Runtime
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import Template
from chatwright.train.objectives import next_token_nll

TokenLosses = list[dict[int, float]]
"""For each example: position of a trained token → its loss in nats."""


class BeforeAfter(NamedTuple):
    """Losses under both models; `before_name` and `after_name` say which they are."""

    before: TokenLosses
    after: TokenLosses
    before_name: str
    after_name: str


@torch.no_grad()
def token_losses(model: Any, examples: Sequence[RenderedExample], device: torch.device | str = "cpu") -> TokenLosses:
    """The trainer's own loss of each trained token, one example at a time.

    Args:
        model: float32, in evaluation mode.
        examples: with their masks; one without a trained token gives an empty dict.
    """
    found: TokenLosses = []
    store = TokenStore.from_examples(examples)
    with progress(len(store), "losses of the shown tokens", "examples") as bar:
        for number in range(len(store)):
            places = np.flatnonzero(store.example(number)[1][1:]) + 1
            losses: list[float] = []
            if len(places):
                losses = next_token_nll(model, collate(store, [number]).to(device)).per_token.tolist()
            found.append(dict(zip(places.tolist(), losses, strict=True)))
            bar.advance()
    return found


def losses_before_and_after(
    run: str, template: Template, examples: Sequence[RenderedExample], runtime: Runtime
) -> BeforeAfter:
    """Losses under the model that a run began with, new token rows and all, and under its newest checkpoint.

    Args:
        run: a run folder. template: what rendered the examples.

    Raises:
        CheckpointError: there is no complete checkpoint, or the run was trained with another template.
    """
    resolved = resolve_model(run)
    settings = load_recipe(run)
    text = prepare_text(settings)
    if text.template.identity != template.identity:
        raise CheckpointError(
            f"was trained with another template (identity {text.template.identity[:12]}) than these rows are shown "
            f"with ({template.identity[:12]}); the losses would mean nothing",
            place=run,
            hint="inspect with the run's own recipe: `chatwright inspect RUN/recipe.yaml --html … --run RUN`",
        )
    began = build_model(_in_float32(settings), text, runtime).model.eval()
    before = token_losses(began, examples, runtime.device)
    del began
    ended = load_weights(resolved, torch.float32, runtime.device).eval()
    return BeforeAfter(before, token_losses(ended, examples, runtime.device), settings.model_name, _name(resolved, run))


def _in_float32(settings: RunSettings) -> RunSettings:
    return settings.model_copy(update={"train": settings.train.model_copy(update={"dtype": "float32"})})


def _name(resolved: ResolvedModel, run: str) -> str:
    return f"{run} ({resolved.checkpoint.name})" if resolved.checkpoint is not None else run
