"""`chatwright selftest`: the exactness laws, on the user's own recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from chatwright.console import duration, note, out, table
from chatwright.recipes.planning import stage_notes
from chatwright.recipes.run_settings import load_recipe
from chatwright.runtime import start_runtime
from chatwright.selftest.laws import SelftestReport, check_recipe
from chatwright.selftest.outcome import LawOutcome, Status


def run_selftest(recipe: str, overrides: Sequence[str], full: bool, as_json: bool) -> None:
    """Check every law, print a table (or one JSON object), and exit with 1 unless every law holds."""
    settings = load_recipe(recipe, overrides)
    runtime = start_runtime(settings.train.device, settings.train.threads)
    try:
        report = check_recipe(settings, runtime, full=full)
    finally:
        runtime.close()
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report)
        for each in stage_notes(settings):
            note(f"{each}; the laws were checked on those (of drawn ones, drawn_gap in metrics.jsonl tells)")
    if not report.passed:
        sys.exit(1)


def _print(report: SelftestReport) -> None:
    rows = [(o.name, _number(o.figure), _number(o.bound), o.norm, _result(o)) for o in report.outcomes]
    console = out()
    console.print(table("selftest", ("law", "figure", "bound", "norm", "result"), rows))
    for outcome in report.outcomes:
        detail = f" ({outcome.detail})" if outcome.detail else ""
        text = f"{outcome.name}: {outcome.measured}{detail}"
        console.print(text, markup=False, soft_wrap=True, style=_STYLES.get(outcome.status, "dim"))
    count = {status: sum(o.status is status for o in report.outcomes) for status in Status}
    words = ", ".join(f"{number} {_WORDS[status]}" for status, number in count.items() if number)
    console.print(f"{words} · {report.sample} · {duration(report.seconds)}", markup=False, soft_wrap=True)


_STYLES = {Status.BROKEN: "bold red", Status.WAIVED: "yellow"}
_WORDS: dict[Status, str] = {
    Status.HOLDS: "hold",
    **{status: str(status) for status in Status if status is not Status.HOLDS},
}


def _result(outcome: LawOutcome) -> str:
    return "BROKEN" if outcome.status is Status.BROKEN else str(outcome.status)


def _number(value: float | None) -> str:
    """A count as it is, a share with two digits."""
    if value is None:
        return ""
    return str(int(value)) if value == value and abs(value) < 1e6 and value == int(value) else f"{value:.1e}"
