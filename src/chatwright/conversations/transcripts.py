"""Transcripts in one string, `\\n\\nHuman: …\\n\\nAssistant: …`, as Anthropic's hh-rlhf has them.

This module knows the notation only; what a row makes of it is decided by the formats that use it.
"""

from __future__ import annotations

import re

from chatwright.conversations.places import Place, read_text, shown
from chatwright.conversations.schema import Message, Role

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: object) -> bool:
    """Whether a value is a string that begins with a speaker's mark."""
    return isinstance(value, str) and _TURN.match(value) is not None


def read_transcript(value: object, place: Place, *, open_end: bool = False) -> list[Message]:
    """The turns of a transcript; blanks around what a speaker says belong to the notation and are dropped.

    Two turns of one speaker in a row stay two messages, as they stand.

    Args:
        value: the text, from the first `\\n\\nHuman:` or `\\n\\nAssistant:` on.
        place: where it stands, for messages.
        open_end: take a last `\\n\\nAssistant:` with nothing after it as the place of the reply, and leave it out.

    Raises:
        DataError: if the text begins otherwise, or a speaker says nothing.
    """
    text = read_text(value, place)
    head, *pieces = _TURN.split(text)
    if head or not pieces:
        raise place.error(
            f"must begin with '\\n\\nHuman:' or '\\n\\nAssistant:', found {shown(text[:60])}",
            "hh-rlhf marks each turn with two line breaks and the speaker",
        )
    turns = [(speaker, said.strip()) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if open_end and turns[-1] == ("Assistant", ""):
        turns.pop()
    for number, (speaker, said) in enumerate(turns):
        if not said:
            raise place.error(f"turn {number} ({speaker}) is empty", "leave the row out, or set on_bad_row: skip")
    return [Message.of(_ROLES[speaker], said) for speaker, said in turns]
