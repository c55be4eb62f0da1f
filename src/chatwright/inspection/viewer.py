"""See what is trained: an example in colours for the terminal, and as a plain record for programs.

Knows ids, weights and a tokenizer's way back to text; refuses to know templates and models.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from chatwright.templates.rendered import RenderedExample

if TYPE_CHECKING:
    from rich.text import Text


class TokenReader(Protocol):
    """The part of a tokenizer that turns ids back into text."""

    @property
    def control_names(self) -> Mapping[int, str]:
        """Control token id → its text."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of ordinary tokens."""


class Look(StrEnum):
    """How a token is shown; the value is its style."""

    GIVEN = "dim"
    TRAINED = "green"
    GIVEN_CONTROL = "reverse magenta"
    TRAINED_CONTROL = "reverse green"


LEGEND = {
    Look.TRAINED: "trained",
    Look.GIVEN: "given",
    Look.TRAINED_CONTROL: "control token, trained",
    Look.GIVEN_CONTROL: "control token, given",
}


class Piece(NamedTuple):
    """Neighbouring tokens `[start, end)` that look alike, as text; a control token is a piece of its own."""

    start: int
    end: int
    look: Look
    text: str

    @property
    def trained(self) -> bool:
        """The model must produce these tokens."""
        return self.look in (Look.TRAINED, Look.TRAINED_CONTROL)


def pieces(example: RenderedExample, tokenizer: TokenReader) -> list[Piece]:
    """Cut an example into pieces of one look, in order, covering all its tokens."""
    trained = trained_mask(example)
    found: list[Piece] = []
    for start, end in _stretches(example.ids.tolist(), tokenizer.control_names):
        token = int(example.ids[start])
        if token in tokenizer.control_names:
            look = Look.TRAINED_CONTROL if trained[start] else Look.GIVEN_CONTROL
            found.append(Piece(start, end, look, tokenizer.control_names[token]))
        else:
            found.extend(_text_pieces(example.ids[start:end].tolist(), trained[start:end], start, tokenizer))
    return found


def trained_mask(example: RenderedExample) -> np.ndarray:
    """bool `[n]`: trained tokens. The first never is: nothing comes before it to predict it from."""
    trained = example.weights > 0
    trained[:1] = False
    return trained


def _stretches(ids: list[int], control: Mapping[int, str]) -> Iterator[tuple[int, int]]:
    """`[start, end)` of each control token and of each run of ordinary tokens between them."""
    start = 0
    for place, token in enumerate(ids):
        if token in control:
            if start < place:
                yield start, place
            yield place, place + 1
            start = place + 1
    if start < len(ids):
        yield start, len(ids)


def _text_pieces(ids: list[int], trained: np.ndarray, offset: int, tokenizer: TokenReader) -> Iterator[Piece]:
    """Cut ordinary tokens where training begins or ends.

    Each piece's text is what it adds to the text so far, since some decoders drop the first token's space.
    """
    changes = (np.flatnonzero(np.diff(trained)) + 1).tolist()
    start, before = 0, ""
    for end in [*changes, len(ids)]:
        so_far = tokenizer.decode(ids[:end])
        text = so_far[len(before) :] if so_far.startswith(before) else tokenizer.decode(ids[start:end])
        yield Piece(offset + start, offset + end, Look.TRAINED if trained[start] else Look.GIVEN, text)
        start, before = end, so_far


def show_example(example: RenderedExample, tokenizer: TokenReader, *, marks: bool = False) -> Text:
    """An example in colours: trained green, given dim, control tokens reversed (green when trained, else magenta).

    Args:
        example: what the template made.
        tokenizer: the way back to text.
        marks: put ⟦ ⟧ around trained tokens too, for output without colours.
    """
    from rich.text import Text

    count, trained = len(example.ids), int(trained_mask(example).sum())
    part = f", part {example.key.part}" if example.key.part else ""
    share = f" ({trained / count:.0%})" if count else ""
    text = Text(f"{printable(example.key.source)}, row {example.key.row}{part}", style="bold")
    text = Text.assemble(text, f" · {count:,} tokens, {trained:,} trained{share}\n")
    was_trained = False
    for piece in pieces(example, tokenizer):
        if marks and piece.trained != was_trained:
            text.append("⟦" if piece.trained else "⟧")
        was_trained = piece.trained
        text.append(printable(piece.text, show_line_breaks=piece.trained), style=piece.look.value)
    return text.append("⟧" if marks and was_trained else "")


def legend() -> Text:
    """What the colours mean."""
    from rich.text import Text

    text = Text()
    for look, meaning in LEGEND.items():
        text.append(f" {meaning} ", style=look.value).append("  ")
    return text


def printable(text: str, *, show_line_breaks: bool = False) -> str:
    """Text that can't command the terminal: control characters become pictures (escape → ␛), `↵` marks line breaks."""
    shown = "".join(
        _picture(char) if unicodedata.category(char) == "Cc" and char not in "\n\t" else char for char in text
    )
    return shown.replace("\n", "↵\n") if show_line_breaks else shown


def _picture(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\x{code:02x}"


def example_record(example: RenderedExample, tokenizer: TokenReader) -> dict[str, Any]:
    """An example as plain JSON values: source, row, part, ids, weights, and each supervised span with its text."""
    spans: list[dict[str, Any]] = []
    for piece in pieces(example, tokenizer):
        if not piece.trained:
            continue
        if spans and spans[-1]["end"] == piece.start:
            spans[-1]["end"] = piece.end
            spans[-1]["text"] += piece.text
        else:
            spans.append({"start": piece.start, "end": piece.end, "text": piece.text})
    return {
        "source": example.key.source,
        "row": example.key.row,
        "part": example.key.part,
        "ids": example.ids.tolist(),
        "weights": example.weights.tolist(),
        "supervised": spans,
    }
