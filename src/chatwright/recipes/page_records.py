"""Gathers what `chatwright inspect --html` shows: the shown examples, packs and figures of a recipe's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chatwright.conversations.schema import Conversation, Message
from chatwright.inspection.cells import token_cells
from chatwright.inspection.ledger import Stage
from chatwright.inspection.page_data import (
    Histogram,
    MessageText,
    PageData,
    PageFinding,
    PageMatch,
    PlanFigures,
    RunFigures,
    ShownExample,
    ShownPack,
    ShownSegment,
    SourceFigures,
    length_edges,
    stretches,
)
from chatwright.inspection.viewer import trained_mask
from chatwright.recipes.data import RunData
from chatwright.recipes.planning import contamination_account
from chatwright.recipes.rendering import mask_policy
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.token_losses import BeforeAfter
from chatwright.settings import dump_yaml
from chatwright.templates.base import Template
from chatwright.templates.jinja import JinjaTemplate
from chatwright.templates.plain_text import split_document
from chatwright.templates.rendered import RenderedExample

MOST_TOKENS = 2_000
"""Tokens shown of one example; the page says how many more there are."""
MOST_PACKS = 24
MOST_PIECES, MOST_CHARACTERS = 3, 8_000
"""Shown of a document, which may be a whole book: pieces, and characters of its text."""
PLACES_EACH, MOST_PLACES = 2, 20
"""Rows shown besides the chosen ones because lint points at them: of each finding, and in all."""
SHARE_EDGES = tuple(round(step * 0.05, 2) for step in range(21))


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows to show: for each data entry its chosen conversations, and in words how they were chosen."""

    conversations: tuple[tuple[Conversation, ...], ...]
    words: str


@dataclass(frozen=True, slots=True)
class ChosenExample:
    """An example as it is trained (or, with `in_run` False, would be), its conversation, and what to know of it."""

    entry: int
    conversation: Conversation
    example: RenderedExample
    notes: tuple[str, ...] = ()
    in_run: bool = True


def with_places(choice: Choice, read: Sequence[Sequence[Conversation]], findings: Sequence[PageFinding]) -> Choice:
    """The choice and, behind each entry's rows, the first rows that the findings point at, so that links lead there.

    Args:
        read: all conversations of each entry.
    """
    wanted = {(place.source, place.row): None for finding in findings for place in finding.places[:PLACES_EACH]}
    have = {(each.source, each.row) for rows in choice.conversations for each in rows}
    wanted = dict.fromkeys(list(wanted)[:MOST_PLACES])
    made: list[tuple[Conversation, ...]] = []
    added = 0
    for chosen, rows in zip(choice.conversations, read, strict=True):
        more = [row for row in rows if (row.source, row.row) in wanted and (row.source, row.row) not in have]
        have |= {(row.source, row.row) for row in more}
        made.append((*chosen, *more))
        added += len(more)
    return Choice(tuple(made), choice.words + (f", and {added:,} that lint points at" if added else ""))


def chosen_examples(settings: RunSettings, data: RunData, choice: Choice) -> list[ChosenExample]:
    """The examples of the chosen rows: what the token store holds, and where it holds none, as they would render."""
    found: list[ChosenExample] = []
    template = data.text.template
    for number, conversations in enumerate(choice.conversations):
        groups = template.render_many(conversations, mask_policy(settings.data[number], settings))
        for conversation, group in zip(conversations, groups, strict=True):
            stored = _stored(data, number, conversation)
            if conversation.document:
                stored = stored[:MOST_PIECES]
                group = split_document(group[0], settings.max_tokens)[:MOST_PIECES]
                conversation = _beginning(conversation)
            if stored:
                rendered = {example.key.part: example for example in group}
                found += [_as_trained(number, conversation, each, rendered.get(each.key.part)) for each in stored]
            else:
                why = _why_absent(settings, data, conversation, group)
                found += [ChosenExample(number, conversation, example, (why,), in_run=False) for example in group]
    return found


def _beginning(document: Conversation) -> Conversation:
    text = document.messages[0].text
    if len(text) <= MOST_CHARACTERS:
        return document
    return replace(document, messages=(Message.of("assistant", f"{text[:MOST_CHARACTERS]} …"),))


def _stored(data: RunData, entry: int, conversation: Conversation) -> list[RenderedExample]:
    """The training examples of a row, each once, without spans."""
    store = data.store
    if conversation.source not in store.sources:
        return []
    here = (store.rows == conversation.row) & (data.entry_index == entry)
    here &= store.source_index == store.sources.index(conversation.source)
    numbers = {store.key(int(index)): int(index) for index in np.flatnonzero(here)}
    return [RenderedExample(*store.example(index), (), key) for key, index in sorted(numbers.items())]


def _as_trained(
    entry: int, conversation: Conversation, stored: RenderedExample, rendered: RenderedExample | None
) -> ChosenExample:
    if rendered is not None and np.array_equal(stored.ids, rendered.ids):
        return ChosenExample(entry, conversation, replace(stored, spans=rendered.spans))
    return ChosenExample(entry, conversation, stored, ("changed on the way: cut to length or split",))


