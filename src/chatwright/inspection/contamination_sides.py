"""The two sides of a match: what the evaluation says and what the training row says, with the words they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chatwright.conversations.schema import Conversation
from chatwright.inspection.contamination import (
    SHINGLE,
    ContaminationIndex,
    Match,
    MatchKind,
    covered,
    segments,
)
from chatwright.inspection.evaluation_texts import EvalText, TextField
from chatwright.inspection.word_hashes import grams, word_spans

Span = tuple[int, int]

LEAST_SHOWN = 60
"""Words of a training row that are shown, at least; else twice as many as the evaluation text has."""
MOST_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Side:
    """An excerpt and the characters `[start, end)` of it that the other side has too; `cut` where more text stands."""

    text: str
    spans: tuple[Span, ...]
    cut_before: bool = False
    cut_after: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """A training row that holds an evaluation item, to look at.

    Args:
        source, row: the training row.
        task, split, eval_source, eval_row, field: the evaluation's text.
        kind: `ngram` (words in a row) or `near_duplicate`.
        share: how much of the evaluation's text the row holds, 0 to 1. grams: n-grams or shingles that both have.
        train, evaluation: the two sides.
    """

    source: str
    row: int
    task: str
    split: str
    eval_source: str
    eval_row: int
    field: TextField
    kind: MatchKind
    share: float
    grams: int
    train: Side
    evaluation: Side

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts the hits that show most to the front, the same whatever came first."""
        place = (self.source, self.row, self.eval_source, self.eval_row, self.field)
        return (-self.share, -self.grams, *place)


def order_of(conversation: Conversation, item: EvalText, match: Match) -> tuple[Any, ...]:
    """`Hit.order` of a match, before its sides are made."""
    place = (conversation.source, conversation.row, item.source, item.row, item.field)
    return (-match.share, -match.grams, *place)


def check(index: ContaminationIndex, conversation: Conversation) -> list[Hit]:
    """Everything in one conversation that an evaluation asks or answers."""
    return check_many(index, [conversation])[0]


def check_many(index: ContaminationIndex, conversations: Iterable[Conversation]) -> list[list[Hit]]:
    """The same for many, in one pass."""
    rows = list(conversations)
    found = index.matches(rows)
    return [[make_hit(index, row, match) for match in each] for row, each in zip(rows, found, strict=True)]


def make_hit(index: ContaminationIndex, conversation: Conversation, match: Match) -> Hit:
    """A match with its two sides."""
    item = index.items[match.text]
    row_text = "\n".join(segments(conversation))
    item_words, item_starts, item_ends = word_spans(item.text)
    row_words, row_starts, row_ends = word_spans(row_text)
    n = SHINGLE if match.kind == "near_duplicate" else min(index.n, len(item_words))
    in_item, in_row = shared_words(item_words, row_words, n)
    window = max(LEAST_SHOWN, min(2 * len(item_words), MOST_SHOWN))
    return Hit(
        conversation.source,
        conversation.row,
        *item.item,
        item.field,
        match.kind,
        match.share,
        match.grams,
        _side(row_text, row_starts, row_ends, in_row, window),
        _side(item.text, item_starts, item_ends, in_item, MOST_SHOWN),
    )


def shared_words(first: np.ndarray, second: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """bool masks of the words of two texts (uint64 hashes) that lie in an n-gram which both have."""
    one, other = grams(first, n), grams(second, n)
    return covered(np.isin(one, other), n), covered(np.isin(other, one), n)


def _side(text: str, starts: np.ndarray, ends: np.ndarray, shared: np.ndarray, most: int) -> Side:
    """The part of a text of at most `most` words that shares the most, with the shared runs as spans."""
    first, last = _densest(shared, most)
    if first == last:
        return Side(text, ())
    begin = int(starts[first]) if first else 0
    end = int(ends[last - 1]) if last < len(starts) else len(text)
    marked = np.flatnonzero(shared[first:last]) + first
    runs = np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1) if len(marked) else []
    spans = tuple((int(starts[run[0]]) - begin, int(ends[run[-1]]) - begin) for run in runs)
    return Side(text[begin:end], spans, first > 0, last < len(starts))


def _densest(shared: np.ndarray, most: int) -> Span:
    """The stretch of `most` words that holds the most shared ones, the matched words in its middle."""
    if len(shared) <= most:
        return 0, len(shared)
    sums = np.concatenate([[0], np.cumsum(shared)])
    first = int(np.argmax(sums[most:] - sums[:-most]))
    marked = np.flatnonzero(shared[first : first + most]) + first
    if len(marked):
        first = max(0, min((int(marked[0]) + int(marked[-1]) + 1 - most) // 2, len(shared) - most))
    return first, first + most
