"""A run of a few steps with the real trainer, saved in its middle; the laws of resuming and saving share it."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.recipes.build import RunTrainer, build_trainer
from chatwright.recipes.model import build_model
from chatwright.selftest.context import Context
from chatwright.selftest.sample import RESUME_STEPS
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.objectives import next_token_nll
from chatwright.train.trainer import Progress

HALF = RESUME_STEPS // 2


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended.

    Args:
        state: sha256 of the bytes of every weight and optimizer tensor. losses: of each step, by step number.
        started_at: steps that were done before. checkpoint: what stands on the disk from its middle.
    """

    state: dict[str, str]
    losses: dict[int, float]
    started_at: int
    checkpoint: Path

    def differing(self, other: RunEnd) -> list[str]:
        """Names of the tensors and losses that differ, those of steps that only one run made left out."""
        tensors = [name for name in {**self.state, **other.state} if self.state.get(name) != other.state.get(name)]
        steps = sorted(self.losses.keys() & other.losses.keys())
        return tensors + [f"loss of step {step}" for step in steps if self.losses[step] != other.losses[step]]


class _Losses(Hook):
    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_step(self, record: StepRecord) -> None:
        self.by_step[record.step] = record.loss


def whole_run(context: Context) -> RunEnd:
    """The uninterrupted run, made once."""
    if "whole run" not in context.kept:
        context.kept["whole run"] = short_run(context)
    end: RunEnd = context.kept["whole run"]
    return end


def short_run(context: Context, *, resume: bool = False, name: str = "run") -> RunEnd:
    """Build everything anew, as a new process would, and train to the end; only the checkpoint of the middle is kept.

    Args:
        resume: go on from that checkpoint, as if the first run had been killed at its end.
        name: the run's folder.
    """
    torch.manual_seed(len(name) + resume)  # whatever state the process is in, the run must not depend on it
    settings = context.run_settings().model_copy(update={"out": str(context.folder / name)})
    data = context.sample.run_data
    model = build_model(settings, data.text, context.runtime)
    losses = _Losses()
    # A sample is rows or pairs, whatever the stage makes of them: another objective may need more than rows.
    objective = None if context.sample.pairs is not None else next_token_nll
    options: dict[str, Any] = {"objective": objective, "hooks": [losses], "show_progress": False}
    run = build_trainer(settings, data, model, context.runtime, resume=resume, **options)
    checkpoint = run.run.path / f"step-{HALF:06d}"
    run.trainer.save = None if resume else partial(_save_at_half, run, run.trainer.save)
    run.train()
    end = RunEnd(_digests(run.trainer.optimizer), losses.by_step, run.start.step, checkpoint)
    del run, model
    gc.collect()
    return end


def _save_at_half(run: RunTrainer, save: object, progress: Progress) -> Path:
    assert callable(save)
    folder = run.run.path / f"step-{progress.step:06d}"
    return save(progress) if progress.step == HALF else folder  # type: ignore[no-any-return]


def _digests(optimizer: MasterOptimizer) -> dict[str, str]:
    tensors = {**optimizer.master_state(), **{f"optimizer {k}": v for k, v in optimizer.state_dict().items()}}
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
