"""For each row filter its settings, conversations that it must keep, and conversations that it must drop."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.schema import Conversation, Message, Part

PROSE = (
    "The river rises in the hills and runs for forty miles through fields before it meets the sea. Farmers have used "
    "its water since the first mills were built, and three bridges cross it today. In spring the lower meadows are "
    "often flooded, which keeps the ground rich. Most visitors come in June, when the orchards on both banks bloom."
)


def chat(*texts: str, **fields: Any) -> Conversation:
    """A conversation of user and assistant in turn; `fields` go to the conversation."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message.of(roles[i % 2], text) for i, text in enumerate(texts)), **fields)  # type: ignore[arg-type]


def calling(*parts: Part) -> Conversation:
    """A conversation whose reply has these parts."""
    return Conversation((Message.of("user", "What is 12/60?"), Message("assistant", parts)))


CALL = Part("tool_call", "12/60", "calculator")
Case = tuple[dict[str, Any], list[Conversation], list[Conversation], str]

CASES: dict[str, Case] = {
    "length of replies": (
        {"kind": "length", "of": "replies", "min": 3, "max": 5},
        [chat("a long question", "abc"), chat("?", "abcde", "?", "abcd")],
        [chat("?", "ab"), chat("?", "abcdef"), chat("?", "abcd", "?", "ab")],
        "length: ",
    ),
    "length of prompts": (
        {"kind": "length", "of": "prompts", "max": 5},
        [chat("12345", "a long reply")],
        [chat("123456", "x")],
        "length: over 5 characters (prompts)",
    ),
    "length of the whole": (
        {"kind": "length", "min": 10},
        [chat("12345", "12345")],
        [chat("12345", "1234")],
        "length: under 10 characters (conversation)",
    ),
    "length in turns": (
        {"kind": "length", "unit": "turns", "max": 2},
        [chat("a", "b")],
        [chat("a", "b", "c")],
        "length: over 2 turns (conversation)",
    ),
    "length in replies": (
        {"kind": "length", "unit": "turns", "of": "replies", "min": 2},
        [chat("a", "b", "c", "d")],
        [chat("a", "b", "c")],
        "length: under 2 turns (replies)",
    ),
    "empty reply": (
        {"kind": "empty_reply"},
        [chat("a", "b"), calling(CALL), calling(Part("thinking", "hm"), Part("text", "x"))],
        [chat("a", " \n"), chat("a", "b", "c", ""), calling(Part("thinking", "hm")), chat("a")],
        "empty_reply: ",
    ),
    "repeats the prompt": (
        {"kind": "repeats_prompt"},
        [chat("Good morning!", "Good morning!"), chat("What is the capital of France?", "The capital is Paris.")],
        [
            chat("What is the capital of France?", "what is the  capital of France?"),
            chat("What is the capital of France?", "What is the capital of France? Paris."),
        ],
        "repeats_prompt: a reply repeats the prompt",
    ),
    "symbols": (
        {"kind": "symbols", "max_share": 0.4},
        [chat("?", PROSE), chat("?", "=====")],
        [chat("?", "!!! ??? *** --- +++ a lot of ~~~~ %%%% &&&& ####")],
        "symbols: more than 40% symbols in a reply",
    ),
    "repeated words": (
        {"kind": "repetition"},
        [chat("?", PROSE), chat("?", "again and again and again")],
        [chat("?", "I am very happy to help you. " * 20), chat("?", "我很高兴帮助你。" * 20)],
        "repetition: ",
    ),
    "truncated": (
        {"kind": "truncated"},
        [
            chat("?", PROSE),
            chat("?", "Paris"),
            chat("?", "This is fine. It ends without a mark because that is how people write in chats"),
            chat("?", PROSE + "\n- apples from the garden of the house behind the hill"),
            chat("?", PROSE + " Sure. Here is the code:\n```python\nprint(1)\n```"),
            chat("?", PROSE + " Here is one. #rivers #water #orchards"),
            chat("?", PROSE + ' "All is water." - Thales of Miletus'),
            chat("?", "The name of the river that runs through all of these towns " * 5),
        ],
        [
            chat("?", PROSE + " Their hosts are"),
            chat("?", PROSE + " Here is the code that you asked for:\n```python\nprint(1"),
            chat(
                "?",
                "今天天气很好，我们去公园散步。公园里有很多人在跑步，还有孩子在放风筝。" * 6
                + "我们走了一会儿之后，又去了附近的",
            ),
        ],
        "truncated: a reply breaks off",
    ),
    "pattern that must be there": (
        {"kind": "pattern", "match": r"\d", "role": "user"},
        [chat("1?", "x")],
        [chat("?", "1")],
        r"pattern: no '\\d' (user)",
    ),
    "forbidden pattern": (
        {"kind": "pattern", "forbid": "as an ai", "role": "assistant", "ignore_case": True},
        [chat("Speak as an AI!", "No.")],
        [chat("?", "As an AI I can't.")],
        "pattern: forbidden 'as an ai' (assistant)",
    ),
    "field that must hold": (
        {"kind": "field", "field": "label", "allow": [True]},
        [chat("a", "b", extra={"label": True})],
        [chat("a", "b", extra={"label": False}), chat("a", "b", extra={"label": 1}), chat("a", "b")],
        "field: label is not allowed",
    ),
    "forbidden field": (
        {"kind": "field", "field": "status", "forbid": ["too_short", None]},
        [chat("a", "b", extra={"status": "ok"})],
        [chat("a", "b", extra={"status": "too_short"}), chat("a", "b")],
        "field: status is forbidden",
    ),
}


def keep_all(conversation: Conversation) -> bool:
    """A user's filter."""
    return True


def short_only(conversation: Conversation) -> bool | str:
    """A user's filter that says why."""
    return len(conversation.messages[-1].text) < 5 or "too long for me"


def drop_all(conversation: Conversation) -> bool:
    """A user's filter."""
    return False


def forgets(conversation: Conversation) -> None:
    """A user's filter without a return."""


def fails(conversation: Conversation) -> bool:
    """A user's filter with a bug."""
    return bool(conversation.extra["quality"] > 3)
