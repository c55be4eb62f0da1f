"""What a chat template does, found by rendering small probes: where turns end, what it trims, thinking and tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatwright.errors import TemplateError
from chatwright.templates.base import Delimiters
from chatwright.templates.control_split import ControlSplitter, Cut, end_of_turn
from chatwright.templates.json_grammars import GRAMMAR_TAGS, JSON_GRAMMARS
from chatwright.templates.replies import THINK_CLOSE, THINK_OPEN
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place

Trim = Literal["none", "newlines", "blanks"]
_WORD, _THOUGHT, _ASKED = "Qzx", "Qzt", "Qzu"
_EDGE = "\n \n"
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "qz_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"qz_key": {"type": "string"}}, "required": ["qz_key"]},
    },
}
_PROBE_CALL = {
    "type": "function",
    "id": "call00000",
    "function": {"name": "qz_tool", "arguments": {"qz_key": "qz value"}},
}

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None, bool], str]
"""(messages, tools, add_generation_prompt) → text."""


@dataclass(frozen=True, slots=True)
class Edges:
    """What a template takes off a text: on its left and on its right."""

    left: Trim = "none"
    right: Trim = "none"

    def apply(self, text: str) -> str:
        """The text as the template keeps it."""
        return self.apply_right(self.apply_left(text))

    def apply_left(self, text: str) -> str:
        """Trimmed on the left only."""
        return text if self.left == "none" else text.lstrip("\n" if self.left == "newlines" else None)

    def apply_right(self, text: str) -> str:
        """Trimmed on the right only."""
        return text if self.right == "none" else text.rstrip("\n" if self.right == "newlines" else None)


@dataclass(frozen=True, slots=True)
class Features:
    """What probing found.

    Args:
        ends: control ids that end an assistant's turn.
        prefix, suffix: text that the template itself writes around a plain reply, behind the generation prompt
            (an empty thinking block left aside).
        content, thought: how it trims the reply and the thinking.
        thinking: it renders `reasoning_content`.
        tools: `none`, `unknown` (it renders calls that no grammar here can read), or the name of a JSON grammar.
        call_ids: it writes the ids of calls.
        delimiters: whether control tokens stand between a message and the reply, or plain text only.
        place: where a reply's first token stands.
    """

    ends: tuple[int, ...]
    prefix: str
    suffix: str
    content: Edges
    thought: Edges
    thinking: bool
    tools: str
    call_ids: bool
    delimiters: Delimiters
    place: Place


def probe(render: Render, tokenizer: TextTokenizer, splitter: ControlSplitter, name: str) -> Features:
    """Find out what a template does.

    Args:
        render: renders plain messages; the generation prompt as it will be served.
        name: what to call the template in errors.

    Raises:
        TemplateError: it can't render a plain exchange, has no end of turn, or gives no generation prompt.
    """
    user = {"role": "user", "content": _ASKED}
    prompt = render([user], None, True)
    full = render([user, {"role": "assistant", "content": _WORD}], None, False)
    before, after = _around(_completion(prompt, full, name), _WORD, name)
    later = render([user, _reply(_WORD), {"role": "user", "content": "Ho"}], None, False).partition(_WORD)[2]
    end = _turn_end(splitter, after, later, name)
    if _has_control(splitter, before):
        raise TemplateError(
            f"writes {before!r} before a reply, which its generation prompt lacks",
            place=name,
            hint="give the template an add_generation_prompt section, so that training and serving agree",
        )
    thinks = THINK_CLOSE in before or THINK_OPEN in before
    last = splitter.split(prompt, {})[-1:]
    grammar, call_ids, call_end = _probe_tools(render, splitter, name)
    thinking, thought = _probe_thinking(render)
    return Features(
        ends=tuple(dict.fromkeys([_id(end), *call_end])),
        prefix=before.partition(THINK_OPEN)[0] if thinks else before,
        suffix="".join(cut.content for cut in splitter.split(after[: end.start], {}) if isinstance(cut.content, str)),
        content=_edges(full, render([user, _reply(f"{_EDGE}{_WORD}{_EDGE}")], None, False), _WORD),
        thought=thought,
        thinking=thinking,
        tools=grammar,
        call_ids=call_ids,
        delimiters="tokens" if _has_control(splitter, prompt.rpartition(_ASKED)[2]) else "text",
        place=Place.INSIDE if last and isinstance(last[0].content, str) else Place.AFTER_CONTROL,
    )


def _reply(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _completion(prompt: str, full: str, name: str) -> str:
    if not full.startswith(prompt):
        raise not_a_prefix(prompt, full, name)
    return full[len(prompt) :]


def not_a_prefix(prompt: str, full: str, place: str) -> TemplateError:
    """The error for a rendering that doesn't begin with its own prompt."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    shown = f"the prompt goes on with {prompt[same : same + 40]!r}, the rendered reply with {full[same : same + 40]!r}"
    hint = "this template can't be trained as it is served; try a native format such as template.format: chatml"
    if THINK_OPEN in prompt[max(0, same - 20) :]:
        hint = (
            "its generation prompt writes the thinking block: set template.model_writes_thinking: true, or its variable"
        )
    return TemplateError(f"a reply's rendering doesn't begin with its prompt: {shown}", place=place, hint=hint)


