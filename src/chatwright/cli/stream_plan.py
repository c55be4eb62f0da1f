"""How a stream's plan is printed: by `plan` whole, by `train` in short."""

from __future__ import annotations

import json

from chatwright.cli.plan_parts import model_rows, print_rest, short_name, sparkline
from chatwright.console import note, out, table, warn
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.stream_planning import StreamPlan, first_ledger, plan_record, plan_stream
from chatwright.recipes.streaming import StreamedData


def print_stream(settings: RunSettings, data: StreamedData, as_json: bool, hardware: Hardware | None = None) -> None:
    """The stream's plan as tables, or as one JSON object; then stop reading."""
    try:
        if as_json:
            print(json.dumps(plan_record(settings, data, hardware), ensure_ascii=False))
            return
        figures = plan_stream(settings, data)
        _print_sources(figures)
        out().print(table("run", ("figure", "value"), _run_rows(figures, hardware)))
        print_rest(figures, first_ledger(data))
        note(figures.unknown)
    finally:
        data.close()


def print_stream_in_short(settings: RunSettings, data: StreamedData) -> None:
    """What is about to be trained, by the first windows."""
    figures = plan_stream(settings, data)
    _print_sources(figures)
    for warning in figures.warnings:
        warn(warning)
    note(figures.contamination)
    note(
        f"{figures.steps:,} steps of about {figures.mean_tokens_per_step:,.0f} tokens, "
        f"{figures.supervised_share:.0%} supervised; packing leaves {figures.packing_waste:.1%} empty; "
        f"learning rate {sparkline(figures.learning_rates[::3])}"
    )
    note(figures.unknown)


def _print_sources(figures: StreamPlan) -> None:
    rows = [
        (short_name(s.name), s.format, f"{s.asked_share:.1%}", s.examples, s.tokens, f"{s.effective_weight:.1%}")
        for s in figures.sources
    ]
    title = f"the first {figures.examples:,} examples that {figures.readers} readers read"
    made = table(title, ("source", "format", "asked", "examples", "tokens", "effective"), rows)
    made.caption = "asked: share of rows by weight · effective: share of the supervised tokens' weight"
    made.caption_justify = "left"
    out().print(made)


def _run_rows(figures: StreamPlan, hardware: Hardware | None) -> list[tuple[str, str]]:
    rows = [
        ("steps", f"{figures.steps:,}, of about {figures.mean_tokens_per_step:,.0f} tokens each"),
        ("readers", f"{figures.readers}, each plans {figures.window:,} examples at a time"),
        ("longest example", f"{figures.longest_example:,} tokens so far"),
        ("packs", f"{figures.packing_waste:.1%} of their room unused"),
        ("tokens trained", f"about {figures.tokens:,} (about {figures.supervised_tokens:,} supervised)"),
        ("held out", f"{figures.heldout_examples:,} examples"),
    ]
    if figures.most_tokens is not None:
        rows.insert(5, ("at most", f"{figures.most_tokens:,} tokens, if every pack were full"))
    return rows + model_rows(figures, hardware)
