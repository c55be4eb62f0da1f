"""From a recipe to the optimizer of a model: compute dtype, masters, and the parent's state for a warm start."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch

from chatwright.checkpoints.imports import ResolvedModel
from chatwright.checkpoints.tensors import STATE_NAME, TrainingState
from chatwright.console import note
from chatwright.errors import CheckpointError, ConfigError
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.optim.settings import EMBEDDING_PATTERN, PRESETS
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime


def build_optimizer(
    settings: RunSettings, model: CausalLM | ForeignLM, dtype: torch.dtype, runtime: Runtime
) -> MasterOptimizer:
    """Cast the model to its compute dtype; the optimizer keeps the trainable parameters at full precision.

    Raises:
        ConfigError: a rule matches nothing, or the preset's rates are for an untied model and this one is tied.
    """
    _require_untied(settings, model)
    exact = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.to(dtype)
    width = model.output_head().weight.shape[1]
    return MasterOptimizer(model.named_parameters(), settings.optimizer, exact, width=width, runtime=runtime)


def _require_untied(settings: RunSettings, model: CausalLM | ForeignLM) -> None:
    """nanochat's rate of the embedding, 0.2, would be the output layer's too, which it ruins."""
    preset = settings.optimizer.preset
    own = {rule["pattern"]: rule["learning_rate"] for rule in PRESETS[preset]["rules"]} if preset else {}
    head = model.output_head().weight
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() != head.data_ptr() or not fnmatchcase(name, EMBEDDING_PATTERN):
            continue
        for rule in settings.optimizer.rules:
            if own.get(rule.pattern) == rule.learning_rate is not None and fnmatchcase(name, rule.pattern):
                raise ConfigError(
                    [
                        f"optimizer.preset: {preset} gives the embedding the rate {rule.learning_rate}, which is for a "
                        "model with an output layer of its own; this model has one matrix for both: write "
                        "optimizer.rules: [] (both then get learning_rate), or rules of your own"
                    ],
                    source=settings.model or "model",
                )


def warm_start(optimizer: MasterOptimizer, settings: RunSettings, parent: ResolvedModel, runtime: Runtime) -> None:
    """Give the optimizer the parent's state where the recipe asks for it, and say what did not fit.

    Raises:
        CheckpointError: the model is no checkpoint with an optimizer state, or nothing of it fits.
    """
    if not settings.optimizer.warm_start:
        return
    folder = parent.checkpoint
    if folder is None or not (folder / f"{STATE_NAME}.json").is_file():
        raise CheckpointError(
            "optimizer.warm_start needs a parent that kept its optimizer state, and this model has none",
            place=parent.source,
            hint="give a run or one of its step folders as the model, or set optimizer.warm_start=false",
        )
    found = optimizer.warm_start(TrainingState.load(folder).optimizer)
    if runtime.is_main:
        note(f"optimizer, warm start: {found.in_words()}")
