"""Lint rules that read one row: the order of roles, replies that say nothing, repeat, break off or leak.

No template is needed; what only rendering shows is in `lint_rendered`, what only the whole set shows in `lint_sets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from chatwright.conversations.exchanges import answers, exchanges
from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.text_measures import is_unfinished, mojibake_at, plain, repeats
from chatwright.inspection.lint_types import Hit, LintInput, excerpt, texts

_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_]\w*\s*\}\}")
_SENTENCES = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_LEAK_CHARACTERS = 40


def role_order(data: LintInput) -> Iterator[Hit]:
    """Roles that don't alternate as every template expects."""
    for conversation in data.conversations:
        for number, what in _order_problems(conversation.messages):
            yield Hit(conversation, number, what, excerpt(conversation.messages[number].text))
            break


def _order_problems(messages: tuple[Message, ...]) -> Iterator[tuple[int, str]]:
    """(message, what is wrong), in order; `before` is the role of the last message that isn't the system's."""
    before = ""
    for number, message in enumerate(messages):
        if message.role == "system":
            if number:
                yield number, "a system message that isn't the first message"
            continue
        if not before and message.role != "user":
            yield number, f"begins with {message.role}, not with user"
        elif message.role == before and before != "tool":
            yield number, f"{before} twice in a row"
        elif message.role == "tool" and before == "user":
            yield number, "a tool's output without a call before it"
        elif message.role == "user" and before == "tool":
            yield number, "user right after a tool's output, which nobody answered"
        before = message.role
    if before and before != "assistant":
        yield len(messages) - 1, f"ends with {before}: what comes after the last reply trains nothing"


def empty_reply(data: LintInput) -> Iterator[Hit]:
    """Replies without text and call."""
    for conversation in data.conversations:
        for each in exchanges(conversation):
            if not answers(each.reply):
                yield Hit(conversation, each.place, "an empty reply", excerpt(each.prompt))


def repeats_prompt(data: LintInput) -> Iterator[Hit]:
    """Replies that begin with the whole prompt."""
    for conversation in data.conversations:
        for each in exchanges(conversation):
            if repeats(each.prompt, each.reply.text):
                yield Hit(conversation, each.place, "begins with the whole prompt", excerpt(each.reply.text))


def truncated(data: LintInput) -> Iterator[Hit]:
    """Replies that break off."""
    for conversation in data.conversations:
        for each in exchanges(conversation):
            text = each.reply.text.rstrip()
            if is_unfinished(text) and each.reply.parts[-1].kind == "text":
                yield Hit(conversation, each.place, "breaks off", excerpt(text, max(0, len(text) - 60)))


def mojibake(data: LintInput) -> Iterator[Hit]:
    """Texts that were decoded wrongly."""
    for conversation in data.conversations:
        for number, role, text in texts(conversation):
            at = mojibake_at(text)
            if at >= 0:
                yield Hit(conversation, number, f"in {role} text", excerpt(text, at))


def has_placeholder(conversation: Conversation) -> bool:
    """Whether a text, other than a tool's, holds a placeholder that nobody filled."""
    return any("{{" in text and role != "tool" and _PLACEHOLDER.search(text) for _, role, text in texts(conversation))


def placeholders(data: LintInput) -> Iterator[Hit]:
    """Placeholders that nobody filled."""
    for conversation in data.conversations:
        for number, role, text in texts(conversation):
            found = _PLACEHOLDER.search(text)
            if found and role != "tool":
                yield Hit(conversation, number, f"{found[0]} in {role} text", excerpt(text, found.start()))


def leaked_system(data: LintInput) -> Iterator[Hit]:
    """Replies that hold a sentence of the system prompt which the user hadn't said."""
    for conversation in data.conversations:
        system = "\n".join(message.text for message in conversation.messages if message.role == "system")
        if len(system) < _LEAK_CHARACTERS:
            continue
        sentences = [sentence for sentence in map(plain, _SENTENCES.split(system)) if len(sentence) >= _LEAK_CHARACTERS]
        asked = plain("\n".join(m.text for m in conversation.messages if m.role == "user"))
        for each in exchanges(conversation):
            said = plain(each.reply.text)
            leak = next((sentence for sentence in sentences if sentence in said and sentence not in asked), None)
            if leak:
                yield Hit(conversation, each.place, "repeats the system prompt", excerpt(leak))


def labelled_bad(data: LintInput) -> Iterator[Hit]:
    """Rows that their own label calls bad, trained like any other."""
    for conversation in data.conversations:
        if conversation.extra.get("label") is False and _has_trained_reply(conversation):
            last = conversation.messages[-1]
            yield Hit(conversation, None, "label: false, trained as an ordinary reply", excerpt(last.text))


def no_reply(data: LintInput) -> Iterator[Hit]:
    """Rows in which there is nothing to train, seen without rendering."""
    if data.template is None:
        for conversation in data.conversations:
            if not _has_trained_reply(conversation):
                said = conversation.messages[-1].text if conversation.messages else ""
                yield Hit(conversation, None, "no reply that is trained", excerpt(said))


def _has_trained_reply(conversation: Conversation) -> bool:
    return any(True for _ in exchanges(conversation))
