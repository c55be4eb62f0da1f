"""What happens to examples that are too long: an error by default, never a silent cut.

Works on the tokens: text holds no control ids, so a supervised stop id is always the end of a trained reply.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import DataError
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.plain_text import split_document
from chatwright.templates.policy import turn_weights
from chatwright.templates.rendered import ExampleKey, RenderedExample, Span
from chatwright.templates.replies import ThinkTokens
from chatwright.templates.tool_grammars import Mode


class Overflow(StrEnum):
    """What to do with an example that has more than `max_tokens` tokens.

    `error`: stop, with the count and the longest rows. `drop`: leave it out. `truncate`: cut the last reply's text that
    fits and keep its end of turn. `split_turns`: several examples by turns, each with the system prompt.
    """

    ERROR = "error"
    DROP = "drop"
    TRUNCATE = "truncate"
    SPLIT_TURNS = "split_turns"


@dataclass(frozen=True, slots=True)
class OverflowRecord:
    """One example that was dropped or cut: which, how many of its tokens went, and why."""

    key: ExampleKey
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """Examples that all fit, and what became of the others.

    Args:
        kept: in order. drops: left out whole. cuts: shortened, or split (then `tokens` are those in no part).
        num_added: examples that splitting added beyond the ones it replaced.
    """

    kept: tuple[RenderedExample, ...]
    drops: tuple[OverflowRecord, ...] = ()
    cuts: tuple[OverflowRecord, ...] = ()
    num_added: int = 0


def fit(
    examples: Sequence[RenderedExample],
    max_tokens: int,
    overflow: Overflow,
    template: Template,
    conversations: Sequence[Conversation] = (),
    train_on: TrainOn | None = None,
) -> Fitted:
    """Bring examples to at most `max_tokens` tokens. Documents are cut into pieces whatever `overflow` says.

    Args:
        template: the one that rendered them.
        conversations: what the examples were rendered from, found by source and row; documents and `split_turns` need
            them, and `split_turns` truncates where it finds none.
        train_on: the mask policy that the examples were rendered with (for `split_turns`).

    Raises:
        DataError: with `overflow: error`, when any example is too long.
    """
    if overflow is Overflow.ERROR:
        _refuse(examples, max_tokens)
    sources = {(conversation.source, conversation.row): conversation for conversation in conversations}
    kept: list[RenderedExample] = []
    drops: list[OverflowRecord] = []
    cuts: list[OverflowRecord] = []
    added = 0
    for example in examples:
        length = len(example.ids)
        if length <= max_tokens:
            kept.append(example)
            continue
        conversation = sources.get((example.key.source, example.key.row))
        if conversation is not None and conversation.document:
            pieces = split_document(example, max_tokens)
            kept += (piece for piece in pieces if piece.num_supervised)
            drops += (_untrained(piece) for piece in pieces if not piece.num_supervised)
            added += len(pieces) - 1
            continue
        parts: list[RenderedExample] = []
        if overflow is Overflow.SPLIT_TURNS:
            parts = split_turns(example, conversation, max_tokens, template, train_on) if conversation else []
        if not parts and overflow in (Overflow.TRUNCATE, Overflow.SPLIT_TURNS):
            cut = truncate(example, max_tokens, template)
            parts = [cut] if cut is not None else []
        if parts:
            kept += parts
            added += len(parts) - 1
            gone = max(0, length - sum(len(part.ids) for part in parts))
            word = "split into turns" if len(parts) > 1 else "cut to length"
            cuts.append(OverflowRecord(example.key, gone, f"{word}: longer than {max_tokens} tokens"))
        else:
            drops.append(OverflowRecord(example.key, length, _drop_reason(overflow, max_tokens)))
    return Fitted(tuple(kept), tuple(drops), tuple(cuts), added)


def _untrained(piece: RenderedExample) -> OverflowRecord:
    return OverflowRecord(piece.key, len(piece.ids), "one token alone, which nothing predicts")


def _drop_reason(overflow: Overflow, max_tokens: int) -> str:
    if overflow is Overflow.DROP:
        return f"longer than {max_tokens} tokens"
    return f"no reply text fits into {max_tokens} tokens"


def _refuse(examples: Sequence[RenderedExample], max_tokens: int) -> None:
    long = sorted((example for example in examples if len(example.ids) > max_tokens), key=lambda e: -len(e.ids))
    if not long:
        return
    worst = ", ".join(f"row {example.key.row}: {len(example.ids):,}" for example in long[:5])
    raise DataError(
        f"{len(long):,} of {len(examples):,} examples are longer than max_tokens = {max_tokens:,}; longest: {worst}",
        source=long[0].key.source,
        row=long[0].key.row,
        hint=f"set max_tokens to {len(long[0].ids)} or more, or overflow to drop, truncate or split_turns",
    )


# Truncation


def truncate(example: RenderedExample, max_tokens: int, template: Template) -> RenderedExample | None:
    """The example cut to length with a supervised end of turn at its end; None where no reply text fits.

    The reply that crosses the limit is cut inside its text and gets its end-of-turn token back. A cut that would fall
    into a tool call, a tool result or a thought moves back to before the call, or to the end of the reply before.
    Examples of mid-training, where every token is trained, are simply cut.
    """
    if max_tokens < 2:
        return None
    if np.all(example.weights[1:] > 0):
        return _cut(example, max_tokens, None)
    ends = np.flatnonzero((example.weights > 0) & np.isin(example.ids, template.stop_ids))
    crossing = ends[ends >= max_tokens]
    whole = ends[ends < max_tokens]
    if len(crossing):
        end = int(crossing[0])
        after = int(whole[-1]) + 1 if len(whole) else 0
        position = _cut_position(example, after, end, max_tokens - 1, template)
        if position is not None:
            return _cut(example, position, end)
    return _cut(example, int(whole[-1]) + 1, None) if len(whole) else None


def _cut_position(example: RenderedExample, after: int, end: int, limit: int, template: Template) -> int | None:
    """Where to cut the reply that ends at `end`: at most `limit`, in its text; None if nothing of it could stay.

    Args:
        after: the first position behind the reply before.
    """
    trained = np.flatnonzero(example.weights[after:end] > 0) + after
    if after and len(trained) and trained[0] == after:  # the line break behind the reply before, trained too
        gaps = np.flatnonzero(np.diff(trained) > 1)
        trained = trained[gaps[0] + 1 :] if len(gaps) else trained[:0]
    if not len(trained):
        return None
    start = int(trained[0])
    reply = example.ids[start:end].tolist()
    position = _text_position(reply, limit - start, template)
    while position > 0 and template.tokenizer.decode(reply[:position]).endswith("\ufffd"):
        position -= 1  # never half a character
    return start + position if position > 0 else None


def _text_position(reply: Sequence[int], limit: int, template: Template) -> int:
    """The last place, at most `limit`, that lies in a reply's plain text; 0 where there is none."""
    think = ThinkTokens.of(template.tokenizer)
    if think:
        following = [index for index in reply[max(limit, 0) :] if index in (think.open, think.close)]
        if following[:1] == [think.close]:
            return 0
    if template.grammar is None:
        has_calls = any(part.kind == "tool_call" for part in template.parse_reply(reply).parts)
        return 0 if has_calls else max(limit, 0)
    state = template.grammar.start()
    safe, waits = 0, False
    for position, index in enumerate(reply[: max(limit, 0)], start=1):
        before = state.mode
        waits = state.feed(index) is not None or (waits and state.mode is not Mode.TEXT)
        if before is Mode.RESULT and state.mode is Mode.TEXT:
            waits = False
        if state.mode is Mode.TEXT and not waits:
            safe = position
    return safe


