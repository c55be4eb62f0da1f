"""The program in five build lines: recipe → data → model → trainer → train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.console import warn
from chatwright.errors import UserError
from chatwright.recipes.evaluation import plan_evaluations
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.optimizing import build_optimizer, warm_start
from chatwright.recipes.planning import learning_rate_multipliers
from chatwright.recipes.resuming import restore
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.saving import CheckpointWriter
from chatwright.recipes.stages import stage_of
from chatwright.recipes.stream_planning import plan_record
from chatwright.recipes.streaming import StreamedData, TrainingData
from chatwright.reports.markdown import write_run_report
from chatwright.run_folder import RunFolder
from chatwright.runtime import Runtime, compute_dtype
from chatwright.settings import dump_yaml
from chatwright.train.hooks import Hook, MetricsHook, ProgressHook, TensorBoardHook, WandbHook
from chatwright.train.objectives import Objective
from chatwright.train.trainer import Progress, Trainer, TrainResult


@dataclass(frozen=True, slots=True)
class RunTrainer:
    """A trainer with its run folder and the point to start from; `train()` runs it."""

    trainer: Trainer
    run: RunFolder
    start: Progress
    resumed_from: Path | None

    def train(self) -> TrainResult:
        """Train to the end of the plan (see `Trainer.train`); however it ends, report.md says how."""
        try:
            return self.trainer.train(self.start)
        finally:
            self.run.close()
            self._report()

    def _report(self) -> None:
        """Write report.md. What is trained is saved by now: a report that fails is no reason to lose a run."""
        if self.run.writes:
            try:
                write_run_report(self.run, RunSettings)
            except (UserError, OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
                warn(f"report.md was not written: {error}")


def build_trainer(
    settings: RunSettings,
    data: TrainingData,
    model: ModelSetup,
    runtime: Runtime,
    *,
    resume: bool = False,
    objective: Objective | None = None,
    hooks: Sequence[Hook] = (),
    show_progress: bool = True,
) -> RunTrainer:
    """Put a run together.

    Args:
        resume: go on from the run folder's newest complete checkpoint; a run without one begins anew.
        objective: what a step minimizes: the stage's, or a user's own callable of the same shape.
        hooks: a user's own hooks, called after the built-in ones.

    Raises:
        UserError: the run folder holds a run already and `resume` is False.
        CheckpointError: what is there was made by another recipe, model or template.
    """
    objective = objective or stage_of(settings).build_objective(settings, data, model, runtime)
    evaluations = plan_evaluations(settings, data, model.model, objective, runtime)  # what it lacks begins no run
    dtype = compute_dtype(settings.train.dtype, runtime.device)
    optimizer = build_optimizer(settings, model.model, dtype, runtime)
    checkpoint = latest_checkpoint(Path(settings.out), verify="full") if resume else None
    if checkpoint is None:
        warm_start(optimizer, settings, data.text.resolved, runtime)
    run = RunFolder.create(settings.out, dump_yaml(settings), resume=resume, ranks=runtime)
    start = Progress()
    if checkpoint is not None:
        start = restore(checkpoint, optimizer, settings, data, runtime)
    if runtime.is_main:
        run.truncate_after(start.step if checkpoint is not None else -1)
        if checkpoint is None or not isinstance(data, StreamedData):  # a stream is looked at where it begins
            run.write_plan(plan_record(settings, data))
    writer = CheckpointWriter(settings, data, model, optimizer, run, runtime, parent=checkpoint)
    schedule = learning_rate_multipliers(settings, data)
    trainer = Trainer(
        model=model.model,
        objective=objective,
        optimizer=optimizer,
        steps_from=lambda step: data.steps(step, runtime, _pad_to(settings, runtime)),
        num_steps=data.num_steps,
        schedule=schedule.__getitem__,
        settings=settings.train,
        runtime=runtime,
        save=writer.save,
        evaluations=evaluations,
        hooks=(*_own_hooks(settings, run, runtime, show_progress), *hooks),
    )
    return RunTrainer(trainer, run, start, checkpoint)


def _pad_to(settings: RunSettings, runtime: Runtime) -> int | None:
    """On an accelerator every pack has the same number of tokens, so that kernels and memory are reused."""
    return (
        settings.packing.tokens_per_pack if runtime.device.type != "cpu" and settings.packing.by != "examples" else None
    )


def _own_hooks(settings: RunSettings, run: RunFolder, runtime: Runtime, show_progress: bool) -> list[Hook]:
    if not runtime.is_main:
        return []
    hooks: list[Hook] = [MetricsHook(run, settings.train.log_every, nanochat_names=settings.tracking.nanochat_names)]
    if show_progress:
        hooks.append(ProgressHook())
    if settings.tracking.tensorboard:
        hooks.append(TensorBoardHook(run))
    if settings.tracking.wandb_project:
        hooks.append(WandbHook(run, settings.tracking.wandb_project, settings.model_dump(mode="json")))
    return hooks
