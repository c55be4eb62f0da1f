"""Rows → token examples: converted, transformed, filtered, rendered, brought to length; all that goes is counted.

A pure function of the rows and the work: the same rows give the same tokens in any process, in any grouping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np

from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.conversations.files import RawRow
from chatwright.conversations.filters import RowFilters, build_filters
from chatwright.conversations.preference_types import Dropped, PairConversation
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import general_field
from chatwright.conversations.transforms import RowTransforms, build_transforms
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.inspection.lint_replies import has_placeholder
from chatwright.preparation.columns import RowColumns
from chatwright.preparation.marks import ContaminationCheck, Marks
from chatwright.preparation.row_kinds import MOST_CHARACTERS, convert_row, cut_of, size_of
from chatwright.preparation.work import EntryInfo, EntryWork, RenderWork
from chatwright.templates.base import Template
from chatwright.templates.overflow import Overflow, fit
from chatwright.templates.pairs import fit_pairs, render_pairs
from chatwright.templates.rendered import RenderedExample

ROWS_AT_ONCE = 1000
"""Rows rendered and encoded together: enough to fill the tokenizer's threads, little enough to hold."""
PLACES_SHOWN = 20
_TOOLS_UNSEEN = (
    "offer tools, whose definitions this template doesn't show to the model; no setting changes that: write them into "
    "the system messages, or take a model whose own template shows tools, as Qwen's and Hermes's do"
)
LONGEST_SHOWN = 5
T = TypeVar("T", RawRow, Conversation)


@dataclass(slots=True)
class RowFacts:
    """What became of the rows that were read, beside the ledger's counts."""

    num_rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skip_places: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    num_examples: int = 0
    num_too_long: int = 0
    longest: list[tuple[int, str, int]] = field(default_factory=list)

    def add(self, other: RowFacts) -> None:
        """Add another range's facts, in the order of the rows."""
        self.num_rows += other.num_rows
        self.num_examples += other.num_examples
        for mine, theirs in ((self.skipped, other.skipped), (self.notes, other.notes), (self.changed, other.changed)):
            mine.update(theirs)
        self.skip_places = (self.skip_places + other.skip_places)[:PLACES_SHOWN]
        self.add_too_long(other.num_too_long, other.longest)

    def add_too_long(self, count: int, found: Iterable[tuple[int, str, int]]) -> None:
        """Count examples over the limit; of those found, (tokens, source, row), the longest are held."""
        self.num_too_long += count
        self.longest = longest_of([*self.longest, *found])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        counted = {"skipped": dict(self.skipped), "notes": dict(self.notes), "changed": dict(self.changed)}
        return {each.name: getattr(self, each.name) for each in fields(self)} | counted

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RowFacts:
        """What `to_dict` gave, read back from JSON."""
        counted = {name: Counter(data[name]) for name in ("skipped", "notes", "changed")}
        long = [(tokens, source, row) for tokens, source, row in data["longest"]]
        return RowFacts(**{**data, **counted, "longest": long})

    def info(self, work: EntryWork) -> EntryInfo:
        """The entry's account."""
        places = tuple(self.skip_places)
        return EntryInfo(
            work.name,
            work.format_shown,
            self.num_rows,
            dict(self.skipped),
            places,
            dict(self.notes),
            dict(self.changed),
            self.num_examples,
            self.num_too_long,
            tuple(self.longest),
        )


