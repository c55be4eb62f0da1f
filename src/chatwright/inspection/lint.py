"""Lint: what is wrong or odd in a data set, with rows and a fix for each, before any of it is trained.

`lint` runs the rules of `lint_rules.RULES` over conversations, and over their renderings where a template is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from chatwright.conversations.schema import Conversation
from chatwright.inspection.lint_rules import RULES
from chatwright.inspection.lint_types import (
    SEVERITIES,
    Counted,
    Finding,
    Hit,
    LintInput,
    LintPlace,
    Rule,
    Severity,
    evenly,
    render_sample,
)
from chatwright.inspection.row_keys import RowKeys
from chatwright.inspection.viewer import printable
from chatwright.templates.base import Template, TrainOn

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

MAX_ROWS = 20_000
MAX_RENDERED = 1_000
MAX_PLACES = 20


@dataclass(frozen=True, slots=True)
class LintReport:
    """What lint found, the worst first.

    Args:
        findings: one a rule that fired.
        num_rows: rows given, all of them looked at for exact duplicates. checked: rows looked at by all other rules.
        rendered: rows rendered.
    """

    findings: tuple[Finding, ...]
    num_rows: int
    checked: int
    rendered: int

    def count(self, severity: Severity) -> int:
        """How many findings have a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        numbers = {name: getattr(self, name) for name in ("num_rows", "checked", "rendered")}
        return {**numbers, "findings": [finding.to_dict() for finding in self.findings]}

    def summary(self) -> str:
        """One line: what was looked at and what was found."""
        looked = (
            f"{self.checked:,} of {self.num_rows:,} rows" if self.checked < self.num_rows else f"{self.checked:,} rows"
        )
        found = ", ".join(f"{self.count(severity)} {severity}" for severity in SEVERITIES if self.count(severity))
        beside = " (all for exact duplicates)" if self.checked < self.num_rows else ""
        return f"{looked} looked at{beside}, {self.rendered:,} of them rendered: {found or 'nothing found'}"

    def renderable(self, name: str) -> Group:
        """The findings for the terminal, each with its rows, an example and its fix.

        Args:
            name: what was looked at.
        """
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        lines: list[RenderableType] = [Text(f"lint of {name}: {self.summary()}", style="bold")]
        for each in self.findings:
            head = Text(f"{each.severity:7} ", style=_LOOKS[each.severity])
            head.append(f"{each.rule}", style="bold").append(f"  {each.count:,} rows, first {_where(each.places)}")
            example = each.places[0].what + (f": {printable(each.excerpt)}" if each.excerpt else "")
            told = Text(f"{each.says}\n").append(f"{example}\n", style="dim").append("fix: ").append(each.fix)
            lines += [head, Padding(told, (0, 0, 0, 8))]
        return Group(*lines)


_LOOKS: dict[Severity, str] = {"error": "red", "warning": "yellow", "info": "cyan"}


def _where(places: Sequence[LintPlace]) -> str:
    return ", ".join(str(row) for row in dict.fromkeys(place.row for place in places[:3]))


def lint(
    conversations: Sequence[Conversation],
    template: Template | None = None,
    *,
    train_on: TrainOn | None = None,
    keys: RowKeys | None = None,
    max_rows: int = MAX_ROWS,
    max_rendered: int = MAX_RENDERED,
    max_places: int = MAX_PLACES,
    rules: Mapping[str, Rule] = RULES,
) -> LintReport:
    """Check a data set.

    Args:
        conversations: its rows, transformed and filtered as they will be trained. Documents are passed over, since the
            rules are about questions and replies.
        template: renders a sample of them; without one the rules that need it are left out.
        train_on: the mask policy; the template's own when None.
        keys: of all rows, where `conversations` are only some of them.
        max_rows, max_rendered: rows looked at and rendered, spread evenly over the set.
        max_places: places kept a finding.
        rules: what is asked.
    """
    conversations = [each for each in conversations if not each.document]
    chosen = evenly(conversations, max_rows)
    rendered = render_sample(evenly(chosen, max_rendered), template, train_on) if template is not None else []
    keys = RowKeys(conversations) if keys is None else keys
    data = LintInput(chosen, template, rendered, keys)
    findings = [_finding(name, rule, rule.check(data), max_places) for name, rule in rules.items()]
    found = [finding for finding in findings if finding is not None]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return LintReport(tuple(found), len(keys), len(chosen), len(rendered))


def _finding(name: str, rule: Rule, found: Iterable[Hit] | Counted, max_places: int) -> Finding | None:
    counted = found if isinstance(found, Counted) else _counted(list(found))
    if not counted.rows:
        return None
    places = tuple(islice(counted.places, max_places))
    return Finding(name, rule.severity, rule.says, counted.rows, rule.fix, places, counted.excerpt)


def _counted(hits: Sequence[Hit]) -> Counted:
    rows = {(hit.conversation.source, hit.conversation.row) for hit in hits}
    return Counted(len(rows), map(_place, hits), hits[0].excerpt if hits else "")


def _place(hit: Hit) -> LintPlace:
    return LintPlace(hit.conversation.source, hit.conversation.row, hit.message, hit.what)
