"""Tokens as a reader can point at them: each cell is one token, or the few that make up one character together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from chatwright.templates.rendered import RenderedExample, Span
from chatwright.templates.twin import Place

LONGEST_CELL = 8
"""Most tokens tried as one character; broken bytes are shown one by one."""
BROKEN = "�"


class CellReader(Protocol):
    """The part of a tokenizer that turns ids back into text, one by one."""

    @property
    def control_names(self) -> Mapping[int, str]:
        """Control token id → its text."""

    def decode(self, ids: Sequence[int], /, *, place: Place = ...) -> str:
        """The text of ordinary tokens that stand at `place`."""

    def token_text(self, index: int, /) -> str:
        """One token as text for people."""


class Cell(NamedTuple):
    """Tokens `[start, end)` shown as one.

    Args:
        text: what they add to the text. weight: of the first one. trained: the model must produce them.
        control: a control token. message, part: where they came from; −1 = the template.
    """

    start: int
    end: int
    text: str
    weight: float
    trained: bool
    control: bool
    message: int = -1
    part: int = -1


def token_cells(example: RenderedExample, tokenizer: CellReader, most: int | None = None) -> list[Cell]:
    """The first `most` tokens of an example as cells, in order, gapless; none straddles the mask or two messages."""
    ids = [int(index) for index in example.ids[:most]]
    weights = [0.0, *(float(weight) for weight in example.weights[1:most])][: len(ids)]  # nothing predicts the first
    owners = _owners(example.spans, len(ids))
    alike = [
        (weight, owner, ids[at] in tokenizer.control_names)
        for at, (weight, owner) in enumerate(zip(weights, owners, strict=True))
    ]
    cells: list[Cell] = []
    place, position = Place.START, 0
    while position < len(ids):
        weight, owner, control = alike[position]
        if control:
            end, text, place = position + 1, tokenizer.control_names[ids[position]], Place.AFTER_CONTROL
        else:
            limit = position + 1
            while limit < min(len(ids), position + LONGEST_CELL) and alike[limit] == alike[position]:
                limit += 1
            end, text = _whole_characters(ids[position:limit], tokenizer, place)
            end, place = end + position, Place.INSIDE
        cells.append(Cell(position, end, text, weight, weight > 0, control, *owner))
        position = end
    return cells


def _owners(spans: Sequence[Span], count: int) -> list[tuple[int, int]]:
    """(message, part) of each token."""
    owners = [(-1, -1)] * count
    for span in spans:
        end = min(span.end, count)
        owners[span.start : end] = [(span.message, span.part)] * max(0, end - span.start)
    return owners


def _whole_characters(ids: Sequence[int], tokenizer: CellReader, place: Place) -> tuple[int, str]:
    """How many of the ids make whole characters, and their text; a token of broken bytes goes by its own name."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], place=place)
        if BROKEN not in text:
            return count, text
    return 1, tokenizer.token_text(ids[0])


class Block(NamedTuple):
    """Neighbouring cells `[first, last)` that belong to one message; −1 = the template's own."""

    message: int
    first: int
    last: int


def message_blocks(cells: Sequence[Cell]) -> list[Block]:
    """Cut cells into messages for reading: what the template puts between two goes to the one it closes or opens."""
    runs: list[Block] = []
    for at, cell in enumerate(cells):
        if runs and runs[-1].message == cell.message:
            runs[-1] = runs[-1]._replace(last=at + 1)
        else:
            runs.append(Block(cell.message, at, at + 1))
    blocks: list[Block] = []
    pending = 0  # where the next message's block begins
    for number, run in enumerate(runs):
        if run.message >= 0:
            if blocks and blocks[-1].message == run.message:
                blocks[-1] = blocks[-1]._replace(last=run.last)
            else:
                blocks.append(Block(run.message, pending, run.last))
        elif blocks:
            closed = _closing(cells, blocks[-1], run) if number < len(runs) - 1 else run.last
            blocks[-1] = blocks[-1]._replace(last=closed)
        else:
            opening = _opening(cells, run) if len(runs) > 1 else run.last
            blocks += [Block(-1, 0, opening)] if opening else []
        pending = blocks[-1].last if blocks else 0
    return blocks


def _closing(cells: Sequence[Cell], before: Block, run: Block) -> int:
    """The end of what closes the message before: its end-of-turn token, unless it has one, and white space."""
    end = run.first
    inside = [cell for cell in cells[before.first : before.last] if cell.text.strip()]
    if end < run.last and cells[end].control and not (inside and inside[-1].control):
        end += 1
    while end < run.last and not cells[end].text.strip():
        end += 1
    return end


def _opening(cells: Sequence[Cell], run: Block) -> int:
    """Where, at the beginning, the first message's own header starts: at the control tokens that end the run."""
    start = run.last
    while start > run.first and cells[start - 1].control:
        start -= 1
    return start
