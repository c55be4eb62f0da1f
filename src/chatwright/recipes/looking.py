"""Rows to look at, out of data of any size: read once, holding only those to show and those to lint."""

from __future__ import annotations

from dataclasses import dataclass

from chatwright.conversations.schema import Conversation
from chatwright.inspection.lint import MAX_ROWS, LintReport, lint
from chatwright.inspection.row_keys import RowKeys
from chatwright.inspection.sampling import EvenRows, RowSample
from chatwright.preparation.prepare import PlannedEntry
from chatwright.preparation.rows import RowReader
from chatwright.preparation.work import EntryInfo
from chatwright.recipes.rendering import plan_entries
from chatwright.recipes.run_settings import RunSettings
from chatwright.templates.base import Template


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows to show: those at `[first, last)` of every entry, or a random sample over all entries by a seed."""

    first: int = 0
    last: int = 5
    sample: int | None = None
    seed: int = 0

    @property
    def words(self) -> str:
        """How the rows are chosen, for people."""
        if self.sample is not None:
            return f"a random sample of {self.sample:,} rows over all sources, seed {self.seed}"
        rows = f"row {self.first}" if self.last == self.first + 1 else f"rows {self.first}:{self.last}"
        return f"{rows} of every source"


@dataclass(frozen=True, slots=True)
class LookedEntry:
    """What was seen of one data entry.

    Args:
        info: its account.
        shown: the wanted conversations. linted: those to lint, spread evenly over the entry's rows.
        keys: of all rows that lint has rules for.
    """

    planned: PlannedEntry
    info: EntryInfo
    shown: list[Conversation]
    linted: list[Conversation]
    keys: RowKeys

    def lint(self, template: Template) -> LintReport:
        """What lint finds, with the entry's own mask policy."""
        return lint(self.linted, template, train_on=self.planned.work.train_on, keys=self.keys)


def look(settings: RunSettings, wanted: Wanted, lint_rows: int = MAX_ROWS) -> list[LookedEntry]:
    """Read every data entry once, transformed and filtered as it is trained.

    Raises:
        DataError: a bad row, or no rows.
    """
    planned = [entry for entry in plan_entries(settings) if not entry.work.heldout]
    sample: RowSample[Conversation] = RowSample(wanted.sample or 0, wanted.seed)
    looked: list[LookedEntry] = []
    for number, entry in enumerate(planned):
        reader = RowReader(entry.work, settings.train.seed)
        even: EvenRows[Conversation] = EvenRows(lint_rows)
        keys = RowKeys()
        shown: list[Conversation] = []
        for place, conversation in enumerate(reader.read(entry.read())):
            if not conversation.document:  # lint has no rules for them, and they may be whole books
                even.offer(conversation)
                keys.add(conversation)
            if wanted.sample is not None:
                sample.offer(number, place, conversation)
            elif wanted.first <= place < wanted.last:
                shown.append(conversation)
        looked.append(LookedEntry(entry, reader.facts.info(entry.work), shown, even.rows, keys))
    for seen, rows in zip(looked, sample.chosen(len(looked)), strict=True):
        seen.shown.extend(rows)
    return looked
