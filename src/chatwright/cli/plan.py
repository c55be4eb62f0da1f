"""`chatwright plan`: the figures of a run before it runs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatwright.cli.outline_plan import print_chain, print_outline
from chatwright.cli.plan_parts import model_rows, name_room, print_rest, short_name
from chatwright.cli.stream_plan import print_stream
from chatwright.console import out, table
from chatwright.packing.mixture import MixtureSettings
from chatwright.recipes.chain_settings import is_chain, load_chain
from chatwright.recipes.data import build_data
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.planned_sources import PlannedSource
from chatwright.recipes.planning import RunPlan, plan_run
from chatwright.recipes.run_settings import load_recipe
from chatwright.recipes.stream_planning import plan_record
from chatwright.recipes.streaming import StreamedData

if TYPE_CHECKING:
    from rich.table import Table


def run_plan(
    recipe: str,
    overrides: Sequence[str],
    as_json: bool,
    hardware: Hardware | None = None,
    without_data: bool = False,
) -> None:
    """Print the plan as tables, or as one JSON object.

    Args:
        hardware: devices to tell the hours of, or None.
        without_data: tell what the recipe alone says; a chain, whose stages have nothing to read yet, always does.
    """
    if is_chain(recipe):
        print_chain(load_chain(recipe, overrides), as_json, hardware)
        return
    settings = load_recipe(recipe, overrides)
    if without_data:
        print_outline(settings, as_json, hardware)
        return
    data = build_data(settings)
    if isinstance(data, StreamedData):
        print_stream(settings, data, as_json, hardware)
        return
    if as_json:
        print(json.dumps(plan_record(settings, data, hardware), ensure_ascii=False))
        return
    figures = plan_run(settings, data)
    console = out()
    for each in source_tables(figures, settings.mixture):
        console.print(each)
    console.print(table("run", ("figure", "value"), _run_rows(figures, hardware)))
    print_rest(figures, data.ledger)


def source_tables(figures: RunPlan, mixture: MixtureSettings) -> list[Table]:
    """What each source has, and what the mixture makes of it; both fit 80 columns."""
    data: list[tuple[object, ...]] = [
        (_source_cell(s), s.rows, s.examples, s.tokens, s.supervised_tokens) for s in figures.sources
    ]
    weights = [s for s in figures.sources if s.weight is not None]
    mixed: list[tuple[object, ...]] = [
        (
            short_name(s.name),
            f"{s.seen_an_epoch:.{3 if s.seen_an_epoch > 0.1 else 2}g}×",
            f"{s.example_share:.1%}",
            s.trained_supervised_tokens,
            f"{s.effective_weight:.1%}",
        )
        for s in figures.sources
    ]
    heading = "mixture: " + ("one source after another" if mixture.order == "sequence" else "all sources shuffled")
    if weights:
        wished = {s.name: f"{s.weight / sum(w.weight or 0 for w in weights):.1%}" for s in weights if s.weight}
        mixed = [(name, wished[s.name], *rest) for s, (name, *rest) in zip(figures.sources, mixed, strict=True)]
        ends = "the first source is used up" if mixture.until == "first" else "all sources were seen whole"
        heading += f"; an epoch ends when {ends}"
    columns = ("source", *(["asked"] if weights else []), "seen", "examples", "supervised", "effective")
    made = table(heading, columns, mixed)
    made.caption = (
        f"{'asked: share of rows by weight · ' if weights else ''}seen: times an epoch · examples, supervised tokens: "
        "in packs, all epochs · effective: share of the supervised tokens' weight"
    )
    made.caption_justify = "left"
    return [table("data", ("source", "rows", "examples", "tokens", "supervised"), data), made]


def _source_cell(source: PlannedSource) -> str:
    notes = [source.format, source.chosen, f"{source.skipped:,} skipped" if source.skipped else ""]
    notes += [f"{name} changed {count:,}" for name, count in source.changed.items()]
    text = ", ".join(note for note in notes if note)
    lines = textwrap.wrap(text, name_room(), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([short_name(source.name), *lines])


def _run_rows(figures: RunPlan, hardware: Hardware | None) -> list[tuple[str, str]]:
    rows = [
        ("examples", f"{figures.examples:,} (held out: {figures.heldout_examples:,})"),
        ("tokens an epoch", f"{figures.tokens_per_epoch:,}, of which {figures.supervised_share:.1%} supervised"),
        ("longest example", f"{figures.longest_example:,} tokens"),
        ("steps", f"{figures.steps:,} over {figures.epochs:g} epochs, {figures.mean_tokens_per_step:,.0f} tokens each"),
        ("packs", f"{figures.packs:,}, {figures.packing_waste:.1%} of their room unused"),
        ("tokens trained", f"{figures.tokens:,} ({figures.supervised_tokens:,} supervised)"),
    ]
    return rows + model_rows(figures, hardware)
