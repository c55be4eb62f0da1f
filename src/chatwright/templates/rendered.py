"""What a template makes of a conversation: token ids, each with its training weight.

Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ExampleKey(NamedTuple):
    """Names an example: one row of one source may give several parts."""

    source: str
    row: int
    part: int


class Span(NamedTuple):
    """Tokens `[start, end)` of an example and the message (and part of it) they came from; −1 = template."""

    start: int
    end: int
    message: int
    part: int


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """One training example.

    Args:
        ids: int32 `[n]`, the tokens.
        weights: float32 `[n]`; 0 = given to the model, > 0 = the model must produce this very token.
        spans: where the tokens came from, in order, covering all of them.
        key: the example's name.
        prompt_length, chosen_length: of a preference pair (prompt, better reply, worse reply behind one another) the
            tokens of its first two parts; 0 for an ordinary example.
    """

    ids: np.ndarray
    weights: np.ndarray
    spans: tuple[Span, ...]
    key: ExampleKey
    prompt_length: int = 0
    chosen_length: int = 0

    @property
    def num_supervised(self) -> int:
        """Tokens that are trained. Position 0 never is: nothing comes before it to predict it from."""
        return int(np.count_nonzero(self.weights[1:]))
