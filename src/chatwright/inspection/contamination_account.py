"""Contamination in a line, wherever data is prepared: what rows were compared with, what not and why, hits, dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatwright.inspection.contamination_report import CONTAMINATED
from chatwright.inspection.ledger import Ledger, Stage

NOT_ASKED = (
    "contamination: rows weren't compared with any evaluation; --set contamination.on_hit=report compares them, "
    "drop leaves out those that hold test items"
)


@dataclass(frozen=True, slots=True)
class ContaminationAccount:
    """What became of the comparison with evaluations.

    Args:
        asked: the recipe compares rows. drops: and leaves out those that are hit.
        evaluations: name → items compared with. too_short: name → items that say too little to be found.
        unchecked: name → why it couldn't be compared with.
        compared, hit: rows. dropped: rows that were left out, from the ledger.
        so_far: there are more rows to come.
    """

    asked: bool
    drops: bool = False
    evaluations: Mapping[str, int] = field(default_factory=dict)
    too_short: Mapping[str, int] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    compared: int = 0
    hit: int = 0
    dropped: int = 0
    so_far: bool = False

    @staticmethod
    def of(report: Mapping[str, Any] | None, ledger: Ledger, *, drops: bool) -> ContaminationAccount:
        """From what `ContaminationReport.to_dict` gave; None where the recipe doesn't compare."""
        if report is None:
            return ContaminationAccount(False)
        compared, hit = sum(report["checked"].values()), len(report["rows"])
        sides = (report["evaluations"], report["too_short"], report["unchecked"])
        return ContaminationAccount(True, drops, *sides, compared, hit, dropped_rows(ledger))

    @property
    def line(self) -> str:
        """All of it in a line."""
        if not self.asked:
            return NOT_ASKED
        parts = [f"compared with {', '.join(map(self._size, sorted(self.evaluations))) or 'nothing'}"]
        if self.unchecked:
            parts.append(f"not compared: {self._unchecked()}")
        rows = f"{self.compared:,} rows{' so far' if self.so_far else ''}"
        parts.append(f"{self.hit:,} of {rows} hold an evaluation item")
        parts.append(f"{self.dropped:,} dropped" if self.drops else "none dropped (on_hit: report)")
        return "contamination: " + "; ".join(parts)

    @property
    def warning(self) -> str | None:
        """A warning where rows are to be dropped, but some evaluations weren't at hand to find them by."""
        if not (self.drops and self.unchecked):
            return None
        total = len(self.unchecked) + len(self.evaluations)
        return (
            f"contaminated rows are to be dropped, but {len(self.unchecked)} of {total} evaluations couldn't be "
            f"compared with, so rows that hold their items stay in: {', '.join(sorted(self.unchecked))}. Set "
            "CHATWRIGHT_DATA to the folder that holds their data, or name those you need under "
            "contamination.evaluations, which fetches them"
        )

    def _size(self, name: str) -> str:
        short = self.too_short.get(name)
        return f"{name} ({self.evaluations[name]:,}{f', {short:,} too short' if short else ''})"

    def _unchecked(self) -> str:
        """Names by reason, each reason once."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in sorted(self.unchecked.items()):
            by_reason.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def rows_met(report: Mapping[str, Any] | None, *, drops: bool) -> dict[str, int]:
    """Evaluation → rows that hold items of it and stay in, of every evaluation that the rows were compared with.

    Args:
        report: what `ContaminationReport.to_dict` gave; None where rows weren't compared.
        drops: rows that are hit are left out, so none stays in.
    """
    if report is None:
        return {}
    met = Counter(task for _, _, tasks in report["rows"] for task in tasks)
    return {name: 0 if drops else met[name] for name in sorted(report["evaluations"])}


def dropped_rows(ledger: Ledger) -> int:
    """Rows that were left out since they hold evaluation items."""
    lines = [entry for entry in ledger.entries() if entry.stage is Stage.FILTERED and entry.reason]
    return sum(entry.rows for entry in lines if entry.reason and entry.reason.startswith(CONTAMINATED))
