"""What the tables of planned and of streamed runs share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chatwright.console import note, out, table, warn
from chatwright.inspection.contamination_account import ContaminationAccount
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.recipes.planning import RunPlan
from chatwright.recipes.stream_planning import StreamPlan

_BARS = "▁▂▃▄▅▆▇█"


def print_rest(figures: RunPlan | StreamPlan, ledger: Ledger) -> None:
    """Memory, ledger, warnings and learning rate."""
    console = out()
    if figures.memory:
        body = [(name, f"{count / 2**20:,.0f} MiB") for name, count in figures.memory.items()]
        console.print(table("memory, estimated", ("for", "size"), body))
    console.print(ledger.table())
    print_lost(ledger)
    note(figures.contamination)
    for warning in figures.warnings:
        warn(warning)
    console.print(f"learning rate  {sparkline(figures.learning_rates)}  peak {max(figures.learning_rates):.2e}")


def print_contamination(found: ContaminationAccount) -> None:
    """The line on what rows were compared with, and the warning where there is one."""
    note(found.line)
    if found.warning:
        warn(found.warning)


def print_lost(ledger: Ledger) -> None:
    """Rows that were filtered and dropped, over all sources, by reason: the most first; nothing where none was."""
    lost = lost_rows(ledger)
    if lost:
        out().print(table("left out, all sources", ("stage", "reason", "rows"), lost))


def lost_rows(ledger: Ledger) -> list[tuple[str, str, int]]:
    """(stage, reason, rows) of what was skipped, filtered and dropped over all sources, the most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for entry in ledger.entries():
        if entry.stage in (Stage.SKIPPED, Stage.FILTERED, Stage.DROPPED) and entry.rows:
            counts[str(entry.stage), entry.reason or ""] += entry.rows
    return [(stage, reason, rows) for (stage, reason), rows in counts.most_common()]


def model_rows(figures: RunPlan | StreamPlan) -> list[tuple[str, str]]:
    """Parameters and compute, where they are known."""
    rows = []
    if figures.parameters is not None and figures.trainable_parameters is not None:
        share = figures.trainable_parameters / figures.parameters
        rows.append(("parameters", f"{figures.parameters:,}, trained: {figures.trainable_parameters:,} ({share:.2%})"))
    if figures.training_flops is not None:
        rows.append(("training compute", f"{figures.training_flops / 1e12:,.1f} TFLOP"))
    return rows


def short_name(name: str) -> str:
    """The end of a long source name, which tells files apart, as long as the terminal has room for."""
    room = name_room()
    return name if len(name) <= room else f"…{name[1 - room :]}"


def name_room() -> int:
    """Columns beside the widest numbers of the tables."""
    return max(24, out().width - 56)


def sparkline(values: Sequence[float]) -> str:
    """Values as a line of bars; the tallest is the highest value."""
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(7, max(0, round(value / top * 7)))] for value in values)
