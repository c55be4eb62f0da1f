"""Contamination: training rows that hold what an evaluation asks or answers.

Two rules, on words without case, punctuation and accents (`word_hashes`):

- `ngram`: n words in a row (13) that the row and the item share, when such runs cover a share of the item (half).
  n: GPT-3 (Brown et al. 2020, appendix C) took 8 to 13 words by length of item, the lm-evaluation-harness 13.
  The share: open-instruct's decontamination (Tülu 3, Lambert et al. 2024) and Cosmopedia take 50 % of the item;
  Llama 2 (Touvron et al. 2023, appendix A.6) calls an item dirty from 80 % on and not clean from 20 % on.
  An item of 8 to n − 1 words must stand in the row as a whole, one of 4 to 7 words must be a message of its own.
- `near_duplicate`: half of the item's 4-word shingles stand in the row (containment: Broder 1997), whatever words or
  numbers were changed between them. Measured on GSM8K, ARC and MMLU: every tenth word replaced is found, every fifth
  seldom; all numbers of a GSM8K question replaced is found in 9 of 10.

What a task of this program makes from a template counts only as a whole, and only its questions: its train split has
the same template, and other words by construction.

N-grams and shingles that more than 10 items hold are how a task puts its questions: they don't count, for or against
(GPT-3 left out 13-grams by the same number). A conversation is compared as a whole, so that an item split over two
messages is found.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from chatwright.conversations.schema import Conversation
from chatwright.inspection.evaluation_texts import EvalText
from chatwright.inspection.ngram_index import GramIndex
from chatwright.inspection.word_hashes import Words, grams, hash_words
from chatwright.settings import Settings

MatchKind = Literal["ngram", "near_duplicate"]

COMMON_ITEMS = 10
SHINGLE = 4
LEAST_WORDS = 8
LEAST_WHOLE_WORDS = 4
LEAST_SHARED = 7
FEW_SHARED = 4
ALIKE = 0.8
"""A near duplicate shares at least `LEAST_SHARED` shingles, since with fewer two questions may only begin alike; a
question counts from `FEW_SHARED` on when this share of its words stands about where the shingles put it."""
_SLACK = 2  # words that the row may have more, on each side

_BATCH_CHARACTERS = 200_000
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_LOOSE = re.compile(r"[\s.,;:!?'\"`()…。，、？！；：（）「」“”‘’*_#-]+")


class ContaminationSettings(Settings):
    """What training rows are compared with, how, and what happens to those that are hit.

    Args:
        evaluations: names of tasks; None takes every task whose data can be found.
        n: words in a row that must be the same.
        min_share: how much of an item's words such runs must cover; 0 takes a single run, as GPT-3 did.
        near_threshold: how much of an item's shingles a row must hold to be a near duplicate.
        on_hit: `report` trains on the row and tells; `drop` leaves it out and counts it.
        shown: hits kept for show, of each evaluation and kind.
    """

    evaluations: tuple[str, ...] | None = None
    n: int = Field(default=13, ge=LEAST_WORDS, le=50)
    min_share: float = Field(default=0.5, ge=0, le=1)
    near_threshold: float = Field(default=0.5, gt=0, le=1)
    on_hit: Literal["report", "drop"] = "report"
    shown: int = Field(default=20, ge=1)


class Match(NamedTuple):
    """A row that holds an evaluation item.

    Args:
        text: the number of the item's text in the index. share: of its telling words (`ngram`) or shingles, 0 to 1.
        grams: how many of its n-grams, or shingles, the row holds.
    """

    text: int
    kind: MatchKind
    share: float
    grams: int


@dataclass(frozen=True, slots=True)
class ContaminationIndex:
    """The evaluation texts in a form that a million conversations can be compared with.

    Args:
        items: the texts. words: theirs.
        questions / exact: bool `[t]`, which of them are questions, and which count only as a whole.
        ngrams / shingles: of the texts of `LEAST_WORDS` words or more.
        whole: uint64, ascending: hashes of the shorter texts; whole_texts: int64, whose each one is.
        n, min_share, near_threshold: as in the settings.
    """

    items: Sequence[EvalText]
    words: Words
    questions: np.ndarray
    exact: np.ndarray
    ngrams: GramIndex
    shingles: GramIndex
    whole: np.ndarray
    whole_texts: np.ndarray
    n: int
    min_share: float
    near_threshold: float

    @staticmethod
    def build(items: Sequence[EvalText], settings: ContaminationSettings) -> ContaminationIndex:
        """Index the texts; answers of fewer than n words say too little and are never matched."""
        words = hash_words([item.text for item in items])
        lengths = np.diff(words.bounds)
        long, short = _matched_by(items, lengths, settings.n)
        ngrams, shingles = (_index_texts(words, long, n) for n in (settings.n, SHINGLE))
        whole = np.flatnonzero(short)
        hashes = np.array([grams(words.of(int(place)), int(lengths[place]))[0] for place in whole], dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        questions = np.array([item.field == "question" for item in items], dtype=bool)
        exact = np.array([item.made_here for item in items], dtype=bool)
        thresholds = (settings.n, settings.min_share, settings.near_threshold)
        return ContaminationIndex(
            tuple(items), words, questions, exact, ngrams, shingles, hashes[order], whole[order], *thresholds
        )

    def matches(self, conversations: Sequence[Conversation]) -> list[list[Match]]:
        """What each conversation holds: one match an evaluation item (its best), by task and row; mostly none."""
        found: list[list[Match]] = []
        batch: list[list[str]] = []
        size = 0
        for conversation in conversations:
            batch.append(segments(conversation))
            size += sum(map(len, batch[-1]))
            if size > _BATCH_CHARACTERS:
                found += self._batch(batch)
                batch, size = [], 0
        return found + (self._batch(batch) if batch else [])

    def _batch(self, batch: list[list[str]]) -> list[list[Match]]:
        texts = [text for each in batch for text in each]
        words = hash_words(texts)
        text_owner = np.repeat(np.arange(len(batch)), [len(each) for each in batch])
        lengths = np.diff(words.bounds)
        owner = np.repeat(text_owner, lengths)
        bounds = np.searchsorted(owner, np.arange(len(batch) + 1))
        found: list[list[Match]] = [[] for _ in batch]
        for conversation, text, count in self._candidates(words.hashes, owner, self.ngrams, self.n):
            match = self._ngram_match(text, count, words.hashes[bounds[conversation] : bounds[conversation + 1]])
            if match:
                found[conversation].append(match)
        for conversation, text, count in self._candidates(words.hashes, owner, self.shingles, SHINGLE):
            match = self._shingle_match(text, count, words.hashes[bounds[conversation] : bounds[conversation + 1]])
            if match:
                found[conversation].append(match)
        for place, text in self._whole_messages(words, lengths):
            if loose(texts[place]) == loose(self.items[text].text):
                found[text_owner[place]].append(Match(text, "ngram", 1.0, 1))
        return [self._best(each) if each else each for each in found]

    def _candidates(
        self, hashes: np.ndarray, owner: np.ndarray, index: GramIndex, n: int
    ) -> list[tuple[int, int, int]]:
        """Conversation, text and shared n-grams of the pairs that may match; n-grams stay within a conversation."""
        at, numbers = index.find(grams(hashes, n))
        inside = owner[at] == owner[at + n - 1]
        conversations, texts, counts = index.shared(owner[at[inside]], numbers[inside])
        if index is self.shingles:
            telling = index.per_text[texts]
            enough = (counts >= np.maximum(self.near_threshold * telling, FEW_SHARED)) | (counts == telling)
            conversations, texts, counts = conversations[enough], texts[enough], counts[enough]
        return list(zip(conversations.tolist(), texts.tolist(), counts.tolist(), strict=True))

    def _ngram_match(self, text: int, count: int, row: np.ndarray) -> Match | None:
        """The match where the shared runs cover enough of the text's telling words."""
        runs = grams(self.words.of(text), self.n)
        telling = np.zeros(len(runs), dtype=bool)
        telling[self.ngrams.find(runs)[0]] = True
        shared = telling & np.isin(runs, grams(row, self.n))
        share = float(covered(shared, self.n).sum() / covered(telling, self.n).sum())
        return Match(text, "ngram", share, count) if share >= (1 if self.exact[text] else self.min_share) else None

    def _shingle_match(self, text: int, count: int, row: np.ndarray) -> Match | None:
        """The whole of a short text of which at least half is telling, or a near duplicate."""
        item, telling = self.words.of(text), int(self.shingles.per_text[text])
        whole = len(item) < self.n and 2 * telling >= len(item) - SHINGLE + 1
        if whole and grams(item, len(item))[0] in grams(row, len(item)):
            return Match(text, "ngram", 1.0, 1)
        if self.exact[text] or count < FEW_SHARED:
            return None
        if count < LEAST_SHARED and (not self.questions[text] or alike(item, row) < ALIKE):
            return None
        return Match(text, "near_duplicate", count / telling, count)

    def _whole_messages(self, words: Words, lengths: np.ndarray) -> list[tuple[int, int]]:
        """Messages of a few words whose words are those of a short text: place and text of each pair."""
        pairs = []
        for length in range(LEAST_WHOLE_WORDS, LEAST_WORDS):
            places = np.flatnonzero(lengths == length)
            if not len(places) or not len(self.whole):
                continue
            hashes = grams(words.hashes, length)[words.bounds[places]]
            first = np.searchsorted(self.whole, hashes, side="left")
            last = np.searchsorted(self.whole, hashes, side="right")
            for place in np.flatnonzero((last > first) & (last - first <= COMMON_ITEMS)).tolist():
                pairs += [(int(places[place]), int(text)) for text in self.whole_texts[first[place] : last[place]]]
        return pairs

    def _best(self, found: list[Match]) -> list[Match]:
        """One match an item: runs before near duplicates, then the larger share, then the first text."""
        best: dict[tuple[str, str, str, int], Match] = {}
        for match in sorted(found, key=lambda match: (match.kind != "ngram", -match.share, match.text)):
            best.setdefault(self.items[match.text].item, match)
        return [best[key] for key in sorted(best)]


