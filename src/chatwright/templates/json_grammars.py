"""The tool calls of Hugging Face templates: JSON between tags, read from a reply's text.

Which grammar a template uses is found by rendering a call and trying each reader. A new grammar is one function and
one entry of `JSON_GRAMMARS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from chatwright.conversations.schema import Part

Tag = Callable[[str], str]
"""Tag name → the string it has in the text: a stand-in where it is a control token, itself where it is text."""

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"\s*")


class Reading(NamedTuple):
    """What a grammar found in a reply.

    Args:
        text: the words beside the calls. calls: the calls, none where the grammar found none.
    """

    text: str
    calls: list[Part]


def make_call(name: Any, arguments: Any, call_id: Any = None) -> Part | None:
    """A call part from JSON values, its arguments in the usual JSON form; None if they aren't a name and an object."""
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return Part("tool_call", json.dumps(arguments, ensure_ascii=False), name, None if call_id is None else str(call_id))


def read_json_at(text: str, position: int) -> tuple[Any, int] | None:
    """The JSON value that begins at or after `position` (blanks skipped) and where it ends, or None."""
    start = _skip(text, position)
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _skip(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def read_hermes(text: str, tag: Tag) -> Reading:
    """Hermes, Qwen and MiniMind: words, then `<tool_call>{"name": …, "arguments": {…}}</tool_call>` for each call."""
    opening, closing = tag("<tool_call>"), tag("</tool_call>")
    position = text.find(opening)
    if position < 0:
        return Reading(text, [])
    words = text[:position].removesuffix("\n")
    calls: list[Part] = []
    while text.startswith(opening, position):
        found = read_json_at(text, position + len(opening))
        call = _from_object(found[0], "arguments") if found else None
        end = _skip(text, found[1]) if found else 0
        if call is None or not text.startswith(closing, end):
            return Reading(text, [])
        calls.append(call)
        position = _skip(text, end + len(closing))
    return Reading(words, calls) if position == len(text) else Reading(text, [])


def read_llama(text: str, tag: Tag) -> Reading:
    """Llama 3: the whole reply is `{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`."""
    body = text.strip().removeprefix(tag("<|python_tag|>"))
    found = read_json_at(body, 0) if body.lstrip().startswith("{") else None
    call = _from_object(found[0], "parameters") if found else None
    if found is None or call is None or body[found[1] :].strip():
        return Reading(text, [])
    return Reading("", [call])


def read_mistral(text: str, tag: Tag) -> Reading:
    """Mistral: words, then `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}, "id": …}`."""
    marker = tag("[TOOL_CALLS]")
    position = text.find(marker)
    found = read_json_at(text, position + len(marker)) if position >= 0 else None
    if found is None or not isinstance(found[0], list) or text[found[1] :].strip():
        return Reading(text, [])
    calls = [_from_object(item, "arguments") for item in found[0]]
    kept = [call for call in calls if call is not None]
    return Reading(text[:position], kept) if kept and len(kept) == len(calls) else Reading(text, [])


def _from_object(value: Any, key: str) -> Part | None:
    return make_call(value.get("name"), value.get(key), value.get("id")) if isinstance(value, dict) else None


JSON_GRAMMARS: dict[str, Callable[[str, Tag], Reading]] = {
    "hermes": read_hermes,
    "mistral": read_mistral,
    "llama": read_llama,
}
"""Every JSON grammar by name, the ones with tags first."""

GRAMMAR_TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""The tags that these grammars look for."""