def _around(text: str, word: str, name: str) -> tuple[str, str]:
    if word not in text:
        raise TemplateError(f"doesn't render the text of a reply (found {text[:60]!r})", place=name)
    before, _, after = text.partition(word)
    return before, after


def _turn_end(splitter: ControlSplitter, after: str, later: str, name: str) -> Cut:
    """The end of a turn: if possible a token that stands there as the last turn ends and as the chat goes on alike.

    Args:
        after: what follows a last reply. later: what follows it when another message comes.
    """
    cuts = splitter.split(after, {})
    same = [cut for cut in cuts if later.startswith(after[: cut.end])]
    end = end_of_turn(same) or end_of_turn(cuts)
    if end is None:
        raise TemplateError(
            "has no end of turn: no control token ends a reply, so the model would never learn to stop",
            place=name,
            hint="write eos_token behind the reply in the template, or use a native format",
        )
    return end


def _id(cut: Cut) -> int:
    assert isinstance(cut.content, int)
    return cut.content


def _has_control(splitter: ControlSplitter, text: str) -> bool:
    """Whether a text holds control tokens other than those of thinking."""
    rest = text.replace(THINK_OPEN, "").replace(THINK_CLOSE, "")
    return any(isinstance(cut.content, int) for cut in splitter.split(rest, {}))


def _edges(plain: str, edged: str, word: str) -> Edges:
    """How a word with `line break, space, line break` on either side came through, compared with the bare word."""
    before, _, after = plain.partition(word)
    edged_before, _, edged_after = edged.partition(word)
    left: dict[str, Trim] = {before + _EDGE: "none", before + _EDGE.lstrip("\n"): "newlines"}
    right: dict[str, Trim] = {_EDGE + after: "none", _EDGE.rstrip("\n") + after: "newlines"}
    return Edges(left.get(edged_before, "blanks"), right.get(edged_after, "blanks"))


def _probe_thinking(render: Render) -> tuple[bool, Edges]:
    user = {"role": "user", "content": "Hi"}
    plain, edged = (
        render([user, _reply(_WORD, reasoning_content=thought)], None, False)
        for thought in (_THOUGHT, f"{_EDGE}{_THOUGHT}{_EDGE}")
    )
    before, found, after = plain.partition(_THOUGHT)
    readable = found and THINK_OPEN in before.rpartition(THINK_CLOSE)[2] and THINK_CLOSE in after
    return (True, _edges(plain, edged, _THOUGHT)) if readable else (False, Edges())


def _probe_tools(render: Render, splitter: ControlSplitter, name: str) -> tuple[str, bool, list[int]]:
    """The tool grammar, whether it writes call ids, and the tokens that end a turn of calls."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, _reply("", tool_calls=[_PROBE_CALL])]
    result = {"role": "tool", "name": "qz_tool", "tool_call_id": "call00000", "content": "qz result"}
    try:
        prompt = render(messages[:1], [PROBE_TOOL], True)
        full = render(messages, [PROBE_TOOL], False)
        after = render([*messages, result], [PROBE_TOOL], True)
    except TemplateError:
        return "none", False, []
    if "qz_tool" not in prompt or "qz value" not in full or "qz result" not in after:
        return "none", False, []
    completion = full[len(prompt) :] if full.startswith(prompt) else ""
    later = after[len(prompt) :] if after.startswith(prompt) else ""
    end = end_of_turn(splitter.split(completion, {}))
    if end is None:
        return "unknown", False, []
    end = _turn_end(splitter, completion, later, name)
    text = completion[: end.start].rpartition(THINK_CLOSE)[2].lstrip("\n")
    for grammar, read in JSON_GRAMMARS.items():
        reading = read(text, lambda tag: tag)
        if len(reading.calls) == 1 and reading.calls[0].tool == "qz_tool" and "qz value" in reading.calls[0].text:
            return grammar, reading.calls[0].call_id is not None, [_id(end)]
    return "unknown", False, []


def grammar_tags() -> tuple[str, ...]:
    """Every tag that parsing a reply has to see."""
    return (THINK_OPEN, THINK_CLOSE, *GRAMMAR_TAGS)