def _cut(example: RenderedExample, length: int, end: int | None) -> RenderedExample | None:
    """The first `length` tokens, and the end of turn at position `end` behind them."""
    ids, weights = example.ids[:length], example.weights[:length]
    spans = [span._replace(end=min(span.end, length)) for span in example.spans if span.start < length]
    if end is not None:
        ids, weights = np.append(ids, example.ids[end]), np.append(weights, example.weights[end])
        owner = next((span for span in example.spans if span.start <= end < span.end), Span(0, 0, -1, -1))
        spans.append(owner._replace(start=length, end=length + 1))
    cut = replace(example, ids=ids, weights=weights, spans=tuple(spans))
    return cut if cut.num_supervised else None


# Splitting


def split_turns(
    example: RenderedExample,
    conversation: Conversation,
    max_tokens: int,
    template: Template,
    train_on: TrainOn | None = None,
) -> list[RenderedExample]:
    """Several examples of consecutive turns, each beginning with the system prompt and a user message.

    Turns are added to an example while it fits. An exchange too long on its own is truncated, or left out where
    nothing of it fits. An example that trains one turn only (templates that rewrite history) loses its oldest turns.
    Every reply that was trained is trained once.

    Returns:
        The examples, keyed by part 0, 1, …; empty if there is no later user message to split at.
    """
    policy = template.settings.train_on if train_on is None else train_on
    if example.key.part:
        return _shorter_history(example, template.arranged(conversation), max_tokens, template)
    weights = turn_weights(conversation.messages, policy, conversation)
    settled = tuple(
        replace(message, train=weight > 0)
        if message.role == "assistant" and policy is not TrainOn.EVERYTHING
        else message
        for message, weight in zip(conversation.messages, weights, strict=True)
    )
    head, starts = _exchanges(settled)
    if len(starts) < 2:
        return []
    parts: list[RenderedExample] = []
    first, ready = starts[0], list[RenderedExample]()
    for start, border in itertools.pairwise([*starts, len(settled)]):
        longer = _rendered(conversation, (*settled[:head], *settled[first:border]), template, policy)
        if all(len(item.ids) <= max_tokens for item in longer):
            ready = longer
            continue
        parts += ready
        first = start
        alone = _rendered(conversation, (*settled[:head], *settled[start:border]), template, policy)
        ready = [cut for item in alone if (cut := _at_most(item, max_tokens, template)) is not None]
    parts += ready
    return [replace(part, key=example.key._replace(part=number)) for number, part in enumerate(parts)]


