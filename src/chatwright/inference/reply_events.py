"""A growing reply as events to show: text and thinking piece by piece, tool calls and results whole.

Every token is followed by a new parse with the template's own `parse_reply`, and only what can't change any more is
given out: never half a UTF-8 character, never the beginning of a tool call as if it were text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatwright.conversations.schema import Part, PartKind
from chatwright.templates.base import Template
from chatwright.templates.json_grammars import GRAMMAR_TAGS
from chatwright.templates.replies import THINK_CLOSE, THINK_OPEN
from chatwright.templates.tool_grammars import Mode

_PIECEMEAL: tuple[PartKind, ...] = ("text", "thinking")
_PROMPT_END = 16
"""Tokens at the end of a prompt in which an open thinking block would show."""


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """Something to show: a piece of text or thinking, or a whole tool call or result."""

    kind: PartKind
    text: str
    tool: str | None = None


class ReplyReader:
    """Reads one reply token by token.

    Args:
        template: parses the reply.
        prompt: the ids before the reply; a template may end them in an open thinking block.
        expects_calls: the conversation offers tools in JSON, so that a reply which begins with `{` may be a call.
        stops: texts that end the reply; neither they nor what may become one are given out.
    """

    def __init__(
        self,
        template: Template,
        prompt: Sequence[int] = (),
        expects_calls: bool = False,
        stops: Sequence[str] = (),
    ) -> None:
        self.template, self.stops = template, tuple(stops)
        self.expects_calls = expects_calls
        self._ids: list[int] = []
        self._state = template.grammar.start() if template.grammar else None
        control = template.tokenizer.control_ids
        self._tag_ids = {control[tag] for tag in GRAMMAR_TAGS if tag in control}
        self._think_ids = (control.get(THINK_OPEN), control.get(THINK_CLOSE))
        ending = template.tokenizer.decode(prompt[-_PROMPT_END:], with_control=True)
        self._thinking = ending.rstrip().endswith(THINK_OPEN)
        self._in_call = False
        self.met_stop = False  # whether a stop text is visible
        self._shown: dict[int, Part] = {}  # what was given out of each part

    def feed(self, token_id: int) -> list[ChatEvent]:
        """What one more token makes certain."""
        self._ids.append(token_id)
        if token_id in self._think_ids:
            self._thinking = token_id == self._think_ids[0]
        if self._state:
            self._state.feed(token_id)
            self._in_call = self._state.mode is not Mode.TEXT
        elif token_id in self._tag_ids:
            self._in_call = True  # calls in JSON end the reply
        return [] if self._in_call else self._news(final=False)

    def finish(self) -> list[ChatEvent]:
        """What was held back, once the reply is over."""
        return self._news(final=True)

    def _news(self, final: bool) -> list[ChatEvent]:
        parts = self._parts()
        self.met_stop = self.met_stop or self._shows_stop(parts)
        events: list[ChatEvent] = []
        for index, part in enumerate(parts):
            piecemeal = part.kind in _PIECEMEAL
            growing = piecemeal and not final and index == len(parts) - 1
            text = self._certain(part.text) if growing else part.text
            if self.stops and part.kind == "text":
                text = before_any(text, self.stops)
                text = _before_partial(text, self.stops) if growing else text
            shown = self._shown.get(index)
            before = shown.text if shown and shown.kind == part.kind else ""
            if (shown and before == text) or (piecemeal and not text) or not text.startswith(before):
                continue  # nothing new, or a decoder that rewrites earlier text: wait for the end
            self._shown[index] = Part(part.kind, text)
            events.append(ChatEvent(part.kind, text[len(before) :], part.tool))
        return events

    def _shows_stop(self, parts: Sequence[Part]) -> bool:
        texts = [part for part in parts if part.kind == "text" and not self._may_be_call(part.text)]
        return cut_at(texts, self.stops, self._state is None) != texts

    def _may_be_call(self, text: str) -> bool:
        """Whether a text may turn out to be a call in JSON."""
        return self._state is None and self.expects_calls and text.lstrip().startswith("{")

    def _parts(self) -> list[Part]:
        """The reply so far; a thinking block that is still open is parsed as text, and called by its name here."""
        parts = list(self.template.parse_reply(self._ids).parts)
        if parts and parts[0].kind == "text":
            tagged = self._state is None and parts[0].text.startswith(THINK_OPEN)
            if self._thinking or (tagged and THINK_CLOSE not in parts[0].text):
                parts[0] = Part("thinking", parts[0].text.removeprefix(THINK_OPEN).removeprefix("\n"))
        return parts

    def _certain(self, text: str) -> str:
        """The part of a growing text that no further token can change."""
        if self._may_be_call(text):
            return ""
        if self._state is None:
            text = _before_partial(before_any(text, GRAMMAR_TAGS), (*GRAMMAR_TAGS, THINK_OPEN, THINK_CLOSE))
        return text.rstrip("\ufffd").rstrip()


def cut_at(parts: Sequence[Part], stops: Sequence[str], tagged: bool) -> list[Part]:
    """The parts up to the first stop text that is visible.

    Args:
        tagged: calls stand between tags, so that what follows one in a text is the beginning of a call.
    """
    kept: list[Part] = []
    for part in parts:
        text = part.text
        if part.kind == "text":
            before = before_any(text, stops)
            text = text if tagged and before_any(before, GRAMMAR_TAGS) != before else before
        kept += [replace(part, text=text)] if text or part.kind != "text" else []
        if text != part.text:
            break
    return kept


def before_any(text: str, tags: Sequence[str]) -> str:
    """The text before the first of these."""
    return text[: min((place for place in map(text.find, tags) if place >= 0), default=len(text))]


def _before_partial(text: str, tags: Sequence[str]) -> str:
    """The text before what may become one of `tags` at its end."""
    for start in range(max(0, len(text) - max(len(tag) for tag in tags) + 1), len(text)):
        if any(tag.startswith(text[start:]) for tag in tags):
            return text[:start]
    return text
