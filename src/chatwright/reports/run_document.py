"""The report of one run, and the comparison of two, in words and tables."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from chatwright.inspection.ledger import Entry
from chatwright.inspection.page_anchors import Anchors
from chatwright.inspection.page_charts import compact
from chatwright.reports.document import Chart, Document, Row, Section, Series, Table
from chatwright.reports.evaluation_sections import (
    evaluation_section,
    first_and_last,
    sample_section,
    score_chart,
    score_names,
    score_table,
)
from chatwright.reports.figures import FIGURES, differing_settings, final_figures, words_of
from chatwright.reports.run_record import RunRecord

SCORES_IN_TILES = 2


def run_report(run: RunRecord) -> Document:
    """The report of one run."""
    figures = final_figures(run)
    body = tuple((FIGURES[name], words_of(name, value)) for name, value in figures.items() if value is not None)
    sections = [
        Section("missing", "What isn't there", notes=run.missing),
        Section("result", "Result", _state(run), (Table(("figure", "value"), body),)),
        Section("curves", "Curves", charts=_charts([run], [""])),
        *([evaluation_section(run)] if run.evaluations else []),
        sample_section(run),
        Section("run", "What was trained", tables=(_identity(run),), notes=run.plan.warnings if run.plan else ()),
        Section("data", "Data", _data_lead(run), (_data(run),), notes=_contamination(run)),
        _ledger_section(run),
        Section("checkpoints", "Checkpoints", tables=(_checkpoints(run),)),
        _recipe_section(run),
        Section("next", "What to type next", code="\n".join(_next_commands(run))),
    ]
    return Document(_name(run), _subtitle(run), _tiles(run), tuple(section for section in sections if _says(section)))


def comparison(first: RunRecord, second: RunRecord) -> Document:
    """Two runs side by side."""
    runs = (first, second)
    names = (first.path, second.path)
    both = [final_figures(run) for run in runs]
    known = [name for name in FIGURES if any(figures[name] is not None for figures in both)]
    body = tuple((FIGURES[name], *(words_of(name, figures[name]) for figures in both)) for name in known)
    differing = tuple(differing_settings(first.recipe, second.recipe))
    sections = (
        Section(
            "missing", "What isn't there", notes=tuple(f"{run.path}: {each}" for run in runs for each in run.missing)
        ),
        Section("result", "Result", tables=(Table(("figure", *names), body), score_table(runs, names))),
        Section("curves", "Curves", charts=_charts(runs, names)),
        Section(
            "settings", "Settings that differ", "" if differing else "None.", (Table(("setting", *names), differing),)
        ),
    )
    state = " · ".join(f"{_name(run)}: {_state(run)}" for run in runs)
    return Document(
        " and ".join(_name(run) for run in runs), state, (), tuple(each for each in sections if _says(each))
    )


def _says(section: Section) -> bool:
    filled = any(table.rows for table in section.tables)
    return bool(filled or section.lead or section.charts or section.notes or section.code)


def _name(run: RunRecord) -> str:
    return Path(run.path).resolve().name


def _state(run: RunRecord) -> str:
    """How far the run came."""
    if run.newest is None:
        return f"No checkpoint can be used; {len(run.steps):,} steps were logged."
    step = run.newest.step
    if run.plan is None:
        words = f"Step {step:,} is saved."
    elif run.finished:
        words = f"Finished: all {step:,} steps."
    elif run.stopped_early:
        metric = run.newest.manifest.progress.get("best_metric", "heldout_loss") if run.newest.manifest else ""
        words = f"Ended early at step {step:,} of {run.plan.steps:,}: {metric} got no better."
    else:
        words = f"Not finished: step {step:,} of {run.plan.steps:,} is saved."
    last = run.steps[-1].step if run.steps else 0
    return words + (f" Steps to {last:,} were logged, but are in no checkpoint." if last > step else "")


def _subtitle(run: RunRecord) -> str:
    made = run.recipe.get("new_model")
    model = f"a new {made['preset']} model" if made else run.recipe.get("model", "a model")
    return f"{run.recipe.get('stage', 'training')} of {model} · {_state(run)}"


def _tiles(run: RunRecord) -> tuple[tuple[str, str], ...]:
    figures = final_figures(run)
    first, last = figures["heldout_first"], figures["heldout_last"]
    kind = "held-out loss, nats"
    if last is None:
        first, last, kind = figures["first_loss"], figures["last_loss"], "training loss, nats"
    if figures["reward_last"] is not None:  # the loss of reinforcement says nothing
        first, last, kind = figures["reward_first"], figures["reward_last"], "reward of a step's replies"
    tokens, supervised = figures["tokens"], figures["supervised_tokens"]
    speed, waste, planned = (figures[name] for name in ("tokens_per_second", "packing_waste", "planned_steps"))
    tiles = [
        (f"{first:.3f} → {last:.3f}", kind) if first is not None and last is not None else None,
        (f"{figures['steps']:,}", f"steps of {planned:,}" if planned else "steps")
        if figures["steps"] is not None
        else None,
        *((f"{first:.0%} → {last:.0%}", name) for name, (first, last) in _scores(run)),
        (compact(tokens), "tokens trained") if tokens is not None else None,
        (f"{supervised / tokens:.0%}", "of them supervised") if tokens and supervised is not None else None,
        (compact(round(speed)), "tokens a second") if speed is not None else None,
        (f"{waste:.1%}", "of the packs empty") if waste is not None else None,
    ]
    return tuple(tile for tile in tiles if tile is not None)


def _scores(run: RunRecord) -> list[tuple[str, tuple[float, float]]]:
    return [(name, first_and_last(run.evaluations, name)) for name in score_names(run)[:SCORES_IN_TILES]]


def _identity(run: RunRecord) -> Table:
    rows: list[Row] = [("recipe", run.path + "/recipe.yaml")] if run.recipe else []
    if run.manifest is not None:
        saved, about = run.manifest, run.manifest.determinism
        rows += [
            ("stage", saved.stage),
            ("base model", saved.base_source or "–"),
            ("base model's hash", (saved.base_hash or "–")[:16]),
            (
                "adapter",
                ", ".join(f"{key} {value}" for key, value in saved.adapter.items()) if saved.adapter else "none",
            ),
            ("template's identity", (saved.template_identity or "–")[:16]),
            ("tokenizer's identity", (saved.tokenizer_identity or "–")[:16]),
            (
                "device",
                f"{about.get('device', '–')}, {about.get('ranks', '–')} rank(s), {about.get('threads', '–')} threads",
            ),
            ("versions", ", ".join(f"{name} {version}" for name, version in saved.versions.items())),
            ("newest checkpoint", f"{run.newest.name if run.newest else ''}, {_minute(saved.created)} UTC"),
        ]
    return Table(("what", "value"), tuple(rows))


def _short_name(run: RunRecord) -> Callable[[str], str]:
    """Sources by the last piece of their path where that tells them apart."""
    named = {source.name for source in run.plan.sources} if run.plan else set()
    return Anchors([], named | {entry.source for entry in run.ledger.entries()} if run.ledger else named).short


def _data_lead(run: RunRecord) -> str:
    if run.plan is None:
        return ""
    if run.plan.streaming:
        return f"The stream's first windows, {run.plan.packing_waste:.1%} of their packs empty; {run.plan.unknown}."
    return "Tokens of one pass over each source; weight: its part of all supervised tokens' weight, as planned."


def _contamination(run: RunRecord) -> tuple[str, ...]:
    """What rows were compared with, and what was trained on nevertheless; runs of older versions have neither."""
    line = (run.plan.contamination,) if run.plan is not None and run.plan.contamination else ()
    met = {name: rows for name, rows in run.manifest.contamination.items() if rows} if run.manifest is not None else {}
    told = ", ".join(f"{name} {rows:,}" for name, rows in met.items())
    return (*line, *([f"rows trained on that hold evaluation items, by evaluation: {told}"] if met else []))


def _data(run: RunRecord) -> Table:
    name = _short_name(run)
    heads = ("source", "format", "rows", "examples", "tokens", "trained", "an epoch", "weight")
    sources = run.plan.sources if run.plan else ()
    return Table(
        heads,
        tuple(
            (
                name(source.name),
                source.format,
                "" if source.rows is None else f"{source.rows:,}",
                f"{source.examples:,}",
                f"{source.tokens:,}",
                f"{source.supervised_tokens / max(source.tokens, 1):.1%}",
                "" if source.seen_an_epoch is None else f"{source.seen_an_epoch:.3g}×",
                f"{source.effective_weight:.1%}",
            )
            for source in sources
        ),
    )


def _ledger_section(run: RunRecord) -> Section:
    """What was left out and why; then every count; then whether the sums hold."""
    entries = run.ledger.entries() if run.ledger else []
    lost = sorted((each for each in entries if each.reason), key=lambda each: -each.rows)
    wrong = [f"✗ {each.source}: {each.unit}: {each.words()}" for each in run.sums if not each.holds]
    good = f"✓ {len(run.sums)} sums balance, in rows and in tokens." if run.sums else ""
    if run.ledger and not lost:
        good += " Nothing was left out."
    if run.newest is None:
        good += " These are the counts of plan.json, before training."
    name = _short_name(run)

    def rows(some: Sequence[Entry]) -> tuple[Row, ...]:
        counts = [(f"{each.rows:,}", f"{each.tokens:,}" if each.tokens else "") for each in some]
        return tuple(
            (name(each.source), each.stage.replace("_", " "), *count, each.reason or "")
            for each, count in zip(some, counts, strict=True)
        )

    heads = ("source", "stage", "rows", "tokens", "reason")
    flow = [each for each in entries if each.rows or each.tokens]
    tables = (Table(("left out of", *heads[1:]), rows(lost)), Table(heads, rows(flow)))
    lead = f"{len(wrong)} sums don't balance." if wrong else good
    return Section("ledger", "Ledger", lead, tables, notes=tuple(wrong), ledger=run.ledger, finished=run.finished)


def _minute(created: str) -> str:
    """An ISO time to read."""
    return created[:16].replace("T", " ")


def _checkpoints(run: RunRecord) -> Table:
    rows: list[Row] = []
    for each in run.checkpoints:
        if each.manifest is None or each.ledger is None:
            rows.append((each.name, "", "", "", "", f"damaged: {each.damage}"))
            continue
        sums = each.ledger.sums(finished=run.plan is not None and each.step == run.plan.steps)
        best = [f"{name} {value:.4f}" for name, value in each.manifest.metrics.items()]
        rows.append(
            (
                each.name + (" (best)" if each.best else ""),
                f"{each.bytes / 1e6:,.1f} MB",
                f"{each.manifest.tokens:,}",
                ", ".join(best),
                "balances" if all(one.holds for one in sums) else "doesn't balance",
                _minute(each.manifest.created),
            )
        )
    return Table(("checkpoint", "size", "tokens", "best so far by", "ledger", "made (UTC)"), tuple(rows))


def _recipe_section(run: RunRecord) -> Section:
    resumed = differing_settings(run.recipe, run.manifest.recipe) if run.recipe and run.manifest else []
    table = Table(("changed on resuming", "begun with", "newest checkpoint"), tuple(resumed))
    return Section("recipe", "Recipe", "What differs from the defaults.", (table,), code=run.changed)


def _next_commands(run: RunRecord) -> list[str]:
    """What can be done with the run as it stands."""
    name = shlex.quote(run.path)
    lines = [] if run.finished or run.stopped_early else [f"chatwright train {name} --resume"]
    if run.newest is not None:
        lines += [f"chatwright chat {name}", f"chatwright export {name} exported"]
    if run.steps:
        lines.append(f"chatwright trace {name} --step {run.steps[-1].step}")
    if run.recipe and run.newest is not None:
        lines.append(f"chatwright inspect {shlex.quote(run.path + '/recipe.yaml')} --run {name} --html page.html")
    return lines


def _charts(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[Chart, ...]:
    """Loss with the held-out loss, rewards, learning rate, gradient norm and speed, of each run."""
    losses, rates, norms, speeds = list[Series](), list[Series](), list[Series](), list[Series]()
    for run, name in zip(runs, names, strict=True):
        of = f" · {name}" if name else ""
        losses.append(_series(f"training{of}", [(each.step, each.loss) for each in run.steps]))
        losses.append(_series(f"held out{of}", [(each.step, each.heldout_loss) for each in run.evaluations], dots=True))
        rates.append(_series(name or "learning rate", [(each.step, each.learning_rate) for each in run.steps]))
        norms.append(_series(name or "gradient norm", [(each.step, each.grad_norm) for each in run.steps]))
        speed = [(each.step, each.tokens / each.seconds if each.seconds > 0 else None) for each in run.steps]
        speeds.append(_series(name or "tokens/s", speed))
    charts = (
        Chart("Loss", "nats a supervised token", tuple(losses), from_zero=False),
        *_reward_charts(runs, names),
        score_chart(runs, names),
        Chart("Learning rate", "", tuple(rates)),
        Chart("Gradient norm", "before clipping", tuple(norms)),
        Chart("Speed", "tokens a second, in steps", tuple(speeds)),
    )
    return tuple(chart for chart in charts if any(series.points for series in chart.series))


def _reward_charts(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[Chart, Chart]:
    """What the replies got that each step drew, and how long they were; empty but for reinforcement."""
    rewards, lengths = list[Series](), list[Series]()
    for run, name in zip(runs, names, strict=True):
        of = f" · {name}" if name else ""
        rewards.append(_series(f"reward{of}", [(each.step, each.reward) for each in run.steps]))
        signal = [(each.step, each.groups_with_signal) for each in run.steps]
        rewards.append(_series(f"problems with a signal{of}", signal))
        lengths.append(_series(name or "tokens of a reply", [(each.step, each.reply_tokens) for each in run.steps]))
    return (
        Chart(
            "Reward",
            "mean of a step's replies; share of its problems whose replies got different rewards",
            tuple(rewards),
        ),
        Chart("Reply length", "tokens, tool results included", tuple(lengths)),
    )


def _series(name: str, points: Sequence[tuple[int, float | None]], *, dots: bool = False) -> Series:
    return Series(name, tuple((step, value) for step, value in points if value is not None), dots)
