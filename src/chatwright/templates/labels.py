"""Which message and part each piece of a Jinja rendering came from: for people and for cutting, never for weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chatwright.templates.control_split import Cut
from chatwright.templates.policy import Turn
from chatwright.templates.sentinels import Sentinels


class PlacedReply(Protocol):
    """A reply's turn and its place in a rendering."""

    @property
    def index(self) -> int:
        """The turn."""

    @property
    def start(self) -> int:
        """Where the reply begins."""

    @property
    def after(self) -> int:
        """Where the next turn begins."""


def label_cuts(
    cuts: Sequence[Cut], turns: Sequence[Turn], sentinels: Sentinels, replies: Sequence[PlacedReply]
) -> list[tuple[int, int]]:
    """For each cut the (message, part) it came from; −1 = the template.

    A template may trim or drop contents, so a text belongs to the first part, in order, whose words it holds. Parts of
    replies are looked for inside replies only, and the others outside.
    """
    labels: list[tuple[int, int]] = []
    cursor: dict[int, int] = {}
    for cut in cuts:
        reply = next((item for item in replies if item.start <= cut.start < item.after), None)
        if reply is not None and reply.index < len(turns):
            labels.append(_in_turn(cut, turns[reply.index], sentinels, cursor, reply.index))
            continue
        first = max((item.index + 1 for item in replies if item.after <= cut.start), default=0)
        labels.append(_outside(cut, turns, sentinels, cursor, first))
    return labels


def _in_turn(cut: Cut, turn: Turn, sentinels: Sentinels, cursor: dict[int, int], index: int) -> tuple[int, int]:
    """A text: the next part whose words it holds. A control token: the part a tool mark opens or closes, else none."""
    position = cursor.get(index, 0)
    parts = turn.message.parts
    if isinstance(cut.content, int):
        if cut.content not in sentinels.marks:
            return turn.origin, -1
        return turn.origins[min(position, len(parts) - 1)] if parts else (turn.origin, -1)
    for place in range(position, len(parts)):
        words = sentinels.escape(parts[place].text).strip()
        if words and words in cut.content:
            cursor[index] = place + 1
            return turn.origins[place]
    return turn.origin, -1


def _outside(
    cut: Cut, turns: Sequence[Turn], sentinels: Sentinels, cursor: dict[int, int], first: int
) -> tuple[int, int]:
    if isinstance(cut.content, int):
        return -1, -1
    for place in range(max(first, cursor.get(-1, 0)), len(turns)):
        turn = turns[place]
        if turn.message.role == "assistant":
            break
        words = sentinels.escape("".join(part.text for part in turn.message.parts)).strip()
        if words and words in cut.content:
            cursor[-1] = place + 1
            return turn.origins[0]
    return -1, -1
