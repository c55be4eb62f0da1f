"""What happens to examples that are too long: an error by default, never a silent cut."""

from __future__ import annotations

from enum import StrEnum


class Overflow(StrEnum):
    """What to do with an example that has more than `max_tokens` tokens.

    `error`: stop, with the count and the longest rows. `drop`: leave it out. `truncate`: cut the last reply's text and
    keep its end of turn. `split_turns`: several examples by turns, each with the system prompt.
    """

    ERROR = "error"
    DROP = "drop"
    TRUNCATE = "truncate"
    SPLIT_TURNS = "split_turns"
