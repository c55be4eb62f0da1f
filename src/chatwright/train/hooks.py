"""What happens beside the training itself: logs, traces, progress, trackers. A user's own hook subclasses `Hook`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chatwright.errors import UserError
from chatwright.run_folder import RunFolder
from chatwright.templates.rendered import ExampleKey
from chatwright.train.evaluation import HELDOUT_LOSS, Evaluation


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One finished step, summed over ranks.

    Args:
        step: steps done, this one included. loss: mean per unit of weight.
        lr_multiplier: the schedule's, which every parameter group's own rate is multiplied by.
        tokens / supervised_tokens: of this step. seconds: its wall time.
        examples: (key, sum of its tokens' losses, supervised tokens) of every example trained on.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float
    examples: tuple[tuple[ExampleKey, float, int], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    lr_multiplier: float = 1.0


class Hook:
    """Base of all hooks; every method does nothing until overridden. Called on the main rank only."""

    def on_start(self, first_step: int, num_steps: int) -> None:
        """Training begins with step `first_step` of `num_steps`."""

    def on_step(self, record: StepRecord) -> None:
        """A step is done."""

    def on_evaluation_start(self, step: int) -> None:
        """The model as it is after `step` steps is going to be evaluated."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """The model was evaluated."""

    def on_save(self, folder: Path) -> None:
        """A checkpoint is complete."""

    def on_end(self, step: int) -> None:
        """Training is over: finished, interrupted or failed (an error is on its way)."""


class MetricsHook(Hook):
    """Appends each step and evaluation to `metrics.jsonl`, examples to `trace.jsonl`, replies to `samples.jsonl`.

    Args:
        log_every: write every so many steps.
        nanochat_names: log `lrm` and `num_tokens` as well, nanochat's names for the learning rate's multiplier and the
            supervised tokens of a step.
    """

    def __init__(self, run: RunFolder, log_every: int = 1, *, nanochat_names: bool = False) -> None:
        self.run = run
        self.log_every, self.nanochat_names = log_every, nanochat_names

    def on_step(self, record: StepRecord) -> None:
        """Write the step's line, and the line that `chatwright trace` reads."""
        examples = [[*key, round(total, 6), count] for key, total, count in record.examples]
        self.run.append_trace({"step": record.step, "examples": examples})
        if record.step % self.log_every == 0 or record.step == 1:
            named = {"lrm": record.lr_multiplier, "num_tokens": record.supervised_tokens}
            self.run.append_metrics(
                {
                    **record.metrics,  # a user's metric never hides one of ours
                    "step": record.step,
                    "loss": record.loss,
                    "learning_rate": record.learning_rate,
                    "grad_norm": record.grad_norm,
                    "tokens": record.tokens,
                    "supervised_tokens": record.supervised_tokens,
                    "supervised_share": record.supervised_tokens / max(record.tokens, 1),
                    "seconds": round(record.seconds, 4),
                    **(named if self.nanochat_names else {}),
                }
            )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Write one line: losses by name, scores with their counts; and a line for each sample reply."""
        losses = {name: value for name, value in evaluation.values.items() if name not in evaluation.scores}
        scores = {name: {"points": each.points, "total": each.total} for name, each in evaluation.scores.items()}
        seconds = round(evaluation.seconds, 4)
        self.run.append_metrics({"step": evaluation.step, **losses, "scores": scores, "seconds": seconds})
        for prompt, reply in evaluation.samples:
            self.run.append_sample({"step": evaluation.step, "prompt": prompt, "reply": reply})


class TensorBoardHook(Hook):
    """Scalars for TensorBoard under the run folder (extra `track`)."""

    def __init__(self, run: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("tracking with TensorBoard needs it installed", hint="pip install tensorboard") from None
        self.open: Any = partial(SummaryWriter, str(run.path / "tensorboard"))
        self.writer: Any = None

    def on_start(self, first_step: int, num_steps: int) -> None:
        """Open the event file; steps that a crashed run wrote beyond its checkpoint are taken back."""
        self.writer = self.open(purge_step=first_step + 1 if first_step else None)

    def on_step(self, record: StepRecord) -> None:
        """Loss, learning rate, gradient norm and speed."""
        values = {"loss": record.loss, "learning_rate": record.learning_rate, "grad_norm": record.grad_norm}
        values["supervised_tokens_per_second"] = record.supervised_tokens / max(record.seconds, 1e-9)
        for name, value in (values | record.metrics).items():
            self.writer.add_scalar(f"train/{name}", value, record.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Every metric, and the sample replies as text."""
        for name, value in evaluation.values.items():
            self.writer.add_scalar(f"evaluation/{name}", value, evaluation.step)
        for place, (prompt, reply) in enumerate(evaluation.samples):
            self.writer.add_text(f"samples/{place}", f"{prompt}\n\n{reply}", evaluation.step)

    def on_end(self, step: int) -> None:
        """Close the event file."""
        self.writer.close()


class WandbHook(Hook):
    """Weights & Biases (extra `track`); `WANDB_MODE=offline` works without a network."""

    def __init__(self, run: RunFolder, project: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("tracking with wandb needs it installed", hint="pip install wandb") from None
        os.environ.setdefault("WANDB_SILENT", "true")
        self.session: Any = wandb.init(
            project=project, dir=str(run.path), config=config, name=run.path.name, resume="allow"
        )

    def on_step(self, record: StepRecord) -> None:
        """Loss, learning rate and gradient norm."""
        values = {"loss": record.loss, "learning_rate": record.learning_rate, "grad_norm": record.grad_norm}
        self.session.log(values | record.metrics, step=record.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Every metric."""
        self.session.log({f"evaluation/{name}": each for name, each in evaluation.values.items()}, step=evaluation.step)

    def on_end(self, step: int) -> None:
        """Finish the session."""
        self.session.finish()


class ProgressHook(Hook):
    """A progress bar with loss, rate and remaining time on a terminal, plain lines elsewhere."""

    def __init__(self, description: str = "training") -> None:
        from chatwright.console import ProgressLine

        self.line = ProgressLine(description)
        self.evaluated = ""
        self.started = time.perf_counter()
        self.supervised = 0
        self.seconds = 0.0

    def on_start(self, first_step: int, num_steps: int) -> None:
        """Show the bar."""
        self.line.start(done=first_step, total=num_steps)

    def on_step(self, record: StepRecord) -> None:
        """Move the bar; the rate is in supervised tokens per second over the whole run so far."""
        self.supervised += record.supervised_tokens
        self.seconds += record.seconds
        rate = self.supervised / max(self.seconds, 1e-9)
        reward = record.metrics.get("reward")  # of reinforcement, whose loss says nothing
        told = f"loss {record.loss:.3f}" if reward is None else f"reward {reward:.3f}"
        note = f"{told} · {rate:,.0f} supervised tokens/s"
        self.line.update(record.step, note + self.evaluated)

    def on_evaluation_start(self, step: int) -> None:
        """Say why no step is done for a while."""
        self.line.update(step, "evaluating")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Remember the held-out loss and the scores for the bar."""
        loss = evaluation.values.get(HELDOUT_LOSS)
        told = [] if loss is None else [f"held-out {loss:.3f}"]
        told += [f"{name} {score.mean:.0%}" for name, score in evaluation.scores.items()]
        self.evaluated = "".join(f" · {each}" for each in told)

    def on_end(self, step: int) -> None:
        """Close the bar."""
        self.line.stop()
