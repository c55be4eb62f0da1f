"""The one training loop: full or adapter, one device or many, fresh or resumed.

It knows a model, an objective, an optimizer and a source of steps. It knows no template, no path
layout and no way to evaluate: those come in as hooks and callables.
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
from chatwright.errors import TrainingError
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.runtime import Runtime
from chatwright.train.evaluation import HELDOUT_LOSS, Evaluation, EvaluationPlan
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.objectives import OBJECTIVES, Objective
from chatwright.train.parallel import prepare_module, share_tensors
from chatwright.train.settings import TrainSettings
from chatwright.train.step import accumulate_step

FINISHED = "finished the plan"
STOPPED = "stopped by the user"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: all that the loop itself must remember (the optimizer keeps its own state).

    Args:
        step: steps done. tokens / supervised_tokens: trained on so far.
        best_value: the best value so far of the metric `best_metric`, None before the first evaluation behind a step.
        best_step: the step it was measured after, −1 before. worse_evaluations: those since then that were no better.
        last_value: the newest value of `best_metric`, measured after `last_step` steps; a checkpoint of then holds it.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    best_value: float | None = None
    best_metric: str = HELDOUT_LOSS
    best_step: int = -1
    worse_evaluations: int = 0
    last_value: float | None = None
    last_step: int = -1

    @property
    def is_best(self) -> bool:
        """Whether the weights as they are gave the best value."""
        return self.best_step == self.step


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How the loop ended: where it stands, what was measured last, and why it stopped.

    Args:
        loss: of the last step. evaluation: the last one, None where none was made.
        seconds: of the whole loop, `evaluation_seconds` of them for evaluations.
    """

    progress: Progress
    loss: float
    evaluation: Evaluation | None
    interrupted: bool
    seconds: float
    evaluation_seconds: float
    reason: str

    @property
    def heldout_loss(self) -> float | None:
        """The last evaluation's, where it was measured."""
        return self.evaluation.values.get(HELDOUT_LOSS) if self.evaluation else None


