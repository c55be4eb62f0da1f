"""Texts as arrays of 64-bit word hashes, many texts at once and without a Python step a word.

A word is a run of letters, digits and marks, in lower case and without accents; scripts written without spaces
(Chinese, Japanese, Thai …) count every character as a word. All else (punctuation, signs, white space) only separates.
So texts that differ in case, punctuation, width of characters or line breaks have the same words.

Knows text and numbers; refuses to know conversations, evaluations and what a hash is used for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from chatwright.conversations.hashing import GOLDEN, scattered

SEPARATOR, WORD, ALONE, IGNORED = 0, 1, 2, 3
"""What a character does: it separates words, belongs to one, is one, or isn't there (accents written apart)."""

_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF))
_IDEOGRAPHS = ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_ACCENTS = (0x0300, 0x036F)
_COMPUTED = 0x20000  # planes 0 and 1, character by character; above stand ideographs and nothing else that is read
_CODE_POINTS = 0x110000

_FACTOR = GOLDEN
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_IN_GRAM = 0xD1342543DE82EF95
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_KEPT_POWERS = 1 << 18  # characters of the texts that are usually hashed at once


@dataclass(frozen=True, slots=True)
class Words:
    """The words of t texts, one after the other.

    Args:
        hashes: uint64 `[w]`.
        bounds: int64 `[t+1]`; the words of text i are `bounds[i]:bounds[i + 1]`.
    """

    hashes: np.ndarray
    bounds: np.ndarray

    def of(self, text: int) -> np.ndarray:
        """uint64: the word hashes of one text."""
        return self.hashes[self.bounds[text] : self.bounds[text + 1]]


def hash_words(texts: Sequence[str]) -> Words:
    """The words of many texts; a word's hash depends on its letters alone."""
    hashes, starts, _ = _scan("\n".join(texts), with_ends=False)
    first = np.cumsum([0, *(len(text) + 1 for text in texts)])  # where each text begins in the joined one
    return Words(hashes, np.searchsorted(starts, first))


def word_spans(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hashes of a text's words, with the characters `[start, end)` that each one takes: uint64, int64, int64."""
    return _scan(text, with_ends=True)


def grams(hashes: np.ndarray, n: int) -> np.ndarray:
    """The hash of every n words in a row: uint64 `[max(w − n + 1, 0)]`.

    A polynomial in the word hashes, mod 2^64. Built by doubling: 13 = 8 + 4 + 1 takes five steps and not twelve.
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    power, size, done = hashes, 1, 0
    whole = np.zeros(count, dtype=np.uint64)
    while n:
        if n & 1:  # the words at `done … done + size` of each gram
            whole = whole * _factor(size) + power[done : done + count]
            done += size
        n >>= 1
        if n:
            power = power[:-size] * _factor(size) + power[size:]
            size *= 2
    return whole


def _factor(words: int) -> np.uint64:
    """What a hash is multiplied by when so many words follow it."""
    return np.uint64(pow(_IN_GRAM, words, 1 << 64))


def _scan(text: str, with_ends: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Word hashes, their first characters and, where asked for, the characters after their last ones."""
    values, kinds = _tables()
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kind = kinds[codes]
    kept = None
    if codes.dtype != np.uint8 and (kind == IGNORED).any():
        kept = np.flatnonzero(kind != IGNORED)
        codes, kind = codes[kept], kind[kept]
    begins = kind == WORD
    begins[1:] &= kind[:-1] != WORD
    begins |= kind == ALONE
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), starts, starts
    hashes = _hash_runs(values[codes], starts)
    ends = starts
    if with_ends:
        last = kind != SEPARATOR
        last[:-1] &= begins[1:] | (kind[1:] == SEPARATOR)
        ends = np.flatnonzero(last)
    if kept is not None:
        starts, ends = kept[starts], kept[ends]
    return hashes, starts, ends + 1


def _hash_runs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sum over each run of value × factor^place, place counted from its start, mixed; separators have the value 0.

    Sums of value × factor^i up to each start, whose difference is divided by factor^start: every odd number has an
    inverse mod 2^64.
    """
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * _powers(_FACTOR, len(values)), out=sums[1:])
    runs = np.diff(sums[starts], append=sums[-1:])
    runs *= _powers(_INVERSE, len(values))[starts]
    runs ^= runs >> np.uint64(32)
    runs *= _MIX
    runs ^= runs >> np.uint64(29)
    return runs


def _powers(base: int, count: int) -> np.ndarray:
    """uint64 `[count]`: base^0, base^1 … mod 2^64."""
    return _kept_powers(base)[:count] if count <= _KEPT_POWERS else _make_powers(base, count)


@cache
def _kept_powers(base: int) -> np.ndarray:
    return _make_powers(base, _KEPT_POWERS)


def _make_powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For every code point its value (uint64, 0 outside of words) and its kind (uint8)."""
    kinds = np.zeros(_CODE_POINTS, dtype=np.uint8)
    plain = np.arange(_CODE_POINTS, dtype=np.uint64)
    for code in range(_COMPUTED):
        letter = _plain_letter(chr(code))
        if letter is not None:
            kinds[code], plain[code] = WORD, ord(letter)
    for first, last in (*_UNSPACED, *_IDEOGRAPHS):
        block = kinds[first : last + 1]
        block[block == WORD] = ALONE
    kinds[_COMPUTED:0x40000] = ALONE
    kinds[_ACCENTS[0] : _ACCENTS[1] + 1] = IGNORED
    values = scattered(plain)
    values[(kinds == SEPARATOR) | (kinds == IGNORED)] = 0
    return values, kinds


def _plain_letter(character: str) -> str | None:
    """The character in lower case, without accent, in its usual width; None where it belongs to no word."""
    base = [each for each in unicodedata.normalize("NFKD", character) if not _ACCENTS[0] <= ord(each) <= _ACCENTS[1]]
    plain = base[0] if len(base) == 1 else character
    lower = plain.lower()
    plain = lower if len(lower) == 1 else plain
    return plain if unicodedata.category(plain)[0] in "LNM" else None
