"""The five laws of rendering, checked on the user's own conversations.

1. prompt: the tokens before each trained span are what the engine holds when it begins to generate there;
2. text: no text becomes a control token;
3. begin and stop: begin-of-text as the template declares, and every trained reply ends in a trained stop token;
4. parse: parsing a rendered reply gives the reply;
5. weights: exactly what the model writes is trained, no more and no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from chatwright.conversations.schema import Conversation, Message
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.outline import Outline, encode_ids, encode_outlines
from chatwright.templates.plain_text import DocumentFrame
from chatwright.templates.policy import turn_weights
from chatwright.templates.rendered import RenderedExample

LAW_NAMES = ("prompt", "text", "begin and stop", "parse", "weights")


@dataclass(frozen=True, slots=True)
class LawResult:
    """How one law fared.

    Args:
        name: one of `LAW_NAMES`. passed: no case failed. checked: the number of cases.
        failures: one sentence a failed case, with its row. detail: one line to print.
    """

    name: str
    passed: bool
    checked: int
    failures: tuple[str, ...]
    detail: str


@dataclass(slots=True)
class _Tally:
    checked: int = 0
    failures: list[str] | None = None

    def see(self, passed: bool, sentence: str) -> None:
        self.checked += 1
        if not passed:
            self.failures = [*(self.failures or []), sentence]


def check_laws(template: Template, conversations: Sequence[Conversation]) -> list[LawResult]:
    """Check every law on every conversation.

    Raises:
        TemplateError: a conversation can't be rendered at all.
    """
    tallies = {name: _Tally() for name in LAW_NAMES}
    differing = forged = 0
    for conversation in conversations:
        where = f"{conversation.source}, row {conversation.row}"
        if conversation.document:
            _check_document(template, conversation, where, tallies)
            forged += _holds_control_text(template, conversation)
            continue
        arranged = template.arranged(conversation)
        outlines = template.outline(conversation, TrainOn.ASSISTANT)
        for outline, example in zip(outlines, encode_outlines(template.tokenizer, outlines), strict=True):
            _check_example(template, arranged, outline, example, where, tallies)
        for index, message in enumerate(arranged.messages):
            if message.role == "assistant":
                _check_parse(template, arranged, index, where, tallies["parse"])
        forged += _holds_control_text(template, conversation)
        differing += _differs_whole(template, conversation)
    notes = {
        "prompt": f"; encoding the whole string at once would give other tokens in {differing}" if differing else "",
        "text": f"; {forged} hold control strings, kept as text" if forged else "",
    }
    if template.delimiters == "text":
        notes["text"] += "; roles are plain text in this template, so a message can imitate another one's header"
    return [_result(name, tally, notes.get(name, "")) for name, tally in tallies.items()]


def _result(name: str, tally: _Tally, note: str) -> LawResult:
    failures = tuple(tally.failures or ())
    detail = f"{tally.checked - len(failures):,} of {tally.checked:,} hold{note}"
    return LawResult(name, not failures, tally.checked, failures, f"{detail}; {failures[0]}" if failures else detail)


def trained_spans(example: RenderedExample) -> list[tuple[int, int]]:
    """The maximal runs `[start, end)` of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], example.weights > 0, [0]))))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _check_example(
    template: Template,
    arranged: Conversation,
    outline: Outline,
    example: RenderedExample,
    where: str,
    tallies: dict[str, _Tally],
) -> None:
    ids = example.ids.tolist()
    played = play_engine(template, arranged, ids)
    starts = {start for reply in played.values() for start in reply.starts}
    for start, end in trained_spans(example):
        tallies["prompt"].see(start in starts, f"{where}: token {start}: the engine would hold another prompt there")
        stops = any(ids[position] in template.stop_ids for position in range(start, end))
        forced = template.grammar is not None and end < len(ids) and ids[end] == template.grammar.result_start
        tallies["begin and stop"].see(stops or forced, f"{where}: token {end - 1}: no trained end of turn")
    chosen = turn_weights(arranged.messages, TrainOn.ASSISTANT, arranged)
    turns = [example.key.part] if example.key.part else [i for i, weight in enumerate(chosen) if weight > 0]
    wanted = {position for turn in turns if turn in played for position in played[turn].written} - {0}
    wrong = wanted.symmetric_difference(np.flatnonzero(example.weights).tolist())
    tallies["weights"].see(
        not wrong, f"{where}: token {min(wrong, default=0)} is {_word(min(wrong, default=0), wanted)}"
    )
    unknown = template.tokenizer.unknown_id
    control = sum(index in template.tokenizer.control_names and index != unknown for index in ids)
    written = sum(isinstance(piece.content, int) for piece in outline.pieces)
    tallies["text"].see(control == written, f"{where}: {control} control tokens, but the template wrote {written}")
    bos = template.tokenizer.bos_id
    found = ids.count(bos) if bos is not None else 0
    declared = template.expected_bos(_first(arranged, example.key.part + 1) if example.key.part else arranged)
    tallies["begin and stop"].see(found == declared, f"{where}: {found} begin-of-text tokens, {declared} declared")