class Trainer:
    """Runs optimizer steps until the plan is done, a limit is met or the user stops it.

    Args:
        model: `forward(input_ids, positions, layout)` and `output_head()`.
        objective: returns the sums to minimize. optimizer: holds masters and the gradient buffer.
        steps_from: gives the steps of the plan from a step number on.
        num_steps: planned steps. schedule: step (from 0) → learning-rate multiplier.
        save: writes a checkpoint of the given progress and returns its folder.
        evaluations: when and how to evaluate; None for never.
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
        evaluations: EvaluationPlan | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.optimizer = optimizer
        self.steps_from = steps_from
        self.num_steps = num_steps
        self.schedule = schedule
        self.settings = settings
        self.runtime = runtime
        self.save = save
        self.evaluations = evaluations
        self.hooks = tuple(hooks) if runtime.is_main else ()
        self.module = prepare_module(model, objective, settings, runtime)
        share_tensors(optimizer.master_state().values(), runtime)
        # A user's own objective may weigh as it likes; ours must train exactly what the plan counted.
        ours = any(objective is each for each in OBJECTIVES.values())
        self.weighs_as_planned = ours or bool(getattr(objective, "weighs_as_planned", False))
        self.stop_requested = False
        self.steps_done = 0
        self.evaluation: Evaluation | None = None
        self.evaluation_seconds = 0.0

    def train(self, start: Progress | None = None) -> TrainResult:
        """Train from `start` (default: the beginning) to the end of the plan.

        Raises:
            TrainingError: a loss or gradient is not finite; the last checkpoint stays as it is.
        """
        progress = self._measured_by_plan(start or Progress())
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
        if progress.step == 0:
            self._evaluate(progress)  # there is no checkpoint of it: never the best
        if self._patience_is_over(progress):  # a run that ended so, resumed with the same patience
            return self._result(progress, loss, began, self._no_patience(progress))
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
            progress = self._evaluate(progress)
            if self._patience_is_over(progress):
                reason, last = self._no_patience(progress), True
            stopping = self._stop_agreed() and not last
            due = last or stopping or bool(self.settings.save_every and progress.step % self.settings.save_every == 0)
            if self.save and (due or self._keeps_best(progress)):
                self._checkpoint(progress)
            if stopping:
                reason = STOPPED
            if stopping or last:
                break
        return self._result(progress, loss, began, reason)

    def _result(self, progress: Progress, loss: float, began: float, reason: str) -> TrainResult:
        seconds = time.perf_counter() - began
        done = (self.evaluation, reason == STOPPED, seconds, self.evaluation_seconds)
        return TrainResult(progress, loss, *done, reason)

    def _one_step(self, step: StepBatches) -> StepRecord:
        """Gradients of all packs, one all-reduce, one division, one update."""
        began = time.perf_counter()
        multiplier = self.schedule(step.step)
        sums = accumulate_step(
            self.module, step, self.runtime, seed=self.settings.seed, scale=self.optimizer.loss_scale
        )
        weight = sums.weight + step.left_out
        planned = not self.weighs_as_planned or math.isclose(weight, step.weight, rel_tol=1e-6)
        assert planned, f"trained weight {weight} differs from the plan's {step.weight}"
        if not weight > 0:
            raise TrainingError(
                f"the objective gave step {step.step + 1} the weight {weight}: there is nothing to divide by",
                hint="return the sum of the weights in LossSum.weight",
            )
        norm = self._update(multiplier, weight) if sums.weight else 0.0  # a gradient of zero moves nothing
        if not math.isfinite(norm) and (not self.optimizer.skipped_last_step or self.optimizer.scaler.exhausted):
            raise TrainingError(
                f"the gradient of step {step.step + 1} is not finite although its loss is",
                hint="lower optimizer.learning_rate or train in float32",
            )
        record = StepRecord(
            step=step.step + 1,
            loss=sums.loss / weight,
            learning_rate=self.optimizer.learning_rate * multiplier,
            grad_norm=norm,
            tokens=step.num_tokens,
            supervised_tokens=step.supervised_tokens,
            seconds=time.perf_counter() - began + step.seconds,
            examples=sums.examples,
            metrics={name: total / max(of, 1e-12) for name, (total, of) in {**step.metrics, **sums.metrics}.items()},
            lr_multiplier=multiplier,
        )
        for hook in self.hooks:
            hook.on_step(record)
        return record

    def _update(self, multiplier: float, weight: float) -> float:
        """Sum the gradient over ranks, divide it by the step's weight, move; the gradient's norm."""
        self.runtime.all_reduce(self.optimizer.flat_gradient)
        return self.optimizer.step(lr_multiplier=multiplier, divide_by=weight)

    def _evaluate(self, progress: Progress) -> Progress:
        """Measure where the plan says so; what it says of the best."""
        plan = self.evaluations
        if plan is None or progress.step not in plan.steps:
            return progress
        began = time.perf_counter()
        for hook in self.hooks:
            hook.on_evaluation_start(progress.step)
        self.module.eval()
        try:
            found = plan.measure(progress.step)
        finally:
            self.module.train()
        found = replace(found, seconds=time.perf_counter() - began)
        self.evaluation, self.evaluation_seconds = found, self.evaluation_seconds + found.seconds
        for hook in self.hooks:
            hook.on_evaluation(found)
        value = found.values.get(plan.best) if plan.best is not None else None
        if value is None:  # not measured this time
            return progress
        progress = replace(progress, last_value=value, last_step=progress.step)
        if plan.better(value, progress.best_value):
            return replace(progress, best_value=value, best_step=progress.step, worse_evaluations=0)
        return replace(progress, worse_evaluations=progress.worse_evaluations + 1)

    def _measured_by_plan(self, progress: Progress) -> Progress:
        """What was the best by another metric, as before the recipe was changed, says nothing about this one."""
        metric = self.evaluations.best if self.evaluations else None
        if metric in (None, progress.best_metric):
            return progress
        return replace(
            progress,
            best_metric=metric,
            best_value=None,
            best_step=-1,
            worse_evaluations=0,
            last_value=None,
            last_step=-1,
        )

    def _keeps_best(self, progress: Progress) -> bool:
        """Early stopping ends behind the best weights, which must therefore be kept when they are found."""
        keeps = self.evaluations is not None and self.evaluations.keep_best
        return progress.is_best and (keeps or self.settings.early_stopping_patience is not None)

    def _patience_is_over(self, progress: Progress) -> bool:
        patience = self.settings.early_stopping_patience
        return bool(patience) and progress.worse_evaluations >= (patience or 0)

    def _no_patience(self, progress: Progress) -> str:
        rising = self.evaluations is not None and self.evaluations.higher_is_better
        return f"{progress.best_metric} stopped {'rising' if rising else 'falling'}"

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
