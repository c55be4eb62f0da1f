"""What the tables of planned and of streamed runs share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from chatwright.console import note, out, table, warn
from chatwright.inspection.contamination_account import ContaminationAccount
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.recipes.hardware import Hardware
from chatwright.recipes.outline import OutlinePlan
from chatwright.recipes.planning import RunPlan
from chatwright.recipes.stream_planning import StreamPlan

_BARS = "▁▂▃▄▅▆▇█"


def print_rest(figures: RunPlan | StreamPlan, ledger: Ledger) -> None:
    """Memory, ledger, warnings and learning rate."""
    console = out()
    print_memory(figures.memory)
    console.print(ledger.table())
    print_lost(ledger)
    note(figures.contamination)
    for warning in figures.warnings:
        warn(warning)
    console.print(rates_line(figures.learning_rates))


def print_memory(memory: Mapping[str, int]) -> None:
    """The estimate in bytes by what takes it; nothing where there is none."""
    body = [(name, f"{count / 2**20:,.0f} MiB") for name, count in memory.items()]
    if body:
        out().print(table("memory, estimated", ("for", "size"), body))


def rates_line(rates: Sequence[float]) -> str:
    """The learning rate over the run."""
    return f"learning rate  {sparkline(rates)}  peak {max(rates):.2e}"


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


def model_rows(figures: RunPlan | StreamPlan | OutlinePlan, hardware: Hardware | None = None) -> list[tuple[str, str]]:
    """Parameters and compute, where they are known, and how long the devices take."""
    rows = []
    if figures.parameters is not None and figures.trainable_parameters is not None:
        share = figures.trainable_parameters / figures.parameters
        rows.append(("parameters", f"{figures.parameters:,}, trained: {figures.trainable_parameters:,} ({share:.2%})"))
    if figures.training_flops is not None:
        rows.append(("training compute", compute_cell(figures.training_flops)))
    if hardware is not None:
        rows.append(("time", hardware.told(figures.training_flops)))
    return rows


def compute_cell(flops: float) -> str:
    """FLOPs with the prefix that suits them."""
    if flops < 1e18:
        return f"{flops / 1e12:,.1f} TFLOP"
    return f"{flops / 1e18:,.2f} EFLOP ({flops:.2e} FLOP)"


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