def _check_document(template: Template, document: Conversation, where: str, tallies: dict[str, _Tally]) -> None:
    """Plain text: control tokens stand at its ends alone, and every token but the first is trained."""
    (example,) = template.render(document)
    frame = DocumentFrame.of(template.tokenizer)
    ids = example.ids.tolist()
    begins, ends = ids[:1] == [frame.begin] or frame.begin is None, ids[-1:] == [frame.end] or frame.end is None
    tallies["begin and stop"].see(begins and ends, f"{where}: begin- or end-of-text is missing")
    inside = ids[int(frame.begin is not None) : len(ids) - int(frame.end is not None)]
    unknown = template.tokenizer.unknown_id
    control = sum(index in template.tokenizer.control_names and index != unknown for index in inside)
    tallies["text"].see(not control, f"{where}: {control} control tokens inside the text")
    trained = trained_spans(example)
    tallies["weights"].see(trained == [(1, len(ids))], f"{where}: not every token behind the first is trained")


def _word(position: int, wanted: set[int]) -> str:
    return "the model's and not trained" if position in wanted else "given and trained"


def _first(conversation: Conversation, count: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:count])


@dataclass(frozen=True, slots=True)
class PlayedReply:
    """What an engine does in one reply: where generation begins (or goes on after a result), what the model writes."""

    starts: tuple[int, ...]
    written: tuple[int, ...]


def play_engine(template: Template, arranged: Conversation, ids: Sequence[int]) -> dict[int, PlayedReply]:
    """Play the engine over `ids`: hold each prompt, write until the stop token, take tool results as forced tokens.

    Returns:
        For each assistant message whose prompt `ids` begin with: what the engine does there.
    """
    played: dict[int, PlayedReply] = {}
    for index, message in enumerate(arranged.messages):
        if message.role != "assistant":
            continue
        prompt = template.render_prompt(_first(arranged, index))
        if list(ids[: len(prompt)]) == prompt and len(prompt) < len(ids):
            played[index] = _play(template, message, ids, len(prompt))
    return played


def _play(template: Template, message: Message, ids: Sequence[int], start: int) -> PlayedReply:
    results = iter([part.text for part in message.parts if part.kind == "tool_result"])
    state = template.grammar.start() if template.grammar else None
    starts, written = [start], []
    position = start
    while position < len(ids):
        written.append(position)
        if ids[position] in template.stop_ids:
            if template.settings.train_line_break_after_end:
                written += _glue(template, ids, position + 1)
            break
        event = state.feed(ids[position]) if state else None
        position += 1
        forced = state.forced_result(next(results, "")) if event and state else []
        if forced and list(ids[position : position + len(forced)]) == forced:
            position += len(forced)
            starts.append(position)
    return PlayedReply(tuple(starts), tuple(written))


def _glue(template: Template, ids: Sequence[int], position: int) -> list[int]:
    """The blank tokens behind an end of turn."""
    found = []
    for place in range(position, len(ids)):
        if ids[place] in template.tokenizer.control_names or template.tokenizer.token_text(ids[place]).strip():
            break
        found.append(place)
    return found


def _check_parse(template: Template, arranged: Conversation, index: int, where: str, tally: _Tally) -> None:
    prompt = template.render_prompt(_first(arranged, index))
    (ids,) = encode_ids(template.tokenizer, template.outline(_first(arranged, index + 1), TrainOn.EVERYTHING)[:1])
    found = template.parse_reply(ids[len(prompt) :]).parts
    wanted = template.canonical_reply(arranged.messages[index]).parts
    tally.see(found == wanted, f"{where}: message {index} comes back as {found!r:.120}, not {wanted!r:.120}")


def _holds_control_text(template: Template, conversation: Conversation) -> bool:
    texts = [part.text for message in conversation.messages for part in message.parts]
    return any(name in text for name in template.tokenizer.control_ids for text in texts)


def _differs_whole(template: Template, conversation: Conversation) -> bool:
    """Whether other programs, which encode the whole rendered string at once, would get other tokens."""
    (outline, *_) = template.outline(conversation, TrainOn.EVERYTHING)
    names = template.tokenizer.control_names
    text = "".join(
        piece.content if isinstance(piece.content, str) else names[piece.content] for piece in outline.pieces
    )
    return template.tokenizer.encode_whole(text) != encode_ids(template.tokenizer, [outline])[0]
