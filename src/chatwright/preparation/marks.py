"""Contamination marks: each row that is prepared is compared with the evaluations, and left out where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatwright.conversations.schema import Conversation
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings
from chatwright.inspection.contamination_report import ContaminationReport, drop_reason
from chatwright.inspection.contamination_store import load_index, prepare_index
from chatwright.inspection.evaluation_texts import Evaluations


@dataclass(frozen=True, slots=True)
class ContaminationCheck:
    """What rows are compared with; travels to workers, which map the index into their memory.

    Args:
        folder: the index's. settings: thresholds, and what happens to a row that is hit.
        empty: the report before the first row, as `ContaminationReport.to_dict` gives it.
    """

    folder: Path
    settings: ContaminationSettings
    empty: dict[str, Any]

    @staticmethod
    def prepare(evaluations: Evaluations, settings: ContaminationSettings, cache: Path) -> ContaminationCheck:
        """Build the index unless `cache` has it.

        Raises:
            OSError: `cache` can't be written.
        """
        empty = ContaminationReport.of(evaluations, settings).to_dict()
        return ContaminationCheck(prepare_index(evaluations, settings, cache), settings, empty)

    def begin(self) -> Marks:
        """Marks for a range of rows, nothing counted yet."""
        report = ContaminationReport.from_dict(self.empty)
        return Marks(_index(self.folder, self.settings), report, drop=self.settings.on_hit == "drop")


@lru_cache(maxsize=1)
def _index(folder: Path, settings: ContaminationSettings) -> ContaminationIndex:
    return load_index(folder, settings)


class Marks:
    """Counts the rows of a range that hold evaluation items."""

    def __init__(self, index: ContaminationIndex, report: ContaminationReport, *, drop: bool) -> None:
        self.index, self.report, self.drop = index, report, drop

    def reasons(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """For each conversation why it has to go, or None."""
        matches = self.index.matches(conversations)
        self.report.add(self.index, conversations, matches)
        return [drop_reason(self.index, found) if found and self.drop else None for found in matches]


def merged_reports(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The report of all ranges together; None where none was made."""
    reports = [ContaminationReport.from_dict(part) for part in parts if part is not None]
    if not reports:
        return None
    for other in reports[1:]:
        reports[0].merge(other)
    return reports[0].to_dict()
