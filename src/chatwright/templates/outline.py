"""Outlines: a conversation as pieces of text and control tokens, each with its weight, and how they become ids.

Text is encoded gap by gap: everything between two control tokens together, but for one split exactly where generation
begins. Serving sends the prompt up to there, so training must cut there too (law 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np

from chatwright.templates.rendered import ExampleKey, RenderedExample, Span
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place


class Piece(NamedTuple):
    """A text or one control token.

    Args:
        content: text, or a control token's id.
        weight: 0 = given to the model, > 0 = trained.
        message, part: where it came from; −1 = the template.
        fresh: encoded apart from the text before it.
    """

    content: str | int
    weight: float = 0.0
    message: int = -1
    part: int = -1
    fresh: bool = False


class Outline(NamedTuple):
    """The pieces of one example, in order."""

    pieces: tuple[Piece, ...]
    key: ExampleKey


class _Gap(NamedTuple):
    """Text that is encoded in one go, and the last piece it came from."""

    text: str
    place: Place
    source: Piece


def _gaps(pieces: Sequence[Piece]) -> list[_Gap | Piece]:
    """Control pieces as they are; neighbouring texts joined into gaps.

    Example: `user\\n` + `Hello` → one gap; `assistant\\n` + fresh `Hi` → two.
    """
    result: list[_Gap | Piece] = []
    for piece in pieces:
        if isinstance(piece.content, int):
            result.append(piece)
            continue
        if not piece.content:
            continue
        last = result[-1] if result else None
        if isinstance(last, _Gap) and not piece.fresh:
            assert last.source.weight == piece.weight, "texts that are encoded together share a weight"
            result[-1] = _Gap(last.text + piece.content, last.place, piece)
        else:
            place = Place.START if last is None else Place.INSIDE if isinstance(last, _Gap) else Place.AFTER_CONTROL
            result.append(_Gap(piece.content, place, piece))
    return result


def _encoded(tokenizer: TextTokenizer, outlines: Sequence[Outline]) -> list[list[tuple[list[int], Piece]]]:
    """For each outline its runs of ids, each with the piece that gives weight and origin; one batch for all."""
    groups = [_gaps(outline.pieces) for outline in outlines]
    texts = [(gap.text, gap.place) for group in groups for gap in group if isinstance(gap, _Gap)]
    encoded = iter(tokenizer.encode_placed(texts))
    return [
        [(next(encoded), item.source) if isinstance(item, _Gap) else ([_control(item)], item) for item in group]
        for group in groups
    ]


def _control(piece: Piece) -> int:
    assert isinstance(piece.content, int)
    return piece.content


def encode_ids(tokenizer: TextTokenizer, outlines: Sequence[Outline]) -> list[list[int]]:
    """The ids alone of each outline."""
    return [[index for ids, _ in runs for index in ids] for runs in _encoded(tokenizer, outlines)]


def encode_outlines(tokenizer: TextTokenizer, outlines: Sequence[Outline]) -> list[RenderedExample]:
    """Each outline's example, all texts encoded in one batch. Position 0 is never trained: nothing predicts it."""
    groups = _encoded(tokenizer, outlines)
    lengths = [[len(ids) for ids, _ in runs] for runs in groups]
    ends = list(accumulate((sum(each) for each in lengths), initial=0))
    flat = chain.from_iterable(ids for runs in groups for ids, _ in runs)
    ids = np.fromiter(flat, dtype=np.int32, count=ends[-1])
    run_weights = np.array([piece.weight for runs in groups for _, piece in runs], dtype=np.float32)
    weights = np.repeat(run_weights, [length for each in lengths for length in each])
    weights[[start for start, end in pairwise(ends) if end > start]] = 0.0
    return [
        RenderedExample(ids[start:end], weights[start:end], _spans(runs, sizes), outline.key)
        for runs, sizes, start, end, outline in zip(groups, lengths, ends, ends[1:], outlines, strict=False)
    ]


def _spans(runs: Sequence[tuple[list[int], Piece]], lengths: Sequence[int]) -> tuple[Span, ...]:
    """Where the tokens came from; neighbouring runs of one origin are one span."""
    spans: list[Span] = []
    position = message = part = 0
    for (_, piece), length in zip(runs, lengths, strict=True):
        end = position + length
        if spans and message == piece.message and part == piece.part:
            spans[-1] = Span(spans[-1].start, end, message, part)
        elif length:
            message, part = piece.message, piece.part
            spans.append(Span(position, end, message, part))
        position = end
    return tuple(spans)
