"""MinHash signatures of texts, a batch at a time, in numpy: how alike two texts are, from a few hundred bytes each.

A text's shingles are its runs of five words; each Chinese, Japanese or Korean character counts as a word, and so does
each sign that isn't punctuation: `a+b` isn't `a*b`. The share of equal entries of two signatures estimates the Jaccard
similarity of their shingle sets (Broder 1997). Texts of a few words have too few shingles for that: they are alike only
where they are the same, punctuation and capitals included.

Letters: n texts · C characters · W words · S shingles · P hash functions.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from chatwright.conversations.hashing import GOLDEN, finalized

NUM_HASHES = 128
"""P: the standard error of an estimate is at most 0.5 / √128 = 0.044."""
SHINGLE_WORDS = 5
FEW_WORDS = 8
"""A text of fewer words is like no other but its equal."""

_CHARACTERS_PER_BATCH = 1 << 17  # some MB of arrays; a longer text is a batch of its own
_OTHER, _LETTER, _ALONE = 0, 1, 2  # between words, inside one, one of its own: ideographs and signs
_SIGNS = "^*/%-&#@\\_"  # beside Unicode's mathematical, currency and other symbols, such as + < = $ and emoji
_SYMBOLS = frozenset(("Sm", "Sc", "So"))
_END_OF_SYMBOLS = 0x20000  # above stand ideographs
_IDEOGRAPHS = ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x33480))


@cache
def _kinds() -> np.ndarray:
    """uint8 `[0x110000]`: what each character is, by Unicode's own classes."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=np.uint8, count=0x110000)
    for first, end in _IDEOGRAPHS:
        kinds[first:end] *= _ALONE
    signs = [code for code in range(_END_OF_SYMBOLS) if unicodedata.category(chr(code)) in _SYMBOLS]
    kinds[[*signs, *map(ord, _SIGNS)]] = _ALONE
    return kinds


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """B⁰ … B^(count−1) modulo 2⁶⁴ and their inverses, uint64 each."""
    tables = [np.full(count, base, dtype=np.uint64) for base in (GOLDEN, pow(GOLDEN, -1, 2**64))]
    for table in tables:
        table[:1] = 1
        np.cumprod(table, out=table)
    return tables[0], tables[1]


def drawn(count: int, salt: int) -> np.ndarray:
    """uint64 `[count]`: numbers that look random and depend on `salt` alone, whatever numpy's version."""
    return finalized((np.arange(count, dtype=np.uint64) + np.uint64(salt << 32)) * np.uint64(GOLDEN))


@cache
def _shingle_weights() -> np.ndarray:
    """Odd uint64 `[5]`: the weights of a shingle's words."""
    return drawn(SHINGLE_WORDS, 1) | np.uint64(1)


@cache
def _hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The P hash functions x → (a·x mod 2³²) xor b, a odd: uint32 `[P]` each."""
    halves = drawn(2 * count, 2).astype(np.uint32).reshape(2, count)
    return halves[0] | np.uint32(1), halves[1]


def minhash(text: str, num_hashes: int = NUM_HASHES) -> np.ndarray:
    """The signature of one text, uint32 `[P]`; see `minhash_many`, which is far quicker for many."""
    return minhash_many([text], num_hashes)[0]


def minhash_many(texts: Sequence[str], num_hashes: int = NUM_HASHES) -> np.ndarray:
    """The signatures of many texts, uint32 `[n, P]`: the same on every machine, whatever the batch.

    Capitals and whatever stands between words don't matter, but in texts of fewer than eight words all but whitespace
    does.
    """
    result = np.empty((len(texts), num_hashes), dtype=np.uint32)
    first = 0
    while first < len(texts):
        last, characters = first, 0
        while last < len(texts) and (last == first or characters + len(texts[last]) <= _CHARACTERS_PER_BATCH):
            characters += len(texts[last])
            last += 1
        shingles, starts, counts = _shingles(texts[first:last])
        _fill(result[first:last], shingles, starts)
        for place in np.flatnonzero(counts < FEW_WORDS).tolist():
            result[first + place] = _of_few_words(texts[first + place], num_hashes)
        first = last
    return result


def _of_few_words(text: str, num_hashes: int) -> np.ndarray:
    """The signature of a short text, uint32 `[P]`: hashed from all of it, so that no two texts share it."""
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines()]
    whole = "\n".join(filter(None, lines)).encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.shake_128(whole).digest(4 * num_hashes), dtype="<u4")


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hashed shingles of all texts, uint32 `[S]`, where each text's begin, and its words, int64 `[n]` each.

    Each text has one shingle at least. Example: texts of 7 words and 1 word → 3 + 1 shingles, starts 0 and 3.
    """
    words, owners = _words(texts)
    counts = np.bincount(owners, minlength=len(texts))
    # Each text is filled up with zeros to five words and followed by none: windows that cross its end are left out.
    slots = np.maximum(counts, SHINGLE_WORDS)
    slot_starts = np.cumsum(slots) - slots
    padded = np.zeros(int(slots.sum()), dtype=np.uint64)
    word_starts = np.cumsum(counts) - counts
    padded[np.arange(len(words)) + np.repeat(slot_starts - word_starts, counts)] = words
    made = slots - (SHINGLE_WORDS - 1)
    starts = np.cumsum(made) - made
    at = np.arange(int(made.sum())) + np.repeat(slot_starts - starts, made)
    weights = _shingle_weights()
    total = np.zeros(len(at), dtype=np.uint64)
    for place in range(SHINGLE_WORDS):
        total += padded[at + place] * weights[place]
    return (finalized(total) >> np.uint64(32)).astype(np.uint32), starts, counts


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hash of every word, uint64 `[W]`, and the text it stands in, int64 `[W]`.

    With B^i as the weight of character i, the sum over a word divided by B^start is the word's own polynomial hash,
    wherever it stands; running sums give it for all words at once.
    """
    folded = [text.casefold() + " " for text in texts]
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)  # [C]
    kinds = _kinds()[codes]
    letter, alone = kinds == _LETTER, kinds == _ALONE
    joined = letter[1:] & letter[:-1]  # character i + 1 goes on with the word of character i
    inside = letter | alone
    begins, ends = inside.copy(), inside
    begins[1:] &= ~joined
    ends[:-1] &= ~joined
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)  # [W]
    powers, inverse = _powers(1 << int(len(codes) - 1).bit_length())
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    words = (sums[last + 1] - sums[first]) * inverse[first]
    return finalized(words), np.searchsorted(np.cumsum([len(text) for text in folded]), first, side="right")


def _fill(signatures: np.ndarray, shingles: np.ndarray, starts: np.ndarray) -> None:
    """Write the least hash of each text under each function into `signatures` `[n, P]`.

    One function at a time: its hashes of all shingles stay in the cache.
    """
    least = np.empty((signatures.shape[1], len(starts)), dtype=np.uint32)  # [P, n]
    hashed = np.empty_like(shingles)  # [S]
    for a, b, out in zip(*_hashes(signatures.shape[1]), least, strict=True):
        np.multiply(shingles, a, out=hashed)
        np.bitwise_xor(hashed, b, out=hashed)
        np.minimum.reduceat(hashed, starts, out=out)
    signatures[:] = least.T


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of signatures, row by row: uint32 `[…, P]` twice → float64 `[…]`."""
    equal: np.ndarray = np.mean(left == right, axis=-1)
    return equal
