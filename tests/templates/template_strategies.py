"""Hypothesis strategies: texts that try everything, and conversations of every shape."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from chatwright.conversations.schema import Conversation, Message, Part

CONTROL_STRINGS = [
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<s>",
        "</s>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
    ),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "<|eot_id|>", "<|start_header_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|bos|>", "<|user_end|>", "<|assistant_end|>", "<|python_start|>", "<|output_end|>", "<|tool_call_end|>"),
]
_WORDS = st.sampled_from(
    [
        *(
            "Hello",
            " world",
            "0.2",
            "12/60",
            "\n",
            "\n\n",
            " ",
            "  ",
            "你好",
            "é",
            "e\u0301",
            "🙂",
            "user",
            "assistant\n",
        ),
        *(
            "<",
            ">",
            "|",
            "[",
            "]",
            "{",
            '"',
            "\\",
            "&lt;",
            "\\ue000",
            "&#xe001;",
            "\ue000",
            "\ue001x",
            "\t",
            "▁",
            "\r\n",
        ),
    ]
)
_CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def texts(plain: bool = False) -> st.SearchStrategy[str]:
    """Texts; unless `plain`, with control strings whole, split and joined to others."""
    pieces = [_WORDS, _CHARACTERS]
    if not plain:
        cut = st.tuples(st.sampled_from(CONTROL_STRINGS), st.integers(0, 12)).map(lambda pair: pair[0][: pair[1]])
        pieces += [st.sampled_from(CONTROL_STRINGS), cut]
    return st.lists(st.one_of(pieces), max_size=8).map("".join)


ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "query", "think", "<think>", "n"]),
    st.one_of(texts(), st.integers(-5, 5), st.booleans(), st.none(), st.lists(texts(), max_size=2)),
    max_size=3,
).map(lambda arguments: json.dumps(arguments, ensure_ascii=False))


def _call(arguments: str) -> Part:
    return Part("tool_call", arguments, "get_weather")


@st.composite
def replies(draw: st.DrawFn, tools: bool, thinking: bool, one_call: bool = False) -> Message:
    """An assistant message; calls come with their results, the last one may stay open."""
    parts: list[Part] = []
    if thinking and draw(st.booleans()):
        parts.append(Part("thinking", draw(texts())))
    if tools and draw(st.booleans()):
        if not one_call:
            parts.append(Part("text", draw(texts())))
        parts += [_call(draw(ARGUMENTS)), Part("tool_result", draw(texts()), "get_weather")]
    parts.append(Part("text", draw(texts())))
    return Message("assistant", tuple(parts), train=draw(st.sampled_from([None, None, True, False])))


@st.composite
def conversations(
    draw: st.DrawFn, tools: bool = False, thinking: bool = False, system: bool = True, one_call: bool = False
) -> Conversation:
    """One to three exchanges."""
    messages: list[Message] = []
    if system and draw(st.booleans()):
        messages.append(Message.of("system", draw(texts())))
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message.of("user", draw(texts())), draw(replies(tools, thinking, one_call))]
    return Conversation(tuple(messages))
