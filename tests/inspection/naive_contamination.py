"""The rules of contamination once more, in sets of word tuples: slow, and without hashes, arrays or batches.

For texts of the letters a to z and spaces only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from chatwright.inspection.contamination import (
    ALIKE,
    COMMON_ITEMS,
    FEW_SHARED,
    LEAST_SHARED,
    LEAST_WHOLE_WORDS,
    LEAST_WORDS,
    SHINGLE,
    ContaminationSettings,
    Match,
)
from chatwright.inspection.evaluation_texts import EvalText

Grams = list[tuple[str, ...]]


def naive_matches(items: Sequence[EvalText], settings: ContaminationSettings, messages: list[str]) -> list[Match]:
    """What a conversation of these messages holds."""
    words = [item.text.split() for item in items]
    used = [_used(item, text, settings.n) for item, text in zip(items, words, strict=True)]
    row = [word for message in messages for word in message.split()]
    telling_runs = _telling([text for text, use in zip(words, used, strict=True) if use], settings.n)
    telling_shingles = _telling([text for text, use in zip(words, used, strict=True) if use], SHINGLE)
    found = []
    for place, (item, text) in enumerate(zip(items, words, strict=True)):
        if used[place]:
            least = 1.0 if item.made_here else settings.min_share
            found += _run_match(place, text, row, telling_runs, settings.n, least)
            found += _shingle_match(place, item, text, row, telling_shingles, settings)
        elif item.field != "answer" and LEAST_WHOLE_WORDS <= len(text) < LEAST_WORDS:
            same = sum(other == text and each.field != "answer" for each, other in zip(items, words, strict=True))
            if same <= COMMON_ITEMS and text in [message.split() for message in messages]:
                found.append(Match(place, "ngram", 1.0, 1))
    best: dict[tuple[str, str, str, int], Match] = {}
    for match in sorted(found, key=lambda match: (match.kind != "ngram", -match.share, match.text)):
        best.setdefault(items[match.text].item, match)
    return [best[key] for key in sorted(best)]


def _used(item: EvalText, text: list[str], n: int) -> bool:
    return len(text) >= n or (item.field != "answer" and len(text) >= LEAST_WORDS)


def _grams(text: list[str], n: int) -> Grams:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def _telling(texts: list[list[str]], n: int) -> set[tuple[str, ...]]:
    holders = Counter(gram for text in texts for gram in set(_grams(text, n)))
    return {gram for gram, count in holders.items() if count <= COMMON_ITEMS}


def _run_match(
    place: int, text: list[str], row: list[str], telling: set[tuple[str, ...]], n: int, least: float
) -> list[Match]:
    of_row = set(_grams(row, n))
    shared = {gram for gram in _grams(text, n) if gram in telling and gram in of_row}
    if not shared:
        return []
    starts = list(enumerate(_grams(text, n)))
    covered = {start + step for start, gram in starts if gram in shared for step in range(n)}
    possible = {start + step for start, gram in starts if gram in telling for step in range(n)}
    share = len(covered) / len(possible)
    return [Match(place, "ngram", share, len(shared))] if share >= least else []


def _shingle_match(
    place: int,
    item: EvalText,
    text: list[str],
    row: list[str],
    telling: set[tuple[str, ...]],
    settings: ContaminationSettings,
) -> list[Match]:
    own = set(_grams(text, SHINGLE)) & telling
    shared = own & set(_grams(row, SHINGLE))
    if not shared:
        return []
    if len(text) < settings.n and 2 * len(own) >= len(text) - SHINGLE + 1 and tuple(text) in _grams(row, len(text)):
        return [Match(place, "ngram", 1.0, 1)]
    if item.made_here or len(shared) < FEW_SHARED or len(shared) / len(own) < settings.near_threshold:
        return []
    if len(shared) < LEAST_SHARED and (item.field != "question" or _alike(text, row) < ALIKE):
        return []
    return [Match(place, "near_duplicate", len(shared) / len(own), len(shared))]


def _alike(text: list[str], row: list[str]) -> float:
    one, other = _grams(text, SHINGLE), _grams(row, SHINGLE)
    start = int(median(other.index(gram) - one.index(gram) for gram in set(one) & set(other)))
    around = row[max(start - 2, 0) : max(start + len(text) + 2, 0)]
    return sum(word in around for word in text) / len(text)
