"""Completions of plain prompts: the engine's ids as text, ended by a stop token or by a text that must not come.

No template and no tool: what follows a prompt, as the model writes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from chatwright.inference.engine import Engine, requests_for
from chatwright.inference.requests import Reply
from chatwright.inference.sampling import SamplingSettings
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place

FinishReason = Literal["stop", "length"]

_MORE_TOKENS = 8
"""Tokens without any text of their own that may stand within a stop text."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished completion.

    Args:
        text: what was written, up to the stop text, which isn't in it.
        finish_reason: `stop` (a stop token or stop text came), or `length`.
        prompt_tokens, reply_tokens: their counts, the stop among the reply's.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    reply_tokens: int


class Completer:
    """Completes prompts.

    Args:
        engine: its stop tokens end a completion; they are no part of the text.
        tokenizer: special tokens are left out of the text, tokens that are merely added (`<think>`) stand in it.
        place: where the completion is taken to stand; `INSIDE` keeps a blank at its start.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, place: Place = Place.INSIDE) -> None:
        self.engine, self.tokenizer, self.place = engine, tokenizer, place
        self._special = {token["id"] for token in tokenizer.added_token_flags() if token.get("special")}

    def finished(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, Completion]]:
        """The completion of each prompt with its number, as they finish; close the iterator to cancel.

        Args:
            settings: one a prompt; `stop` holds its stop texts.

        Raises:
            ModelError: as `Engine.stream`.
        """
        replies = [Reply() for _ in prompts]
        stops = _StopTexts([each.stop for each in settings], self._whole_text)
        for token in self.engine.run(requests_for(prompts, settings, stops)):
            reply = replies[token.row]
            reply.add(token)
            if token.stop_reason is not None:
                yield token.row, self._completion(reply, settings[token.row].stop, len(prompts[token.row]))

    def _completion(self, reply: Reply, stop: Sequence[str], prompt_tokens: int) -> Completion:
        text, met = cut_at(self._text(reply.ids[:-1] if reply.stop_reason == "stop" else reply.ids), stop)
        ended: FinishReason = "length" if reply.stop_reason == "length" and not met else "stop"
        return Completion(text, ended, prompt_tokens, len(reply.ids))

    def _text(self, ids: Sequence[int]) -> str:
        kept = [index for index in ids if index not in self._special]
        return self.tokenizer.decode(kept, with_control=True, place=self.place)

    def _whole_text(self, ids: Iterable[int]) -> str:
        """With every control token by name: a stop text may name one."""
        return self.tokenizer.decode(ids, with_control=True, place=Place.INSIDE)


class _StopTexts:
    """Ends a completion as soon as its text holds one of its stop texts; the engine's controller.

    Args:
        stops: the stop texts of each request. decode: the text of ids, every control token by name.
    """

    def __init__(self, stops: Sequence[Sequence[str]], decode: Callable[[Iterable[int]], str]) -> None:
        self.stops, self.decode = stops, decode
        # Every token of a stop text has at least a byte of it, but for those without text of their own.
        windows = [max((len(text.encode()) for text in stop), default=0) + _MORE_TOKENS for stop in stops]
        self.latest: list[deque[int]] = [deque(maxlen=window) for window in windows]

    def on_token(self, row: int, token_id: int) -> list[int] | None:
        """Nothing to force; None once a stop text stands in the latest tokens."""
        self.latest[row].append(token_id)
        stop = self.stops[row]
        return None if stop and cut_at(self.decode(self.latest[row]), stop)[1] else []


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text in it, and whether there is one."""
    ends = [place for each in stop if each and (place := text.find(each)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)