def longest_of(found: Iterable[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """The few longest of (tokens, source, row)."""
    return sorted(found, key=lambda each: (-each[0], each[1:]))[:LONGEST_SHOWN]


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """The tokens of a range of rows.

    Args:
        store: the examples. ledger, facts: the account.
        columns: per-row arrays for filters that need the whole source, by name; row r of them is the r-th row rendered.
        row_of: int64 `[n]`, each example's row in `columns`.
        contamination: what `ContaminationReport.to_dict` gives, where the rows were compared with evaluations.
    """

    store: TokenStore
    ledger: Ledger
    facts: RowFacts
    columns: dict[str, np.ndarray]
    row_of: np.ndarray
    contamination: dict[str, Any] | None = None


class RowReader:
    """Raw rows → conversations as they are trained on, counting what is left out.

    Args:
        work: the entry.
        seed: of the run, for transforms.
        check: what rows are compared with; held-out data isn't, since nothing is trained on it.

    Raises:
        UserError: a filter or transform needs what is missing.
    """

    def __init__(self, work: EntryWork, seed: int, check: ContaminationCheck | None = None) -> None:
        self.work, self.seed = work, seed
        self.marks = check.begin() if check is not None and not work.heldout else None
        self.ledger, self.facts = Ledger(), RowFacts()
        self.filters: RowFilters = build_filters(work.entry.filters)
        self.transforms: RowTransforms = build_transforms(work.entry.transforms, work.entry.path)

    def read(self, rows: Iterable[RawRow]) -> Iterator[Conversation]:
        """The conversations of rows, in their order.

        Raises:
            DataError: a bad row, and the entry doesn't skip them.
        """
        name = self.work.name
        for group in _groups(rows, ROWS_AT_ONCE):
            self.facts.num_rows += len(group)
            self.ledger.count(name, Stage.READ, len(group))
            converted = [made for row in group if (made := self._convert(row)) is not None]
            self.ledger.count(name, Stage.CONVERTED, len(converted))
            changed = [self._transform(conversation) for conversation in converted]
            kept = [c for c in changed if self._stays(c, self._filtered)]
            yield from kept if self.marks is None else self._marked(kept, self.marks)

    def _convert(self, row: RawRow) -> Conversation | None:
        try:
            found = convert_row(row, self.work)
        except DataError as error:
            if self.work.entry.on_bad_row == "error" or error.row is None:
                raise
            self.facts.skipped[general_field(error.field)] += 1
            if len(self.facts.skip_places) < PLACES_SHOWN:
                self.facts.skip_places.append(f"{row.source} row {row.number}: {error.message}")
            self.ledger.count(self.work.name, Stage.SKIPPED, 1, reason=f"bad {general_field(error.field)}")
            return None
        if isinstance(found, Dropped):
            self.ledger.count(self.work.name, Stage.CONVERTED, 1)
            self.ledger.count(self.work.name, Stage.FILTERED, 1, reason=f"preference: {found.reason}")
            return None
        if (cut := cut_of(row)) is not None:
            self.facts.changed[cut] += 1
        return found

    def _transform(self, conversation: Conversation) -> Conversation:
        changed, names = self.transforms.apply(conversation, self.seed)
        if isinstance(changed, PairConversation):  # both sides alike: draws depend on the row, not on what it says
            worse, more = self.transforms.apply(changed.worse, self.seed)
            changed, names = replace(changed, rejected=worse.messages), tuple(dict.fromkeys((*names, *more)))
        self.facts.changed.update(names)
        return changed

    def _filtered(self, conversation: Conversation) -> str | None:
        """Why a row doesn't stay; of a pair both sides must."""
        reason = self.filters.reason(conversation)
        if reason is None and isinstance(conversation, PairConversation):
            return self.filters.reason(conversation.worse)
        return reason

    def _stays(self, conversation: Conversation, reason_of: Callable[[Conversation], str | None]) -> bool:
        reason = reason_of(conversation)
        if reason is not None:
            self.ledger.count(self.work.name, Stage.FILTERED, 1, reason=reason)
        return reason is None

    def _marked(self, conversations: list[Conversation], marks: Marks) -> Iterator[Conversation]:
        for conversation, reason in zip(conversations, marks.reasons(conversations), strict=True):
            if self._stays(conversation, lambda _, reason=reason: reason):  # type: ignore[misc]
                yield conversation


def prepare_rows(
    rows: Iterable[RawRow],
    work: EntryWork,
    render: RenderWork,
    template: Template,
    check: ContaminationCheck | None = None,
    on_group: Callable[[int], None] | None = None,
) -> PreparedRows:
    """The tokens of rows.

    Args:
        rows: raw rows, or rows whose values are `Conversation`s.
        template: what `render.load_template()` gives.
        on_group: called with the number of rows done since the last call.

    Raises:
        DataError: a bad row, or one with nothing to train, and the entry doesn't skip them.
        TemplateError: the template can't render a row faithfully.
    """
    reader = RowReader(work, render.seed, check)
    columns = RowColumns(reader.filters, compared=render.compared)
    stores: list[TokenStore] = []
    done = 0
    for group in _groups(reader.read(rows), ROWS_AT_ONCE):
        _note_rows_to_look_at(group, template, reader.facts)
        examples = _render_group(group, work, render, template, reader)
        columns.add(group, examples)
        stores.append(TokenStore.from_examples(examples, template.tokenizer.vocab_size))
        if on_group is not None:
            on_group(reader.facts.num_rows - done)
            done = reader.facts.num_rows
    stores = stores or [TokenStore.from_examples([], template.tokenizer.vocab_size)]
    if on_group is not None:
        on_group(reader.facts.num_rows - done)
    made, row_of = columns.finish()
    report = reader.marks.report.to_dict() if reader.marks is not None else None
    return PreparedRows(concatenate(stores), reader.ledger, reader.facts, made, row_of, report)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, and of little more than `MOST_CHARACTERS` of plain text."""
    group: list[T] = []
    characters = 0
    for item in items:
        group.append(item)
        characters += size_of(item)
        if len(group) == size or characters > MOST_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _note_rows_to_look_at(conversations: Sequence[Conversation], template: Template, facts: RowFacts) -> None:
    """What is trained as asked, but may not be what was meant."""
    for conversation in conversations:
        if conversation.tools and template.grammar is not None:
            facts.notes[_TOOLS_UNSEEN] += 1
        if has_placeholder(conversation):
            facts.notes[
                "hold placeholders such as {{name}}, which are learned as words; transforms: fill fills them"
            ] += 1
        replies = (m for m in conversation.messages if m.role == "assistant")
        if any(not any(part.text.strip() for part in m.parts) for m in replies):
            facts.notes["have an empty reply, which trains the model to say nothing"] += 1


def _render_group(
    group: Sequence[Conversation], work: EntryWork, render: RenderWork, template: Template, reader: RowReader
) -> list[RenderedExample]:
    """Render, leave out what trains nothing, and bring over-long examples to length; all counted."""
    name, ledger, facts = work.name, reader.ledger, reader.facts
    pairs = [row for row in group if isinstance(row, PairConversation)]
    if pairs:
        rendered = render_pairs(template, pairs)
    else:
        rendered = [example for row in template.render_many(group, work.train_on) for example in row]
    facts.num_examples += len(rendered)
    ledger.count(name, Stage.EXPANDED, len(rendered) - len(group))
    ledger.count(name, Stage.RENDERED, len(rendered), _tokens(rendered))
    kept = _trainable(rendered, work, ledger)
    overflow = render.overflow
    if overflow in (Overflow.ERROR, Overflow.DROP):  # for `error` all are reported at once, when the last row is read
        documents = {(row.source, row.row) for row in group if row.document}  # these are cut into pieces
        long = [e for e in kept if len(e.ids) > render.max_tokens and (e.key.source, e.key.row) not in documents]
        facts.add_too_long(len(long), [(len(each.ids), each.key.source, each.key.row) for each in long])
        overflow = Overflow.DROP
    if pairs:
        fitted = fit_pairs(kept, render.max_tokens, overflow, template)
    else:
        fitted = fit(kept, render.max_tokens, overflow, template, group, work.train_on)
    for drop in fitted.drops:
        ledger.count(name, Stage.DROPPED, 1, drop.tokens, drop.reason)
    for cut in fitted.cuts:
        ledger.count(name, Stage.CUT, 1, cut.tokens, cut.reason)
    lost = sum(record.tokens for record in (*fitted.drops, *fitted.cuts))
    repeated = _tokens(fitted.kept) + lost - _tokens(kept)  # a system prompt stands in every part of a split example
    assert repeated == 0 or fitted.num_added, "fitting changed examples without saying so"
    ledger.count(name, Stage.SPLIT, fitted.num_added, repeated)
    ledger.count(name, Stage.KEPT, len(fitted.kept), _tokens(fitted.kept))
    return list(fitted.kept)


def _trainable(examples: Sequence[RenderedExample], work: EntryWork, ledger: Ledger) -> list[RenderedExample]:
    """The examples with at least one supervised token.

    Raises:
        DataError: one has none, and the entry neither skips bad rows nor is streamed (a budget limits it then).
    """
    kept = []
    for example in examples:
        if example.num_supervised:
            kept.append(example)
        elif work.entry.on_bad_row == "skip" or work.streamed:
            ledger.count(work.name, Stage.DROPPED, 1, len(example.ids), "nothing to train")
        else:
            raise DataError(
                "has no token to train on (no assistant reply that the mask policy trains)",
                source=example.key.source,
                row=example.key.row,
                hint="repair or remove the row, set on_bad_row: skip, or choose another template.train_on",
            )
    return kept


def _tokens(examples: Sequence[RenderedExample]) -> int:
    return sum(len(example.ids) for example in examples)


def require_fitting(entries: Iterable[EntryInfo], max_tokens: int, choices: str) -> None:
    """Refuse examples over the limit, all at once.

    Args:
        choices: of `overflow`, as a sentence names them.

    Raises:
        DataError: there are some.
    """
    longer = [entry for entry in entries if entry.num_too_long]
    if not longer:
        return
    worst = longest_of(each for entry in longer for each in entry.longest)
    named = ", ".join(f"row {row}: {tokens:,}" for tokens, _, row in worst)
    count, total = (sum(getattr(entry, name) for entry in longer) for name in ("num_too_long", "num_examples"))
    raise DataError(
        f"{count:,} of {total:,} examples are longer than max_tokens = {max_tokens:,}; longest: {named}",
        source=worst[0][1],
        row=worst[0][2],
        hint=f"set max_tokens to {worst[0][0]} or more, or overflow to {choices}",
    )


def named_rows(conversations: Sequence[Conversation], name: str) -> Iterator[RawRow]:
    """Conversations made in memory as rows, each with a place of its own; those that have one keep it."""
    own = len({(c.source, c.row) for c in conversations}) == len(conversations)
    for row, conversation in enumerate(conversations):
        placed = conversation if own else replace(conversation, source=name, row=row)
        yield RawRow(placed, placed.source, placed.row)