def too_short(items: Sequence[EvalText], settings: ContaminationSettings) -> dict[str, int]:
    """How many items of each task have no text long enough to be matched, where there are any."""
    long, short = _matched_by(items, np.diff(hash_words([item.text for item in items]).bounds), settings.n)
    matched = {item.item for item, one, other in zip(items, long, short, strict=True) if one or other}
    return dict(Counter(task for task, *_ in {item.item for item in items} - matched))


def _matched_by(items: Sequence[EvalText], lengths: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """bool `[t]` twice: the texts matched by n-grams and shingles, and those matched as whole messages."""
    asked = np.array([item.field != "answer" for item in items], dtype=bool)
    long = (lengths >= n) | (asked & (lengths >= LEAST_WORDS))
    return long, asked & (lengths >= LEAST_WHOLE_WORDS) & (lengths < LEAST_WORDS)


def alike(item: np.ndarray, row: np.ndarray) -> float:
    """How much of an item's words a row has about where the shingles that both have put the item (uint64 each)."""
    _, in_item, in_row = np.intersect1d(grams(item, SHINGLE), grams(row, SHINGLE), return_indices=True)
    start = int(np.median(in_row - in_item))
    around = row[max(start - _SLACK, 0) : max(start + len(item) + _SLACK, 0)]
    return float(np.isin(item, around).mean())


def _index_texts(words: Words, used: np.ndarray, n: int) -> GramIndex:
    """The n-grams of the texts that are marked as used (bool `[t]`)."""
    owner = np.repeat(np.arange(len(used)), np.diff(words.bounds))
    found = grams(words.hashes, n)
    inside = (owner[: len(found)] == owner[n - 1 :]) & used[owner[: len(found)]]
    return GramIndex.build(found[inside], owner[: len(found)][inside], len(used), COMMON_ITEMS)


def covered(hit: np.ndarray, n: int) -> np.ndarray:
    """bool `[m + n − 1]`: the words that the n-grams marked in `hit` (bool `[m]`) take."""
    if not len(hit):
        return np.zeros(0, dtype=bool)
    change = np.zeros(len(hit) + n, dtype=np.int64)
    change[: len(hit)] += hit
    change[n:] -= hit
    return np.cumsum(change[:-1]) > 0


def segments(conversation: Conversation) -> list[str]:
    """The texts of a conversation in order: each message's own text, then its thinking, calls and results.

    GSM8K's calculations (`48/2=<<48/2=24>>24`) are blanked out, since most copies come without them.
    """
    found = []
    for message in conversation.messages:
        parts = message.parts
        if len(parts) == 1:
            found.append(parts[0].text)
        else:
            found.append(message.text)
            found += [part.text for part in parts if part.kind != "text"]
    return [_blank_calculations(text) if "<<" in text else text for text in found]


def _blank_calculations(text: str) -> str:
    return _CALCULATION.sub(lambda found: " " * len(found[0]), text)


def loose(text: str) -> str:
    """A short text without case, white space, quotes and closing marks; signs stay, since `2+3` isn't `2*3`."""
    return _LOOSE.sub("", unicodedata.normalize("NFKC", text).casefold())
