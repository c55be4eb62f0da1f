"""The one training loop: full or adapter, one device or many, fresh or resumed.

It knows a model, an objective, an optimizer and a source of steps. It knows no template, no path
layout and no evaluation beyond the held-out loss: those come in as hooks and callables.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from chatwright.batches.loader import StepBatches
from chatwright.batches.packed_batch import PackedBatch
from chatwright.errors import TrainingError
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.runtime import Runtime
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.objectives import OBJECTIVES, Objective
from chatwright.train.parallel import prepare_module, share_tensors
from chatwright.train.settings import TrainSettings
from chatwright.train.step import accumulate_step
from chatwright.train.validation import heldout_loss

FINISHED = "finished the plan"
NO_PATIENCE = "the held-out loss stopped falling"
STOPPED = "stopped by the user"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: all that the loop itself must remember (the optimizer keeps its own state).

    Args:
        step: steps done. tokens / supervised_tokens: trained on so far.
        best_loss: the lowest held-out loss so far, infinite before the first evaluation. best_step: the step it was
            measured after, −1 before.
        worse_evaluations: evaluations since then that were no better.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    best_loss: float = math.inf
    worse_evaluations: int = 0
    best_step: int = -1

    @property
    def is_best(self) -> bool:
        """Whether the weights as they are gave the lowest held-out loss."""
        return self.best_step == self.step


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How the loop ended: where it stands, the newest losses, and why it stopped."""

    progress: Progress
    loss: float
    heldout_loss: float | None
    interrupted: bool
    seconds: float
    reason: str


