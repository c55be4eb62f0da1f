"""Score on held-out problems against seconds of training: what a learner sees a model become, and when.

    python bench/learning_curve.py letters --task letter_counting --every 5 --threads 2 --svg letters.svg

Trains by a recipe and stops the clock while it measures, so that the seconds are those of training alone (loading,
measuring and saving left out). Scores the same held-out problems each time, by the model's own replies with the
tools in the loop. Before and after it also measures what the training could have spoiled: ARC-Easy by the letters'
log-probabilities (`--arc`), and the loss on the recipe's held-out data, each compared in pairs with its interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.evaluation_settings import EvaluationSettings
from chatwright.recipes.model import ModelSetup, build_model
from chatwright.recipes.run_settings import load_recipe
from chatwright.recipes.talking import session_for
from chatwright.reports.document import Chart, Series
from chatwright.runtime import start_runtime
from chatwright.settings import dump_yaml
from chatwright.tasks.registry import make_task
from chatwright.train.hooks import Hook, StepRecord
from common import machine_facts, silence
from measures import (
    Replies,
    Scores,
    grade_letters,
    grade_replies,
    loss,
    loss_change,
    row_losses,
    share,
    share_change,
    write_chart,
)

ARC = "arc"


class Curve(Hook):
    """Measures at given seconds of training, with the clock stopped."""

    def __init__(self, measure: Any, every: float) -> None:
        self.measure, self.every = measure, every
        self.points: list[dict[str, Any]] = []
        self.seconds, self.tokens, self.supervised, self.steps = 0.0, 0, 0, 0
        self._lap = time.perf_counter()

    def on_start(self, first_step: int, num_steps: int) -> None:
        """The model before training."""
        self._measure(0, num_steps)

    def on_step(self, record: StepRecord) -> None:
        """Stop the clock; measure when it is time, and after the last step."""
        now = time.perf_counter()
        self.seconds += now - self._lap
        self.tokens += record.tokens
        self.supervised += record.supervised_tokens
        if record.step == self.steps or self.seconds >= len(self.points) * self.every:
            self._measure(record.step, self.steps)
        self._lap = time.perf_counter()

    def _measure(self, step: int, num_steps: int) -> None:
        self.steps = num_steps
        replies: Replies = self.measure()
        point = {"seconds": round(self.seconds, 2), "step": step, "tokens": self.tokens}
        more = {"supervised_tokens": self.supervised, **share(replies.right), "ended": int(replies.ended.sum())}
        self.points.append({**point, **more, "mean_reply_tokens": round(replies.mean_tokens, 1)})
        print(
            f"{self.seconds:6.1f} s  step {step:4d}  {point['tokens']:7,d} tokens  {more['right']}/{more['of']}",
            flush=True,
        )
        self._lap = time.perf_counter()


class Guards:
    """What training could spoil, measured on the same problems and rows before and after."""

    def __init__(self, data: RunData, model: ModelSetup, arc_count: int) -> None:
        self.data, self.model = data, model
        self.problems = make_task(ARC).conversations("test", arc_count) if arc_count else []

    def measure(self) -> tuple[Scores | None, Any]:
        """Letters right, and losses of held-out rows; None for what isn't asked for or there."""
        model, template = self.model.model, self.data.text.template
        letters = grade_letters(model, template, self.problems) if self.problems else None
        return letters, row_losses(model, self.data.heldout) if len(self.data.heldout) else None

    @staticmethod
    def compare(before: tuple[Scores | None, Any], after: tuple[Scores | None, Any]) -> dict[str, Any]:
        """Both values with their intervals, and the change with its own."""
        found: dict[str, Any] = {}
        if before[0] is not None and after[0] is not None:
            change = share_change(before[0], after[0])
            found["ARC-Easy, letters"] = {"before": share(before[0]), "after": share(after[0]), "change": change}
        if before[1] is not None:
            change = loss_change(before[1], after[1])
            found["held-out loss"] = {"before": loss(before[1]), "after": loss(after[1]), "change": change}
        return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train once and measure on the way."""
    settings = load_recipe(options.recipe, options.set or [])
    with tempfile.TemporaryDirectory() as folder:
        # Guards and the curve measure all there is; what the recipe itself measures would only take time.
        settings = settings.model_copy(
            update={"out": options.keep or f"{folder}/run", "eval": EvaluationSettings(at=())}
        )
        runtime = start_runtime(settings.train.device, options.threads or settings.train.threads)
        data = build_data(settings)
        assert isinstance(data, RunData), "a streamed recipe has no end to measure at"
        model = build_model(settings, data.text, runtime)
        task = make_task(options.task, **json.loads(options.task_options))
        problems = task.conversations("test", options.problems)
        sampling = SamplingSettings(max_new_tokens=options.max_new_tokens)

        def measure() -> Replies:
            return grade_replies(session_for(model.model, data.text.template, sampling), task, problems)

        curve, guards = Curve(measure, options.every), Guards(data, model, options.arc)
        trainer = build_trainer(settings, data, model, runtime, hooks=[curve], show_progress=False)
        if not options.keep:
            trainer.trainer.save = None
        before = guards.measure()
        trainer.train()
        return {
            "bench": "learning_curve",
            "recipe": options.recipe,
            "settings": dump_yaml(
                settings.model_copy(update={"out": "", "eval": EvaluationSettings()}), only_changed=True
            ),
            "task": options.task,
            "problems": len(problems),
            "points": curve.points,
            "guards": guards.compare(before, guards.measure()),
            "machine": machine_facts(),
        }


def chart_of(found: dict[str, Any], bar: float | None) -> Chart:
    """The curve, with the interval's two ends."""
    points = found["points"]
    lines = [
        Series("solved", tuple((each["seconds"], 100 * each["share"]) for each in points), dots=True),
        Series("interval, low end", tuple((each["seconds"], 100 * each["low"]) for each in points)),
        Series("high end", tuple((each["seconds"], 100 * each["high"]) for each in points)),
    ]
    if bar is not None:
        lines.append(Series(f"bar: {bar:g} %", ((0.0, bar), (points[-1]["seconds"], bar))))
    title = f"{found['task']}, {found['problems']} held-out problems"
    return Chart(title, "% solved, 95 % interval", tuple(lines), along="seconds of training")


