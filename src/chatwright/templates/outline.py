"""Outlines: a conversation as pieces of text and control tokens, each with its weight, and how they become ids.

Text is encoded gap by gap: everything between two control tokens together, but for one split exactly where generation
begins. Serving sends the prompt up to there, so training must cut there too (law 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatwright.templates.rendered import ExampleKey, RenderedExample, Span
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place


@dataclass(frozen=True, slots=True)
class Piece:
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


@dataclass(frozen=True, slots=True)
class Outline:
    """The pieces of one example, in order."""

    pieces: tuple[Piece, ...]
    key: ExampleKey


@dataclass(frozen=True, slots=True)
class _Gap:
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
    return [_example(runs, outline.key) for runs, outline in zip(_encoded(tokenizer, outlines), outlines, strict=True)]


def _example(runs: Sequence[tuple[list[int], Piece]], key: ExampleKey) -> RenderedExample:
    ids = np.array([index for run, _ in runs for index in run], dtype=np.int32)
    weights = np.repeat(np.array([piece.weight for _, piece in runs], dtype=np.float32), [len(run) for run, _ in runs])
    if len(weights):
        weights[0] = 0.0
    spans: list[Span] = []
    position = 0
    for run, piece in runs:
        end = position + len(run)
        if spans and (spans[-1].message, spans[-1].part) == (piece.message, piece.part):
            spans[-1] = spans[-1]._replace(end=end)
        elif end > position:
            spans.append(Span(position, end, piece.message, piece.part))
        position = end
    return RenderedExample(ids, weights, tuple(spans), key)
