"""A reply's parts ↔ text and control tokens, for grammars that delimit with tokens.

One writer serves the native formats (pieces) and Jinja templates without tool support (sentinels in the content);
one reader parses both back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatwright.conversations.schema import Message, Part, PartKind
from chatwright.errors import TemplateError
from chatwright.templates.policy import join_parts
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tool_grammars import Mode, ToolGrammar
from chatwright.templates.twin import Place

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ThinkTokens:
    """The control tokens around thinking, written `<think>\\n`, the thought, `\\n</think>\\n\\n`."""

    open: int
    close: int

    @staticmethod
    def of(tokenizer: TextTokenizer) -> ThinkTokens | None:
        """The tokenizer's `<think>` and `</think>`, or None where it lacks them."""
        found = [tokenizer.control_ids.get(name) for name in (THINK_OPEN, THINK_CLOSE)]
        return None if found[0] is None or found[1] is None else ThinkTokens(found[0], found[1])


@dataclass(frozen=True, slots=True)
class ReplyGrammar:
    """How a template writes a reply's parts with control tokens.

    Args:
        tokenizer: decodes and normalizes the texts.
        tools: the tool tokens, or None: tools are refused.
        think: the thinking tokens, or None: thinking is refused.
        stop_ids: where reading ends.
        place: where a reply's first token stands.
    """

    tokenizer: TextTokenizer
    tools: ToolGrammar | None
    think: ThinkTokens | None
    stop_ids: tuple[int, ...]
    place: Place

    def write(self, parts: Sequence[Part], where: str) -> list[tuple[str | int, int]]:
        """Texts and control ids in order, each with the index of the part it belongs to.

        Raises:
            TemplateError: the template can't write a part of this kind.
        """
        written: list[tuple[str | int, int]] = []
        for part, index in join_parts(parts):
            if part.kind == "text":
                written.append((part.text, index))
            elif part.kind == "thinking":
                if self.think is None:
                    raise refuse_thinking(where)
                think = self.think
                written += [(item, index) for item in (think.open, f"\n{part.text}\n", think.close, "\n\n")]
            else:
                if self.tools is None:
                    raise refuse_tools(part, where)
                call = part.kind == "tool_call"
                items = self.tools.call_items(call_text(part)) if call else self.tools.result_items(part.text)
                written += [(item, index) for item in items]
        return [(item, index) for item, index in written if item != ""]

    def parse(self, ids: Iterable[int]) -> Message:
        """The assistant message that these ids spell; reading ends at the first stop token."""
        return Message("assistant", tuple(_tidy(self._runs(ids))))

    def _runs(self, ids: Iterable[int]) -> list[Part]:
        runs: list[tuple[PartKind, list[int], Place]] = [("text", [], self.place)]
        state = self.tools.start() if self.tools else None
        markers = set(self.tools.token_ids().values()) if self.tools else set()
        if self.think:
            markers |= {self.think.open, self.think.close}
        kinds: dict[Mode, PartKind] = {Mode.TEXT: "text", Mode.CALL: "tool_call", Mode.RESULT: "tool_result"}
        thinking = False
        for index in ids:
            if index in self.stop_ids:
                break
            finished = state.feed(index) if state else None
            if index not in markers:
                runs[-1][1].append(index)
                continue
            if runs[-1][0] == "tool_call" and not finished:
                runs[-1] = ("text", *runs[-1][1:])  # a call that was never finished
            if self.think and index in (self.think.open, self.think.close):
                thinking = index == self.think.open
                if not thinking and len(runs) == 1:
                    runs[0] = ("thinking", *runs[0][1:])  # the prompt had opened it
            kind = kinds[state.mode] if state else "text"
            runs.append(("thinking" if thinking and kind == "text" else kind, [], Place.AFTER_CONTROL))
        if runs[-1][0] == "tool_call":
            runs[-1] = ("text", *runs[-1][1:])
        return [Part(kind, self.tokenizer.decode(run, place=place)) for kind, run, place in runs]

    def canonical(self, message: Message) -> Message:
        """The reply as it comes back from rendering and parsing.

        Neighbouring texts are joined and empty ones dropped, texts are as the tokenizer normalizes them, bare calls
        lose their tool's name, and ids of calls are dropped.

        Raises:
            TemplateError: the template can't write a part of this kind.
        """
        self.write(message.parts, "reply")
        parts: list[Part] = []
        for part, _ in join_parts(message.parts):
            place = Place.AFTER_CONTROL if parts else self.place
            if part.kind == "tool_call":
                parts.append(named_call(self.tokenizer.normal_text(call_text(part))))
            else:
                if parts and parts[-1].kind == "thinking" and part.kind == "text":
                    place = Place.INSIDE
                parts.append(Part(part.kind, self.tokenizer.normal_text(part.text, place)))
        return Message("assistant", tuple(part for part, _ in join_parts(parts)))


def _tidy(parts: Iterable[Part]) -> list[Part]:
    """Line breaks that the notation adds around thinking taken off, empty texts dropped, call names read."""
    tidied: list[Part] = []
    after_thinking = False
    for part in parts:
        text = part.text
        if part.kind == "thinking":
            text = text.removeprefix("\n").removesuffix("\n")
        elif part.kind == "text" and after_thinking:
            text = text.removeprefix("\n").removeprefix("\n")
        after_thinking = part.kind == "thinking"
        tidied.append(named_call(text) if part.kind == "tool_call" else Part(part.kind, text))
    return [part for part, _ in join_parts(tidied)]


def call_text(part: Part) -> str:
    """What stands between call start and call end: the bare code, or JSON with the tool's name.

    A name is written where the arguments are a JSON object, since then the text alone doesn't say which tool is meant.
    """
    arguments = json_object(part.text)
    if part.tool is None or arguments is None:
        return part.text
    return json.dumps({"name": part.tool, "arguments": arguments}, ensure_ascii=False)


def named_call(text: str) -> Part:
    """The call that `call_text` wrote."""
    found = json_object(text)
    if found is not None and set(found) == {"name", "arguments"} and isinstance(found["arguments"], dict):
        return Part("tool_call", json.dumps(found["arguments"], ensure_ascii=False), str(found["name"]))
    return Part("tool_call", text)


def json_object(text: str) -> dict[str, object] | None:
    """The JSON object in a text, or None."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def refuse_tools(part: Part, where: str) -> TemplateError:
    """The error for a tool part in a template without tools."""
    name = f" ({part.tool!r})" if part.tool else ""
    return TemplateError(
        f"has a {part.kind.replace('_', ' ')}{name}, but this template has no tool grammar",
        place=where,
        hint="set template.tools to add, or map call_start, call_end, result_start, result_end to reserved tokens",
    )


def refuse_thinking(where: str) -> TemplateError:
    """The error for a thinking part in a template without thinking."""
    return TemplateError(
        "has thinking, but this template can't render it",
        place=where,
        hint="set template.add_tokens to [<think>, </think>], or remove the thinking from the data",
    )
