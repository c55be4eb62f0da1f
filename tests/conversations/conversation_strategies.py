"""Hypothesis strategies: conversations of every shape that a converter can read, and rows that none can."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from chatwright.conversations.schema import Conversation, Message, Part

PIECES = [
    *("<think>", "</think>", "<think>\nx\n</think>\n\n", "<tool_call>", "<|im_end|>", "\n", "\n\n", " ", "", "Hi", "é"),
    *("你好", "\u2028", "\x00", "\ufeff", "🙂", '"', "\\", "{", "[1]", "null", "\r\n", "\ue000", "NaN", "a" * 70),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)), max_size=5
).map("".join)
NAMES = st.one_of(st.sampled_from(["get_weather", "python", "f", "名"]), st.text("ab\u00e9 ", min_size=1, max_size=3))
CALL_IDS = st.sampled_from([None, None, "call_1", "call_2", ""])
FIELDS = st.one_of(st.sampled_from(["id", "source", "answer", "parts", "from", "chosen", "rejected"]), TEXTS)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
        max_leaves=6,
    )


JSON = _nested(PLAIN)
ANY_JSON = _nested(st.one_of(PLAIN, st.just("\ud800")))
ARGUMENTS = st.one_of(st.dictionaries(TEXTS, JSON, max_size=2).map(lambda a: json.dumps(a, ensure_ascii=True)), TEXTS)
COMPACT = st.dictionaries(TEXTS, st.integers(), max_size=2).map(
    lambda a: json.dumps(a, ensure_ascii=False, separators=(",", ":"))
)

CALLS = st.builds(Part, st.just("tool_call"), st.one_of(ARGUMENTS, COMPACT), NAMES, CALL_IDS)
RESULTS = st.builds(Part, st.just("tool_result"), TEXTS, st.one_of(st.none(), NAMES), CALL_IDS)
THINKING = st.builds(Part, st.just("thinking"), TEXTS)
WORDS = st.builds(Part, st.just("text"), TEXTS)
FLAGS = st.sampled_from([(None, 1.0), (None, 1.0), (True, 1.0), (False, 1.0), (None, 0.5), (True, 3.25), (False, 0.0)])


def _message(role: Any, parts: st.SearchStrategy[Part]) -> st.SearchStrategy[Message]:
    return st.builds(
        lambda parts, flags: Message(role, tuple(parts), *flags), st.lists(parts, min_size=1, max_size=4), FLAGS
    )


MESSAGES = st.one_of(
    _message("system", WORDS),
    _message("user", WORDS),
    st.builds(lambda text: Message.of("user", text), TEXTS),
    st.builds(lambda text: Message.of("assistant", text), TEXTS),
    _message("assistant", st.one_of(WORDS, THINKING, CALLS, RESULTS)),
    _message("tool", RESULTS),
)
TOOLS = st.builds(
    lambda name, parameters: {"type": "function", "function": {"name": name, "parameters": parameters}},
    NAMES,
    st.dictionaries(TEXTS, JSON, max_size=2),
)


def conversations() -> st.SearchStrategy[Conversation]:
    """Conversations with thinking, calls, results, flags, tools, template variables and extras, in any order."""
    return st.builds(
        lambda messages, tools, variables, extra: Conversation(
            tuple(messages), tuple(tools), variables, extra=_own(extra)
        ),
        st.lists(MESSAGES, min_size=1, max_size=4),
        st.lists(TOOLS, max_size=2),
        st.dictionaries(TEXTS, JSON, max_size=2),
        st.dictionaries(FIELDS, ANY_JSON, max_size=3),
    )


def _own(extra: dict[str, Any]) -> dict[str, Any]:
    """Extras as converters leave them: no field that a format reads itself."""
    read = ("messages", "conversation", "conversations", "tools", "system", "chat_template_kwargs", "chatwright_extra")
    return {key: value for key, value in extra.items() if key not in read and value is not None}
