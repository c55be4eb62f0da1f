"""What is applied to a model from outside, in one order: activation checkpointing → equal start on every rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from chatwright.runtime import Runtime
from chatwright.train.objectives import Objective
from chatwright.train.settings import TrainSettings
from chatwright.train.step import StepModule


def prepare_module(model: nn.Module, objective: Objective, settings: TrainSettings, runtime: Runtime) -> nn.Module:
    """Wrap the model for training; parameter names and the model's own code stay as they are.

    Data parallelism needs no wrapper: gradients gather in one flat buffer that is all-reduced once a step.
    """
    owner: Any = model
    if settings.activation_checkpointing:
        owner.checkpoint_activations = True
    module: nn.Module = StepModule(model, objective)
    share_tensors(model.parameters(), runtime)
    return module


def share_tensors(tensors: Iterable[torch.Tensor], runtime: Runtime) -> None:
    """Give every rank rank 0's values, so that all start from the same bits."""
    if runtime.world_size == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            if runtime.rank != 0:
                tensor.zero_()
            runtime.all_reduce(tensor.data)
