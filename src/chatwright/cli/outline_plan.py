"""How a plan by the recipe alone is printed: of one run, or of a chain's stages."""

from __future__ import annotations

import json

from chatwright.cli.plan_parts import compute_cell, model_rows, print_memory, rates_line
from chatwright.console import note, out, table
from chatwright.recipes.chain_outline import outline_chain
from chatwright.recipes.chain_settings import Chain
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.outline import OutlinePlan, outline_run
from chatwright.recipes.run_settings import RunSettings


def print_outline(settings: RunSettings, as_json: bool, hardware: Hardware | None) -> None:
    """The outline of a run as tables, or as one JSON object."""
    figures = outline_run(settings)
    if as_json:
        print(json.dumps({"plan": _with_time(figures, hardware)}, ensure_ascii=False))
        return
    console = out()
    console.print(table("run, by the recipe alone", ("figure", "value"), _rows(figures, hardware)))
    print_memory(figures.memory)
    if figures.learning_rates:
        console.print(rates_line(figures.learning_rates))
    note(figures.unknown)


def print_chain(chain: Chain, as_json: bool, hardware: Hardware | None) -> None:
    """A chain's stages, each by its recipe, and their sum; as a table, or as one JSON object."""
    stages = outline_chain(chain)
    known = [each.plan.training_flops for each in stages if each.plan and each.plan.training_flops is not None]
    if as_json:
        listed = [
            {"name": each.name, "stage": each.kind, "plan": _with_time(each.plan, hardware) if each.plan else None}
            for each in stages
        ]
        total = {"training_flops": sum(known), **({"time": hardware.account(sum(known))} if hardware else {})}
        print(json.dumps({"stages": listed, "known": total}, ensure_ascii=False))
        return
    heads = ("stage", "kind", "parameters", "steps", "tokens", "compute", *(["hours"] if hardware else []))
    body = [(each.name, each.kind, *_cells(each.plan, hardware)) for each in stages]
    out().print(table("stages, by the recipe alone", heads, body))
    if hardware is not None and known:
        note(f"what is known takes {hardware.told(sum(known))}")
    note("steps, tokens and compute at most; - is decided by data that aren't read here")


def _with_time(figures: OutlinePlan, hardware: Hardware | None) -> dict[str, object]:
    time = {"time": hardware.account(figures.training_flops)} if hardware is not None else {}
    return {**figures.to_dict(), **time}


def _rows(figures: OutlinePlan, hardware: Hardware | None) -> list[tuple[str, str]]:
    counts = {"steps": figures.steps, "tokens a step": figures.tokens_per_step, "tokens trained": figures.tokens}
    rows = [(name, f"{count:,}" if count is not None else "not known yet") for name, count in counts.items()]
    return rows + model_rows(figures, hardware)


def _cells(figures: OutlinePlan | None, hardware: Hardware | None) -> list[str]:
    """A stage's columns behind its kind; `-` for what isn't known."""
    numbers = (figures.parameters, figures.steps, figures.tokens) if figures is not None else (None,) * 3
    flops = figures.training_flops if figures is not None else None
    cells = [_short(number) if number is not None else "-" for number in numbers]
    cells.append(compute_cell(flops).partition(" (")[0] if flops is not None else "-")
    if hardware is not None:
        cells.append(f"{hardware.hours(flops):,.2f}" if flops is not None else "-")
    return cells


def _short(number: int) -> str:
    """Large counts in millions and billions, so that a table fits 80 columns; JSON has them exactly."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.1f} M" if number < 1_000_000_000 else f"{number / 1e9:,.2f} B"