class Trainer:
    """Runs optimizer steps until the plan is done, a limit is met or the user stops it.

    Args:
        model: `forward(input_ids, positions, layout)` and `output_head()`.
        objective: returns the sums to minimize. optimizer: holds masters and the gradient buffer.
        steps_from: gives the steps of the plan from a step number on.
        num_steps: planned steps. schedule: step (from 0) → learning-rate multiplier.
        save: writes a checkpoint of the given progress and returns its folder.
        heldout: packs for the held-out loss; empty for none.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        optimizer: MasterOptimizer,
        steps_from: Callable[[int], Iterable[StepBatches]],
        num_steps: int,
        schedule: Callable[[int], float],
        settings: TrainSettings,
        runtime: Runtime,
        save: Callable[[Progress], Path] | None = None,
        heldout: Sequence[PackedBatch] = (),
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.optimizer = optimizer
        self.steps_from = steps_from
        self.num_steps = num_steps
        self.schedule = schedule
        self.settings = settings
        self.runtime = runtime
        self.save = save
        self.heldout = tuple(heldout)
        self.hooks = tuple(hooks) if runtime.is_main else ()
        self.module = prepare_module(model, objective, settings, runtime)
        share_tensors(optimizer.master_state().values(), runtime)
        # A user's own objective may weigh as it likes; ours must train exactly what the plan counted.
        self.weighs_as_planned = objective in OBJECTIVES.values()
        self.stop_requested = False
        self.steps_done = 0

    def train(self, start: Progress | None = None) -> TrainResult:
        """Train from `start` (default: the beginning) to the end of the plan.

        Raises:
            TrainingError: a loss or gradient is not finite; the last checkpoint stays as it is.
        """
        progress = start or Progress()
        self.steps_done = progress.step
        self.module.train()
        for hook in self.hooks:
            hook.on_start(progress.step, self.num_steps)
        try:
            with self._listening_for_stop():
                return self._run(progress)
        finally:
            for hook in self.hooks:
                hook.on_end(self.steps_done)

    def _run(self, progress: Progress) -> TrainResult:
        """The loop: step, evaluate, save, until the plan, the patience or the user ends it."""
        began, loss, reason = time.perf_counter(), math.nan, FINISHED
        heldout = None
        if progress.step == 0 and self.heldout:
            self._measure_heldout(0)
        if self._patience_is_over(progress):  # a run that ended so, resumed with the same patience
            return TrainResult(progress, loss, heldout, False, 0.0, NO_PATIENCE)
        for step in self.steps_from(progress.step):
            record = self._one_step(step)
            loss = record.loss
            progress = replace(
                progress,
                step=record.step,
                tokens=progress.tokens + record.tokens,
                supervised_tokens=progress.supervised_tokens + record.supervised_tokens,
            )
            self.steps_done = progress.step
            last = progress.step == self.num_steps
            if self._due(self.settings.evaluate_every, progress.step, last) and self.heldout:
                heldout, progress = self._evaluate(progress)
            if self._patience_is_over(progress):
                reason, last = NO_PATIENCE, True
            stopping = self._stop_agreed() and not last
            if self.save and (
                self._due(self.settings.save_every, progress.step, last or stopping) or self._keeps_best(progress)
            ):
                self._checkpoint(progress)
            if stopping:
                reason = STOPPED
            if stopping or last:
                break
        return TrainResult(progress, loss, heldout, reason == STOPPED, time.perf_counter() - began, reason)

    @staticmethod
    def _due(every: int | None, step: int, last: bool) -> bool:
        return last or bool(every and step % every == 0)

    def _one_step(self, step: StepBatches) -> StepRecord:
        """Gradients of all packs, one all-reduce, one division, one update."""
        began = time.perf_counter()
        multiplier = self.schedule(step.step)
        sums = accumulate_step(
            self.module, step, self.runtime, seed=self.settings.seed, scale=self.optimizer.loss_scale
        )
        planned = not self.weighs_as_planned or math.isclose(sums.weight, step.weight, rel_tol=1e-6)
        assert planned, f"trained weight {sums.weight} differs from the plan's {step.weight}"
        if not sums.weight > 0:
            raise TrainingError(
                f"the objective gave step {step.step + 1} the weight {sums.weight}: there is nothing to divide by",
                hint="return the sum of the weights in LossSum.weight",
            )
        self.runtime.all_reduce(self.optimizer.flat_gradient)
        norm = self.optimizer.step(lr_multiplier=multiplier, divide_by=sums.weight)
        if not math.isfinite(norm) and (not self.optimizer.skipped_last_step or self.optimizer.scaler.exhausted):
            raise TrainingError(
                f"the gradient of step {step.step + 1} is not finite although its loss is",
                hint="lower optimizer.learning_rate or train in float32",
            )
        record = StepRecord(
            step=step.step + 1,
            loss=sums.loss / sums.weight,
            learning_rate=self.optimizer.learning_rate * multiplier,
            grad_norm=norm,
            tokens=step.num_tokens,
            supervised_tokens=step.supervised_tokens,
            seconds=time.perf_counter() - began,
            examples=sums.examples,
            metrics={name: total / max(weight, 1e-12) for name, (total, weight) in sums.metrics.items()},
        )
        for hook in self.hooks:
            hook.on_step(record)
        return record

    def _measure_heldout(self, step: int) -> float:
        loss, _ = heldout_loss(self.module, self.heldout, self.runtime)
        for hook in self.hooks:
            hook.on_evaluation(step, loss)
        return loss

    def _evaluate(self, progress: Progress) -> tuple[float, Progress]:
        loss = self._measure_heldout(progress.step)
        if loss < progress.best_loss:
            return loss, replace(progress, best_loss=loss, best_step=progress.step, worse_evaluations=0)
        return loss, replace(progress, worse_evaluations=progress.worse_evaluations + 1)

    def _keeps_best(self, progress: Progress) -> bool:
        """Early stopping ends behind the best weights, which must therefore be kept when they are found."""
        return progress.is_best and self.settings.early_stopping_patience is not None

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.settings.early_stopping_patience
        return bool(patience) and progress.worse_evaluations >= (patience or 0)

    def _checkpoint(self, progress: Progress) -> None:
        assert self.save is not None
        folder = self.save(progress)
        for hook in self.hooks:
            hook.on_save(folder)

    def _stop_agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks answer alike."""
        if self.runtime.world_size == 1:
            return self.stop_requested
        flag = torch.tensor([float(self.stop_requested)], device=self.runtime.device)
        self.runtime.all_reduce(flag)
        agreed = bool(flag.item())
        # a signal may have come while the ranks talked: it counts behind the next step
        self.stop_requested = self.stop_requested or agreed
        return agreed

    @contextmanager
    def _listening_for_stop(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the step, saves and stops; the second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