def _shorter_history(
    example: RenderedExample, arranged: Conversation, max_tokens: int, template: Template
) -> list[RenderedExample]:
    """The example of one turn with as many of the turns before it as fit."""
    turn = example.key.part
    messages = tuple(
        replace(message, train=index == turn) if message.role == "assistant" else message
        for index, message in enumerate(arranged.messages[: turn + 1])
    )
    head, starts = _exchanges(messages)
    made: list[RenderedExample] = []
    for start in starts[1:]:
        made = _rendered(arranged, (*messages[:head], *messages[start:]), template, TrainOn.ASSISTANT)
        if all(len(item.ids) <= max_tokens for item in made):
            break
    cut = [item for item in (_at_most(item, max_tokens, template) for item in made) if item is not None]
    return [replace(item, key=example.key) for item in cut]


def _exchanges(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """How many messages the system prompt takes (0 or 1), and where user messages begin an exchange behind it."""
    head = 1 if messages and messages[0].role == "system" else 0
    users = [index for index in range(head, len(messages)) if messages[index].role == "user"]
    starts = [index for index in users if index == head or messages[index - 1].role != "user"]
    return head, starts if starts[:1] == [head] else []


def _rendered(
    conversation: Conversation, messages: tuple[Message, ...], template: Template, policy: TrainOn
) -> list[RenderedExample]:
    made = template.render(replace(conversation, messages=messages), policy)
    return [item for item in made if item.num_supervised]


def _at_most(example: RenderedExample, max_tokens: int, template: Template) -> RenderedExample | None:
    return example if len(example.ids) <= max_tokens else truncate(example, max_tokens, template)
