"""Replies of a Jinja template: from parts to what the template is given, and from ids back to parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatwright.conversations.schema import Message, Part
from chatwright.errors import TemplateError
from chatwright.templates.jinja_features import Features, grammar_tags
from chatwright.templates.json_grammars import JSON_GRAMMARS, Tag
from chatwright.templates.policy import join_parts
from chatwright.templates.replies import (
    THINK_CLOSE,
    THINK_OPEN,
    ReplyGrammar,
    refuse_thinking,
    refuse_tools,
)
from chatwright.templates.scene import call_dict, canonical_call
from chatwright.templates.sentinels import Sentinels
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place


@dataclass(frozen=True, slots=True)
class SplitReply:
    """A reply as a template wants it: the thought, what goes into the content, the calls."""

    thought: str
    content: tuple[Part, ...]
    calls: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class JinjaReplies:
    """Writes and reads the replies of one template.

    Args:
        features: what the template does.
        inline: writes in-turn tools and thinking inside the content, with control tokens.
        tokenizer: decodes.
    """

    features: Features
    inline: ReplyGrammar
    tokenizer: TextTokenizer

    @property
    def _json(self) -> bool:
        return self.inline.tools is None and self.features.tools in JSON_GRAMMARS

    def split(self, parts: Sequence[Part], where: str) -> SplitReply:
        """The thought, content and calls of a reply.

        Raises:
            TemplateError: the template can't render one of the parts.
        """
        kept = [part for part, _ in join_parts(parts)]
        if self.inline.tools is not None:
            leads = bool(kept) and kept[0].kind == "thinking" and self.features.thinking
            return SplitReply(kept[0].text if leads else "", tuple(kept[leads:]), ())
        for part in kept:
            if part.kind == "tool_result" or (part.kind == "tool_call" and not self._json):
                raise self._refused(part, where)
        thought = "\n".join(part.text for part in kept if part.kind == "thinking")
        words = tuple(part for part in kept if part.kind == "text")
        calls = tuple(part for part in kept if part.kind == "tool_call")
        if thought and not self.features.thinking:
            if self.inline.think is None:
                raise refuse_thinking(where)
            return SplitReply("", (Part("thinking", thought), *words), calls)
        return SplitReply(thought, words, calls)

    def _refused(self, part: Part, where: str) -> TemplateError:
        if self.features.tools == "unknown":
            return TemplateError(
                f"calls the tool {part.tool!r}, but this template writes calls in a form that can't be read back",
                place=where,
                hint="set template.tools to add, or to a mapping, so that calls are delimited by tokens",
            )
        return refuse_tools(part, where)

    def message(self, parts: Sequence[Part], sentinels: Sentinels, where: str) -> dict[str, Any]:
        """The assistant message as the template is given it, contents escaped."""
        reply = self.split(parts, where)
        written = self.inline.write(reply.content, where)
        content = "".join(
            sentinels.marks[item] if isinstance(item, int) else sentinels.escape(item) for item, _ in written
        )
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reply.thought:
            message["reasoning_content"] = sentinels.escape(reply.thought)
        if reply.calls:
            message["tool_calls"] = [call_dict(call, sentinels) for call in reply.calls]
        return message

    # Back from ids

    def parse(self, ids: Iterable[int]) -> Message:
        """The message that a reply's ids spell."""
        if self.inline.tools is not None:
            parts = list(self.inline.parse(ids).parts)
            return Message("assistant", tuple(_fill(self._without_frame(parts))))
        text, tag = self._tagged(ids)
        thinks = self.features.thinking or self.inline.think is not None
        thought, words = _split_thought(text, tag) if thinks else (None, text)
        if thought is None:
            words = words.removeprefix(self.features.prefix)
        reading = JSON_GRAMMARS[self.features.tools](words, tag) if self._json else None
        calls = [self._without_marks(call, tag) for call in reading.calls] if reading else []
        words = reading.text if reading else words
        if not calls:
            words = words.removesuffix(self.features.suffix)
        parts = [Part("thinking", thought or ""), Part("text", words)]
        return Message("assistant", tuple(_fill([*(self._without_marks(part, tag) for part in parts), *calls])))

    def _without_frame(self, parts: list[Part]) -> list[Part]:
        """What the template itself writes around a plain reply taken off."""
        if parts and parts[0].kind == "text":
            parts[0] = replace(parts[0], text=parts[0].text.removeprefix(self.features.prefix))
        if parts and parts[-1].kind == "text":
            parts[-1] = replace(parts[-1], text=parts[-1].text.removesuffix(self.features.suffix))
        return parts

    def _tagged(self, ids: Iterable[int]) -> tuple[str, Tag]:
        """The reply's text with a private character for each tag that is a control token, and how to name them."""
        runs: list[str | int] = []
        run: list[int] = []
        place = self.features.place
        for index in ids:
            if index in self.inline.stop_ids:
                break
            if index in self.tokenizer.control_names:
                runs += [self.tokenizer.decode(run, place=place), index]
                run, place = [], Place.AFTER_CONTROL
            else:
                run.append(index)
        runs.append(self.tokenizer.decode(run, place=place))
        used = {character for item in runs if isinstance(item, str) for character in item}
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
        control = self.tokenizer.control_ids
        marks = {control[name]: next(free) for name in grammar_tags() if name in control}
        names = {name: marks[control[name]] for name in grammar_tags() if name in control}
        text = "".join(item if isinstance(item, str) else marks.get(item, "") for item in runs)
        return text, lambda name: names.get(name, name)

    def _without_marks(self, part: Part, tag: Tag) -> Part:
        marks = [tag(name) for name in grammar_tags() if tag(name) != name]
        return replace(part, text=re.sub(f"[{''.join(marks)}]", "", part.text)) if marks else part

    def canonical(self, message: Message) -> Message:
        """The reply as it comes back: parts trimmed as the template does, calls in JSON's usual form."""
        reply = self.split(message.parts, "reply")
        thought = self.features.thought.apply(reply.thought)
        content = [part for part, _ in join_parts(self._trimmed(reply.content))]
        parts = list(self.inline.canonical(Message("assistant", tuple(content))).parts)
        calls = [self._normal(canonical_call(call, self.features.call_ids)) for call in reply.calls]
        if self._json and not calls and len(parts) == 1 and parts[0].kind == "text":
            text = parts[0].text
            reading = JSON_GRAMMARS[self.features.tools](text, self._text_tags())
            calls, parts = (reading.calls, [Part("text", reading.text)]) if reading.calls else ([], parts)
        thoughts = [Part("thinking", self.tokenizer.normal_text(thought))] if thought else []
        return Message("assistant", tuple(_fill([*thoughts, *parts, *calls])))

    def _normal(self, call: Part) -> Part:
        text, tool = (self.tokenizer.normal_text(item, Place.INSIDE) for item in (call.text, call.tool or ""))
        return replace(call, text=text, tool=tool)

    def _text_tags(self) -> Tag:
        """Tags as plain text may spell them: those that are control tokens can't occur in a text."""
        control: Mapping[str, int] = self.tokenizer.control_ids
        return lambda name: "\U000ffffd" if name in control else name

    def _trimmed(self, parts: Sequence[Part]) -> list[Part]:
        result = list(parts)
        if result and result[0].kind == "text":
            result[0] = replace(result[0], text=self.features.content.apply_left(result[0].text))
        if result and result[-1].kind == "text":
            result[-1] = replace(result[-1], text=self.features.content.apply_right(result[-1].text))
        return result


def _fill(parts: Iterable[Part]) -> list[Part]:
    return [part for part, _ in join_parts(list(parts))]


def _split_thought(text: str, tag: Tag) -> tuple[str | None, str]:
    """The thought at a reply's start (the prompt may have opened it) without line breaks around it, and the rest."""
    opening, closing = tag(THINK_OPEN), tag(THINK_CLOSE)
    before, found, after = text.partition(closing)
    start = before.lstrip("\n").removeprefix(opening)
    if not found or opening in start:
        return None, text
    return start.removeprefix("\n").removesuffix("\n"), after.removeprefix("\n").removeprefix("\n")
