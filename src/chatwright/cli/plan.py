"""`chatwright plan`: the figures of a run before it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from chatwright.console import out, table, warn
from chatwright.recipes.data import build_data
from chatwright.recipes.planning import RunPlan, plan_run
from chatwright.recipes.run_settings import load_recipe

_BARS = "▁▂▃▄▅▆▇█"


def run_plan(recipe: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print the plan as tables, or as one JSON object."""
    settings = load_recipe(recipe, overrides)
    data = build_data(settings)
    figures = plan_run(settings, data)
    if as_json:
        print(json.dumps({"plan": figures.to_dict(), "ledger": data.ledger.to_dict()}, ensure_ascii=False))
        return
    console = out()
    columns = ("source", "format", "rows", "skipped", "examples", "tokens", "supervised", "share")
    body: list[tuple[object, ...]] = [
        (
            s["name"],
            s["format"],
            s["rows"],
            s["skipped"],
            s["examples"],
            s["tokens"],
            s["supervised_tokens"],
            f"{s['supervised_share']:.1%}",
        )
        for s in figures.sources
    ]
    console.print(table("data", columns, body))
    console.print(table("run", ("figure", "value"), _run_rows(figures)))
    if figures.memory:
        body = [(name, f"{count / 2**20:,.0f} MiB") for name, count in figures.memory.items()]
        console.print(table("memory, estimated", ("for", "size"), body))
    console.print(data.ledger.table())
    for warning in figures.warnings:
        warn(warning)
    console.print(f"learning rate  {sparkline(figures.learning_rates)}  peak {max(figures.learning_rates):.2e}")


def _run_rows(figures: RunPlan) -> list[tuple[str, str]]:
    rows = [
        ("examples", f"{figures.examples:,} (held out: {figures.heldout_examples:,})"),
        ("tokens an epoch", f"{figures.tokens_per_epoch:,}, of which {figures.supervised_share:.1%} supervised"),
        ("longest example", f"{figures.longest_example:,} tokens"),
        ("steps", f"{figures.steps:,} over {figures.epochs:g} epochs, {figures.mean_tokens_per_step:,.0f} tokens each"),
        ("packs", f"{figures.packs:,}, {figures.packing_waste:.1%} of their room unused"),
        ("tokens trained", f"{figures.tokens:,} ({figures.supervised_tokens:,} supervised)"),
    ]
    if figures.parameters is not None and figures.trainable_parameters is not None:
        share = figures.trainable_parameters / figures.parameters
        rows.append(("parameters", f"{figures.parameters:,}, trained: {figures.trainable_parameters:,} ({share:.2%})"))
    if figures.training_flops is not None:
        rows.append(("training compute", f"{figures.training_flops / 1e12:,.1f} TFLOP"))
    return rows


def sparkline(values: Sequence[float]) -> str:
    """Values as a line of bars; the tallest is the highest value."""
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(7, max(0, round(value / top * 7)))] for value in values)