def print_result(found: dict[str, Any]) -> None:
    """The curve and the guards as tables."""
    console = Console(highlight=False)
    table = Table("seconds", "step", "tokens", "solved", "share", "95 % interval", title=found["task"])
    for point in found["points"]:
        interval = f"{point['low']:.0%} to {point['high']:.0%}"
        solved = f"{point['right']}/{point['of']}"
        row = (f"{point['seconds']:.1f}", str(point["step"]), f"{point['tokens']:,}", solved)
        table.add_row(*row, f"{point['share']:.0%}", interval)
    console.print(table)
    for name, each in found["guards"].items():
        key = "share" if "share" in each["before"] else "nats_per_token"
        change = each["change"]
        console.print(
            f"{name}: {each['before'][key]:.3f} → {each['after'][key]:.3f}, change {change['value']:+.3f} "
            f"({change['low']:+.3f} to {change['high']:+.3f})"
        )


def main() -> None:
    """Read the options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe file or a shipped name")
    parser.add_argument("--task", required=True, help="the task that is scored")
    parser.add_argument("--task-options", default="{}", help="its options, as JSON")
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--every", type=float, default=5.0, help="seconds of training between two measurements")
    parser.add_argument("--arc", type=int, default=0, help="so many ARC-Easy questions, before and after")
    parser.add_argument("--bar", type=float, help="a line at so many percent in the picture")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", help="keep the trained model in this run folder, to chat with and compare")
    parser.add_argument("--set", action="append", help="a.b=value, changes the recipe")
    parser.add_argument("--out", help="write the result as JSON")
    parser.add_argument("--svg", help="write the curve as a picture")
    options = parser.parse_args()
    silence()
    found = run(options)
    print_result(found)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.svg:
        write_chart(options.svg, chart_of(found, options.bar))


if __name__ == "__main__":
    main()
