"""What was measured while a run trained: scores by step with their intervals, and the sample replies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatwright.console import duration
from chatwright.errors import ConfigError
from chatwright.evals.statistics import wilson
from chatwright.inspection.evaluation_texts import evaluation_name
from chatwright.reports.document import Chart, Section, Series, Table
from chatwright.reports.run_record import Evaluation, LoggedScore, RunRecord
from chatwright.tasks.registry import make_task

STEPS_SHOWN = 4
"""So many columns of sample replies stand side by side: the first, the last, and some between."""
REPLY_CHARACTERS = 400


def evaluation_section(run: RunRecord) -> Section:
    """Every evaluation: losses, and of each task the share of its points with a 95 % interval (Wilson)."""
    names = score_names(run)
    losses = any(each.heldout_loss is not None for each in run.evaluations)
    heads = ("step", *(("held-out loss", "bits per byte") if losses else ()), *names, "time")
    rows = [
        (
            f"{each.step:,}" + (" (best)" if each.step == run.best_step else ""),
            *((_figure(each.heldout_loss), _figure(each.heldout_bits_per_byte)) if losses else ()),
            *(score_words(each.scores.get(name)) for name in names),
            f"{each.seconds:.1f} s",
        )
        for each in run.evaluations
    ]
    if names:
        rows.append(("met in training", *(("", "") if losses else ()), *(_met(run, name) for name in names), ""))
    return Section("evaluations", "Evaluations", _lead(run, names), (Table(heads, tuple(rows)),))


def _lead(run: RunRecord, names: Sequence[str]) -> str:
    spent = sum(each.seconds for each in run.evaluations)
    parts = [f"{len(run.evaluations)} evaluations took {duration(spent)}{_share(run, spent)}."]
    if names:
        sizes = {name: next(e.scores[name].total for e in run.evaluations if name in e.scores) for name in names}
        counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        parts.append(f"Points in percent with the 95 % interval; problems: {counts}.")
    return " ".join(parts)


def _share(run: RunRecord, spent: float) -> str:
    """Their part of the time, where not every step may be logged."""
    if not run.steps:
        return ""
    steps = sum(each.seconds for each in run.steps) / len(run.steps) * run.steps[-1].step
    return f", {spent / max(spent + steps, 1e-9):.0%} of the time that steps and evaluations took"


def sample_section(run: RunRecord) -> Section:
    """The replies to the recipe's prompts, a column a step."""
    steps = sorted({each.step for each in run.samples})
    if len(steps) > STEPS_SHOWN:
        places = {round(place * (len(steps) - 1) / (STEPS_SHOWN - 1)) for place in range(STEPS_SHOWN)}
        steps = [steps[place] for place in sorted(places)]
    replies = {(each.prompt, each.step): each.reply for each in run.samples}
    prompts = list(dict.fromkeys(each.prompt for each in run.samples))
    rows = tuple((prompt, *(_cut(replies.get((prompt, step), "")) for step in steps)) for prompt in prompts)
    lead = "The model's replies as it was trained; samples.jsonl has them all." if rows else ""
    return Section("samples", "Sample replies", lead, (Table(("prompt", *(f"step {step:,}" for step in steps)), rows),))


def score_table(runs: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """The last scores of several runs."""
    last = [dict(kv for each in run.evaluations for kv in each.scores.items()) for run in runs]
    tasks = list(dict.fromkeys(name for scores in last for name in scores))
    rows = tuple((task, *(score_words(scores.get(task)) for scores in last)) for task in tasks)
    return Table(("last score", *names), rows)


def score_chart(runs: Sequence[RunRecord], names: Sequence[str]) -> Chart:
    """Every task's points over steps."""
    series = []
    for run, name in zip(runs, names, strict=True):
        for task in score_names(run):
            scored = [(each.step, each.scores[task].mean) for each in run.evaluations if task in each.scores]
            points = tuple((float(step), 100 * mean) for step, mean in scored)
            series.append(Series(f"{task} · {name}" if name else task, points, True))
    return Chart("Scores", "percent of the points", tuple(series))


def score_names(run: RunRecord) -> list[str]:
    """The tasks measured, in their order."""
    return list(dict.fromkeys(name for each in run.evaluations for name in each.scores))


def first_and_last(evaluations: Sequence[Evaluation], name: str) -> tuple[float, float]:
    """A task's share of points at its first and its last evaluation."""
    means = [each.scores[name].mean for each in evaluations if name in each.scores]
    return means[0], means[-1]


def score_words(score: LoggedScore | None) -> str:
    """Such as `45.0 (35.6–54.8)`."""
    if score is None:
        return ""
    low, high = wilson(score.points, score.total)
    return f"{100 * score.mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _met(run: RunRecord, name: str) -> str:
    """Rows trained on that hold items of a task, by the marks that the newest checkpoint carries."""
    marks = run.manifest.contamination if run.manifest is not None else {}
    rows = marks.get(_evaluation_of(run.recipe, name) or "")
    return "not compared" if rows is None else f"{rows:,} rows" if rows else "no rows"


def _evaluation_of(recipe: Mapping[str, Any], name: str) -> str | None:
    """What contamination reports call the task behind a metric; None where this version doesn't know the recipe's."""
    for task in recipe.get("eval", {}).get("tasks", ()):
        if name.split(" pass@")[0] == (task.get("name") or task.get("task")):
            try:
                return evaluation_name(make_task(task["task"], **task.get("task_options", {})))
            except ConfigError:
                return None
    return None


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cut(text: str) -> str:
    return text if len(text) <= REPLY_CHARACTERS else text[: REPLY_CHARACTERS - 1] + "…"
