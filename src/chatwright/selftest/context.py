"""What the laws share: the recipe, its sample, and the model, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatwright.adapters.lora import adapted_layers
from chatwright.batches.loader import StepBatches, step_batches
from chatwright.batches.packed_batch import PackedBatch
from chatwright.recipes.data import TextSetup, prepare_text
from chatwright.recipes.evaluation_settings import EvaluationSettings
from chatwright.recipes.model import ModelSetup, build_model
from chatwright.recipes.run_settings import RunSettings, TrackingSettings
from chatwright.runtime import Runtime, seed_for
from chatwright.selftest.sample import FULL, RESUME_STEPS, Sample, SampleSize, one_step_plan, take_sample

GRADIENT_COPIES = 4
"""How many gradients are alive at once when two are compared."""
STIR = 0.02
"""An untrained adapter changes nothing; its update is made this large, as a share of its layer's weight (norms)."""


@dataclass
class Context:
    """One selftest at work.

    Args:
        settings: the recipe. runtime: one process. folder: for files that are thrown away afterwards.
        full: look at more rows, and at more splits of a step. kept: what laws share, by name.
    """

    settings: RunSettings
    runtime: Runtime
    folder: Path
    full: bool = False
    kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def text(self) -> TextSetup:
        """The model's folder, tokenizer and template."""
        return prepare_text(self.settings)

    @cached_property
    def sample(self) -> Sample:
        """The examples that the laws are checked on."""
        return take_sample(self.settings, self.text, FULL if self.full else SampleSize())

    @cached_property
    def setup(self) -> ModelSetup:
        """The recipe's model in float32 (or float64), dropout off, what is still zero stirred; never trained."""
        setup = build_model(self.settings, self.text, self.runtime)
        stir_adapter(setup.model)
        if self.text.resolved.new:
            stir_zeros(setup.model)
        setup.model.eval()
        return setup

    @property
    def model(self) -> nn.Module:
        """The model of `setup`."""
        return self.setup.model

    @property
    def dtype(self) -> torch.dtype:
        """What the laws are computed in."""
        return next(self.model.parameters()).dtype

    @contextmanager
    def in_double(self) -> Iterator[torch.dtype]:
        """The model in float64 inside, where device and memory allow it; gives the dtype that it is in."""
        before, count = self.dtype, sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.setup.trainable.values())
        wanted = reference_dtype(self.runtime.device)
        fits = 8 * (count + GRADIENT_COPIES * trained) < free_memory(self.runtime.device)
        try:
            self.model.to(wanted if fits else before)
            yield self.dtype
        finally:
            self.model.to(before)

    def step(
        self,
        groups: list[list[int]],
        rank: int = 0,
        world_size: int = 1,
        pad_to: int | None = None,
        *,
        as_trained: bool = False,
    ) -> StepBatches:
        """A rank's batches of a step whose packs are `groups`.

        Args:
            as_trained: of preference pairs `groups` are pairs, as the trainer gets them, not their sides.
        """
        data = self.sample.run_data if as_trained else self.sample.data
        plan = one_step_plan(groups, data)
        made = step_batches(data.store, plan, 0, rank, world_size, pad_to, collate_with=data.collate)
        made.packs[:] = [pack.to(self.runtime.device) for pack in made.packs]
        return made

    def packed(self) -> PackedBatch:
        """All chosen examples in one pack."""
        return self.step([list(self.sample.members)]).packs[0]

    def run_settings(self) -> RunSettings:
        """The recipe as a run of `RESUME_STEPS` steps in the throw-away folder, without trackers or evaluation."""
        train = {
            "max_steps": RESUME_STEPS,
            "early_stopping_patience": None,
            "save_every": RESUME_STEPS // 2,
        }
        changes = {
            "out": str(self.folder / "run"),
            "tracking": TrackingSettings(),
            "eval": EvaluationSettings(at=()),
            "train": self.settings.train.model_copy(update=train),
        }
        return self.settings.model_copy(update=changes)


def reference_dtype(device: torch.device) -> torch.dtype:
    """The most exact dtype of a device."""
    return torch.float32 if device.type in ("mps", "npu") else torch.float64


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device; 8 GiB where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    facts = Path("/proc/meminfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else 8 * 2**30


@torch.no_grad()
def stir_adapter(model: nn.Module) -> None:
    """Give every adapter that still changes nothing an update of `STIR` times its weight's norm, seeded."""
    for name, layer in adapted_layers(model).items():
        if bool(layer.lora_B.any()):
            continue
        generator = torch.Generator().manual_seed(seed_for(0, "stir", name))
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator))
        size = float((layer.lora_B @ layer.lora_A).norm()) * layer.scale
        layer.lora_B.mul_(STIR * float(layer.frozen_weight().norm()) / size)


@torch.no_grad()
def stir_zeros(model: nn.Module) -> None:
    """Give every matrix of a new model that begins as zero (nanochat's) seeded weights, as large as a usual layer's.

    With them zero, no token would depend on another and every logit would be 0: no law could be broken.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            generator = torch.Generator().manual_seed(seed_for(0, "stir", name))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
