"""What lint rules look at and what they say: the rows with their renderings, hits, rules, findings.

A rule is a function from `LintInput` to hits; what it says to the user stands beside it in `lint_rules.RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from chatwright.conversations.schema import Conversation
from chatwright.errors import TemplateError
from chatwright.inspection.row_keys import RowKeys
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.rendered import RenderedExample

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

_EXCERPT = 100
_BEFORE = 30


class RenderedRow(NamedTuple):
    """A row with its training examples, or with why it can't be rendered."""

    conversation: Conversation
    examples: tuple[RenderedExample, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class LintInput:
    """What every rule may look at.

    Args:
        conversations: the rows. template: how they are rendered, or None.
        rendered: a sample of the rows, rendered; empty without a template.
        keys: of all rows of the set, where `conversations` are only some of them.
    """

    conversations: Sequence[Conversation]
    template: Template | None = None
    rendered: Sequence[RenderedRow] = ()
    keys: RowKeys = field(default_factory=RowKeys)


class Hit(NamedTuple):
    """One thing that a rule found.

    Args:
        conversation: the row. message: the message's number in it, or None for the whole row.
        what: a few words on this very place. excerpt: the text that shows it.
    """

    conversation: Conversation
    message: int | None
    what: str
    excerpt: str = ""


class Counted(NamedTuple):
    """What a rule found that looks at more rows than are held: how many rows, where, and text of the first."""

    rows: int
    places: Iterable[LintPlace]
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the registry.

    Args:
        check: yields the hits, or counts them.
        severity: `error` = trains what nobody wants; `warning` = probably; `info` = look once.
        says: what is wrong, in one line. fix: what to do, with the setting to type where there is one.
    """

    check: Callable[[LintInput], Iterable[Hit] | Counted]
    severity: Severity
    says: str
    fix: str


class LintPlace(NamedTuple):
    """Where a rule fired: source and row, the message's number or None, and what was found there."""

    source: str
    row: int
    message: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found in a data set.

    Args:
        rule: its name. severity: see `Rule`. says: what is wrong.
        count: rows with it, among those checked (exact duplicates: among all). fix: what to do.
        places: the first ones. excerpt: text of the first one.
    """

    rule: str
    severity: Severity
    says: str
    count: int
    fix: str
    places: tuple[LintPlace, ...]
    excerpt: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("rule", "severity", "says", "count", "fix", "excerpt")},
            "places": [place._asdict() for place in self.places],
        }


def excerpt(text: str, at: int = 0) -> str:
    """A line of text around a position, cut to a readable length."""
    first = max(0, at - _BEFORE)
    cut = " ".join(text[first : first + _EXCERPT].split())
    return f"{'…' if first else ''}{cut}{'…' if first + _EXCERPT < len(text) else ''}"


def render_sample(
    conversations: Sequence[Conversation], template: Template, train_on: TrainOn | None
) -> list[RenderedRow]:
    """Render rows; those that the template refuses come with the reason."""
    return [_render(conversation, template, train_on) for conversation in conversations]


def _render(conversation: Conversation, template: Template, train_on: TrainOn | None) -> RenderedRow:
    try:
        return RenderedRow(conversation, tuple(template.render(conversation, train_on)))
    except TemplateError as error:
        return RenderedRow(conversation, failure=error.message)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, spread evenly, in order."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def texts(conversation: Conversation) -> Iterator[tuple[int, str, str]]:
    """(message number, role, text) of every part."""
    for number, message in enumerate(conversation.messages):
        for part in message.parts:
            yield number, message.role, part.text