def _why_absent(
    settings: RunSettings, data: RunData, conversation: Conversation, group: Sequence[RenderedExample]
) -> str:
    held = data.heldout
    if conversation.source in held.sources:
        place = held.sources.index(conversation.source)
        if bool(((held.rows == conversation.row) & (held.source_index == place)).any()):
            return "held out: measured on, never trained on"
    longest = max((len(example.ids) for example in group), default=0)
    if longest > settings.max_tokens:
        return f"not trained: {longest:,} tokens, more than max_tokens = {settings.max_tokens:,}"
    if not any(example.num_supervised for example in group):
        return "not trained: it has no token to train"
    return "not trained: left out on the way (see the ledger for the reasons)"


def page_data(
    settings: RunSettings,
    data: RunData,
    title: str,
    choice: Choice,
    *,
    losses: BeforeAfter | None = None,
    chosen: Sequence[ChosenExample] | None = None,
    findings: Iterable[PageFinding] | None = None,
    matches: Iterable[PageMatch] | None = None,
) -> PageData:
    """Everything the page shows.

    Args:
        settings, data: the recipe and what was made of it.
        title: names the data. choice: the rows to show. chosen: what `chosen_examples` gave, if it was asked already.
        losses: of the tokens of `chosen`, in its order.
        findings, matches: what lint and the contamination check found, where they ran.
    """
    template, plan = data.text.template, data.plan
    examples = chosen if chosen is not None else chosen_examples(settings, data, choice)
    waste = plan.waste(data.store.lengths)
    steps = np.repeat(np.arange(plan.num_steps), np.diff(plan.step_starts))
    return PageData(
        title=title,
        model=settings.model_name,
        template=_template_name(template),
        identity=template.identity,
        sources=tuple(_sources(data)),
        examples=tuple(_shown(data, each, losses, number) for number, each in enumerate(examples)),
        num_examples=len(data.store),
        choice=choice.words,
        packs=tuple(_pack(data, number, int(steps[number])) for number in range(min(MOST_PACKS, plan.num_packs))),
        plan=PlanFigures(
            plan.num_packs,
            plan.num_steps,
            plan.num_epochs,
            plan.tokens_per_pack,
            waste.placed_tokens,
            waste.capacity_tokens - waste.placed_tokens,
        ),
        ledger=tuple(data.ledger.to_dict()["entries"]),
        recipe=dump_yaml(settings, only_changed=True),
        findings=None if findings is None else tuple(findings),
        matches=None if matches is None else tuple(matches),
        run=_run_figures(losses),
        contamination=contamination_account(settings, data.contamination, data.ledger).line,
    )


def _template_name(template: Template) -> str:
    name = template.settings.format
    return name if name != "auto" else f"auto: {'the model’s own' if isinstance(template, JinjaTemplate) else 'native'}"


def _sources(data: RunData) -> Iterator[SourceFigures]:
    lengths, supervised = data.store.lengths, data.store.supervised_counts
    edges = length_edges(int(lengths.max(initial=1)))
    for number, entry in enumerate(data.entries):
        mine = np.flatnonzero(data.entry_index == number)
        yield SourceFigures(
            name=entry.name,
            format=entry.format,
            rows=data.ledger.rows(Stage.READ, entry.name),
            examples=len(mine),
            tokens=int(lengths[mine].sum()),
            supervised=int(supervised[mine].sum()),
            lengths=Histogram.of(lengths[mine], edges),
            shares=Histogram.of(supervised[mine] / lengths[mine], SHARE_EDGES),
        )


def _shown(data: RunData, chosen: ChosenExample, losses: BeforeAfter | None, number: int) -> ShownExample:
    example = chosen.example
    return ShownExample(
        key=example.key,
        entry=chosen.entry,
        ids=tuple(example.ids[:MOST_TOKENS].tolist()),
        cells=tuple(token_cells(example, data.text.tokenizer, MOST_TOKENS)),
        num_tokens=len(example.ids),
        num_supervised=example.num_supervised,
        trained_runs=stretches(trained_mask(example)),
        messages=tuple(_message(message) for message in chosen.conversation.messages),
        in_run=chosen.in_run,
        notes=chosen.notes,
        losses_before=losses.before[number] if losses else None,
        losses_after=losses.after[number] if losses else None,
    )


def _message(message: Message) -> MessageText:
    kinds = tuple((part.kind if part.tool is None else f"{part.kind} {part.tool}", part.text) for part in message.parts)
    return MessageText(message.role, kinds, message.train)


def _pack(data: RunData, number: int, step: int) -> ShownPack:
    """One pack, its segments in order."""
    segments: list[ShownSegment] = []
    start = 0
    for member in data.plan.pack(number).tolist():
        ids, weights = data.store.example(member)
        example = RenderedExample(ids, weights, (), data.store.key(member))
        segments.append(
            ShownSegment(start, len(ids), example.key, example.num_supervised, stretches(trained_mask(example)))
        )
        start += len(ids)
    epoch = int(data.plan.epoch_of_pack[number]) + 1
    return ShownPack(number + 1, step + 1, epoch, start, data.plan.tokens_per_pack, tuple(segments))


def _run_figures(losses: BeforeAfter | None) -> RunFigures | None:
    if losses is None:
        return None
    before = [loss for each in losses.before for loss in each.values()]
    after = [loss for each in losses.after for loss in each.values()]
    if not before:
        return None
    return RunFigures(losses.before_name, losses.after_name, float(np.mean(before)), float(np.mean(after)), len(before))
