"""Lint rules that need a template: what the rendered examples show, and what text means to this tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from chatwright.conversations.schema import Conversation, Message, Role
from chatwright.errors import TemplateError
from chatwright.inspection.lint_types import Hit, LintInput, excerpt, texts
from chatwright.templates.base import Template, TemplateSettings, TrainOn
from chatwright.templates.laws import trained_spans
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import load_template

COMMON_MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|end|>", "<|bos|>", "<|user_start|>", "<|assistant_start|>", "<｜User｜>", "<｜Assistant｜>"),
)
"""What the well-known templates write between turns: in a text, a sign that it was rendered once before."""

_LONG_EXAMPLE = 256
_LITTLE = 0.01
_COMPARED_ROWS = 5


def control_text(data: LintInput) -> Iterator[Hit]:
    """Control-token strings inside texts: kept as text here, but another program may read them as control tokens."""
    names = tuple(data.template.tokenizer.control_ids) if data.template else ()
    pattern = _any_of(tuple(sorted({*names, *COMMON_MARKERS})))
    for conversation in data.conversations:
        for number, role, text in texts(conversation):
            found = pattern.search(text)
            if found:
                yield Hit(conversation, number, f"{found[0]} in {role} text", excerpt(text, found.start()))


@lru_cache(maxsize=16)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))


def forged_headers(data: LintInput) -> Iterator[Hit]:
    """Where roles are plain text: messages that hold a header, so that one message can pass for two."""
    if data.template is None or data.template.delimiters != "text":
        return
    headers = text_headers(data.template)
    if not headers:
        return
    pattern = _any_of(headers)
    for conversation in data.conversations:
        for number, role, text in texts(conversation):
            found = pattern.search(text)
            if found:
                yield Hit(conversation, number, f"{found[0]!r} in {role} text", excerpt(text, found.start()))


def text_headers(template: Template) -> tuple[str, ...]:
    """The lines that a template writes around messages as plain text (bare words left out), sorted."""
    contents = ("set one", "ask one", "say one", "ask two", "say two")
    roles: tuple[Role, ...] = ("system", "user", "assistant", "user", "assistant")
    messages = tuple(Message.of(role, text) for role, text in zip(roles, contents, strict=True))
    try:
        outlines = template.outline(Conversation(messages), TrainOn.EVERYTHING)
    except TemplateError:  # it takes no system message
        outlines = template.outline(Conversation(messages[1:]), TrainOn.EVERYTHING)
    written = [piece.content for outline in outlines for piece in outline.pieces if isinstance(piece.content, str)]
    lines = re.split("|".join([*contents, "\n"]), "\n".join(written))
    return tuple(sorted({line.strip() for line in lines if len(line.strip()) >= 3 and not line.strip().isalnum()}))


def unrenderable(data: LintInput) -> Iterator[Hit]:
    """Rows that the template refuses."""
    for row in data.rendered:
        if row.failure:
            yield Hit(row.conversation, None, row.failure)


def nothing_supervised(data: LintInput) -> Iterator[Hit]:
    """Rows of which no token is trained."""
    for row in data.rendered:
        if row.examples and not any(example.num_supervised for example in row.examples):
            yield Hit(row.conversation, None, "no token is trained", excerpt(_last_text(row.conversation)))


def missing_stop(data: LintInput) -> Iterator[Hit]:
    """Trained replies without a trained end of turn: the model would learn to ramble on."""
    template = data.template
    for row in data.rendered if template else ():
        assert template is not None
        if any(not _stops(example, template) for example in row.examples):
            what = "a trained reply doesn't end in a stop token"
            yield Hit(row.conversation, None, what, excerpt(_last_text(row.conversation)))


def _stops(example: RenderedExample, template: Template) -> bool:
    """Whether every trained run holds a stop token, or ends where a tool's output is forced."""
    ids = example.ids.tolist()
    result_start = template.grammar.result_start if template.grammar else None
    return all(
        any(index in template.stop_ids for index in ids[start:end]) or (end < len(ids) and ids[end] == result_start)
        for start, end in trained_spans(example)
    )


def begin_of_text(data: LintInput) -> Iterator[Hit]:
    """Examples with more begin-of-text tokens than the template declares, or fewer."""
    template = data.template
    if template is None or template.tokenizer.bos_id is None:
        return
    for row in data.rendered:
        whole = [example for example in row.examples if not example.key.part]
        declared = template.expected_bos(template.arranged(row.conversation)) if whole else 0
        for example in whole:
            found = example.ids.tolist().count(template.tokenizer.bos_id)
            if found != declared:
                yield Hit(row.conversation, None, f"{found} begin-of-text tokens, {declared} declared")


def little_supervised(data: LintInput) -> Iterator[Hit]:
    """Long examples of which hardly a token is trained: they cost much and teach little."""
    for row in data.rendered:
        for example in row.examples:
            length, trained = len(example.ids), example.num_supervised
            if length >= _LONG_EXAMPLE and 0 < trained < _LITTLE * length:
                what = f"{trained:,} of {length:,} tokens are trained"
                yield Hit(row.conversation, None, what, excerpt(_last_text(row.conversation)))
                break


def other_template(data: LintInput) -> Iterator[Hit]:
    """A chosen template that gives other tokens than the model's own chat template."""
    template = data.template
    if template is None or template.settings.format == "jinja" or not template.tokenizer.chat_template:
        return
    try:
        own = load_template(template.tokenizer, TemplateSettings(format="jinja", variables=template.settings.variables))
    except TemplateError:
        return  # the model's own can't be used here: choosing another is right
    for row in [row for row in data.rendered if row.examples][:_COMPARED_ROWS]:
        try:
            ids = own.render(row.conversation)[0].ids.tolist()
        except TemplateError:
            continue
        if ids != row.examples[0].ids.tolist():
            what = (
                f"the {template.settings.format} format, though the model has a chat template that gives other tokens"
            )
            yield Hit(row.conversation, None, what, excerpt(own.tokenizer.decode(ids, with_control=True)))
            return


def _last_text(conversation: Conversation) -> str:
    return conversation.messages[-1].text if conversation.messages else ""
