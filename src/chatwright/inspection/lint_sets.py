"""Lint rules that need the whole set: duplicates, mixed languages, rows far from the others in length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np

from chatwright.conversations.duplicates import dedup_key, dedup_text, find_exact, find_near, key_array
from chatwright.conversations.exchanges import exchanges
from chatwright.conversations.minhash import minhash_many
from chatwright.conversations.schema import Conversation
from chatwright.conversations.text_measures import main_script, without_code
from chatwright.inspection.lint_types import Counted, Hit, LintInput, LintPlace, excerpt
from chatwright.inspection.row_keys import Repeat

NEAR = 0.8
"""The estimated similarity from which two rows count as near duplicates."""

_FEW_WORDS = 8
_STRAY_SHARE = 0.02
_ROWS_FOR_OUTLIERS = 50
_FAR = 6.0
_LEAST_SPREAD = 0.35  # far is a factor of 8 at least


def exact_duplicates(data: LintInput) -> Counted:
    """Rows that repeat an earlier one word for word, among all rows of the set."""
    count, repeats = data.keys.repeats()
    first = next(repeats, None)
    if first is None:
        return Counted(0, ())
    held = next((each for each in data.conversations if dedup_key(each) == first.key), None)
    text = "" if held is None else excerpt(dedup_text(held))
    return Counted(count, map(_place, chain([first], repeats)), text)


def _place(repeat: Repeat) -> LintPlace:
    earlier = _earlier(repeat.first_source, repeat.first_row, repeat.source)
    return LintPlace(repeat.source, repeat.row, None, f"the same as {earlier}")


def near_duplicates(data: LintInput) -> Iterator[Hit]:
    """Rows much like an earlier one, those that are equal to one left out; very short rows aren't compared."""
    first = find_exact(key_array([dedup_key(conversation) for conversation in data.conversations]))
    texts = [dedup_text(conversation) for conversation in data.conversations]
    compared = [row for row in np.flatnonzero(first == np.arange(len(first))).tolist() if _is_long(texts[row])]
    near = find_near(minhash_many([texts[row] for row in compared]), NEAR)
    for place in np.flatnonzero(near != np.arange(len(near))).tolist():
        yield _repeat(data, compared[place], compared[near[place]], "much like")


def _is_long(text: str) -> bool:
    return len(text.split()) >= _FEW_WORDS or len(text.encode()) >= 8 * _FEW_WORDS


def _repeat(data: LintInput, row: int, first: int, words: str) -> Hit:
    earlier = data.conversations[first]
    here = data.conversations[row]
    return Hit(here, None, f"{words} {_earlier(earlier.source, earlier.row, here.source)}", excerpt(dedup_text(here)))


def _earlier(source: str, row: int, seen_from: str) -> str:
    return f"row {row}" if source == seen_from else f"{source}, row {row}"


def language_mix(data: LintInput) -> Iterator[Hit]:
    """Rows in a script that hardly any other row has, and replies in another script than what was asked."""
    scripts = [main_script(dedup_text(conversation)[:1000]) for conversation in data.conversations]
    counts = Counter(script for script in scripts if script)
    few = {script for script, count in counts.items() if count < _STRAY_SHARE * counts.total()}
    for conversation, script in zip(data.conversations, scripts, strict=True):
        if script in few:
            what = f"{script} script, in a set that is mostly {counts.most_common(1)[0][0]}"
            yield Hit(conversation, None, what, excerpt(dedup_text(conversation)))
            continue
        for each in exchanges(conversation):
            asked, said = (main_script(without_code(text)[:1000]) for text in (each.prompt, each.reply.text))
            if asked and said and asked != said:
                yield Hit(conversation, each.place, f"asked in {asked}, answered in {said}", excerpt(each.reply.text))
                break


def length_outliers(data: LintInput) -> Iterator[Hit]:
    """Rows whose length is far from that of the others, on a logarithmic scale (median and median deviation)."""
    if len(data.conversations) < _ROWS_FOR_OUTLIERS:
        return
    lengths = np.array([_length(conversation) for conversation in data.conversations])
    logs = np.log(np.maximum(lengths, 1))
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), _LEAST_SPREAD)
    for row in np.flatnonzero(np.abs(logs - middle) > _FAR * spread).tolist():
        conversation = data.conversations[row]
        what = f"{lengths[row]:,} characters; half of the rows have fewer than {round(np.exp(middle)):,}"
        yield Hit(conversation, None, what, excerpt(dedup_text(conversation)))


def _length(conversation: Conversation) -> int:
    return sum(len(part.text) for message in conversation.messages for part in message.parts)
