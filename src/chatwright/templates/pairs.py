"""Preference pairs → examples: the tokens of the prompt, the better reply and the worse one behind one another.

Both replies are rendered as the last turn of a conversation of their own, by the one template, so that a pair's tokens
are exactly those that SFT would train and the engine would see. What both share is kept once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chatwright.conversations.preference_types import PairConversation
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.overflow import Fitted, Overflow, OverflowRecord, truncate
from chatwright.templates.rendered import ExampleKey, RenderedExample


def render_pairs(template: Template, pairs: Sequence[PairConversation]) -> list[RenderedExample]:
    """One example a pair: prompt, better reply, worse reply; weights mark what the model writes in the replies.

    The prompt is what stands before the first token that a reply writes, as far as both sides have the same tokens.
    What follows a reply's last written token (ChatML's line break) is left out, since nothing is learned from it.

    Raises:
        TemplateError: the template can't render a row faithfully.
    """
    sides = [side for pair in pairs for side in (pair, pair.worse)]
    rendered = [_last_turn(examples) for examples in template.render_many(sides, TrainOn.LAST)]
    return [_joined(*rendered[place : place + 2]) for place in range(0, len(rendered), 2)]


def written_part(examples: Sequence[RenderedExample]) -> RenderedExample:
    """Of a conversation's examples the one that trains its last reply, up to that reply's last written token."""
    example = _last_turn(examples)
    end = _written(example)[1]
    return replace(example, ids=example.ids[:end], weights=example.weights[:end])


def _last_turn(examples: Sequence[RenderedExample]) -> RenderedExample:
    """The example that trains the last reply, of a template that gives one for each turn."""
    return next((each for each in reversed(examples) if each.num_supervised), examples[-1])


def _joined(better: RenderedExample, worse: RenderedExample) -> RenderedExample:
    """The pair of two rendered sides; without a trained token where one of them writes nothing."""
    first, last = zip(*(_written(side) for side in (better, worse)), strict=True)
    prompt = _common(better.ids, worse.ids, min(first))
    sides = [(side.ids[prompt:end], side.weights[prompt:end]) for side, end in zip((better, worse), last, strict=True)]
    both = bool(better.num_supervised and worse.num_supervised)
    weights = [np.zeros(prompt, np.float32), *((w > 0).astype(np.float32) * both for _, w in sides)]
    return RenderedExample(
        ids=np.concatenate([better.ids[:prompt], *(ids for ids, _ in sides)]),
        weights=np.concatenate(weights),
        spans=(),
        key=ExampleKey(better.key.source, better.key.row, 0),
        prompt_length=prompt,
        chosen_length=len(sides[0][0]),
    )


def _written(side: RenderedExample) -> tuple[int, int]:
    """Where the first written token of a side stands, and the end of its last one."""
    places = np.flatnonzero(side.weights[1:] > 0) + 1
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (len(side.ids), len(side.ids))


def _common(left: np.ndarray, right: np.ndarray, most: int) -> int:
    """How many tokens two sides begin with alike, at most `most`."""
    different = np.flatnonzero(left[:most] != right[:most])
    return int(different[0]) if len(different) else most


def pair_sides(example: RenderedExample) -> tuple[RenderedExample, RenderedExample]:
    """The prompt with the better reply, and with the worse one, as ordinary examples."""
    prompt, end = example.prompt_length, example.prompt_length + example.chosen_length
    better = replace(example, ids=example.ids[:end], weights=example.weights[:end], prompt_length=0, chosen_length=0)
    ids, weights = (np.concatenate([array[:prompt], array[end:]]) for array in (example.ids, example.weights))
    return better, replace(better, ids=ids, weights=weights)


def fit_pairs(examples: Sequence[RenderedExample], max_tokens: int, overflow: Overflow, template: Template) -> Fitted:
    """Bring pairs to at most `max_tokens` tokens, prompt and both replies together.

    `truncate` cuts the longer reply, then both, inside their text, and keeps their ends of turn; a prompt is never cut.
    A pair is dropped where nothing of a reply would stay, or both would become the same.
    """
    kept: list[RenderedExample] = []
    drops: list[OverflowRecord] = []
    cuts: list[OverflowRecord] = []
    for example in examples:
        length = len(example.ids)
        if length <= max_tokens:
            kept.append(example)
            continue
        cut = _truncated(example, max_tokens, template) if overflow is Overflow.TRUNCATE else None
        if cut is None:
            cause = "the replies don't fit into" if overflow is Overflow.TRUNCATE else "longer than"
            drops.append(OverflowRecord(example.key, length, f"{cause} {max_tokens} tokens"))
        else:
            kept.append(cut)
            cuts.append(OverflowRecord(example.key, length - len(cut.ids), f"cut to length: over {max_tokens} tokens"))
    return Fitted(tuple(kept), tuple(drops), tuple(cuts))


def _truncated(example: RenderedExample, max_tokens: int, template: Template) -> RenderedExample | None:
    prompt, room = example.prompt_length, max_tokens - example.prompt_length
    sides = pair_sides(example)
    shortest = min(len(side.ids) - prompt for side in sides)
    most = prompt + (room - shortest if shortest <= room // 2 else room // 2)
    cut = [side if len(side.ids) <= most else truncate(side, most, template) for side in sides]
    better, worse = cut
    if better is None or worse is None or np.array_equal(better.ids, worse.ids):
        return None
    if min(len(better.ids), len(worse.ids)) <= prompt:
        return None
    return _joined(better, worse)
