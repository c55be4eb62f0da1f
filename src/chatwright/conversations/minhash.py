"""MinHash signatures of texts, a batch at a time, in numpy: how alike two texts are, from a few hundred bytes each.

A text's shingles are its runs of five words; each Chinese, Japanese or Korean character counts as a word. The share of
equal entries of two signatures estimates the Jaccard similarity of their shingle sets (Broder 1997).

Letters: n texts · C characters · W words · S shingles · P hash functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from chatwright.conversations.hashing import GOLDEN, finalized

NUM_HASHES = 128
"""P: the standard error of an estimate is at most 0.5 / √128 = 0.044."""
SHINGLE_WORDS = 5

_CHARACTERS_PER_BATCH = 1 << 17  # some MB of arrays; a longer text is a batch of its own
_OTHER, _LETTER, _IDEOGRAPH = 0, 1, 2
_IDEOGRAPHS = ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x33480))


@cache
def _kinds() -> np.ndarray:
    """uint8 `[0x110000]`: what each character is, by Unicode's own classes."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=np.uint8, count=0x110000)
    for first, end in _IDEOGRAPHS:
        kinds[first:end] *= _IDEOGRAPH
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

    Capitals and whatever stands between words don't matter. A text of fewer than five words is one shingle; all texts
    without a word are alike.
    """
    result = np.empty((len(texts), num_hashes), dtype=np.uint32)
    first = 0
    while first < len(texts):
        last, characters = first, 0
        while last < len(texts) and (last == first or characters + len(texts[last]) <= _CHARACTERS_PER_BATCH):
            characters += len(texts[last])
            last += 1
        shingles, starts = _shingles(texts[first:last])
        _fill(result[first:last], shingles, starts)
        first = last
    return result


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashed shingles of all texts, uint32 `[S]`, and where each text's begin, int64 `[n]` (each has one at least).

    Example: two texts of 7 words and 1 word → 3 + 1 shingles, starts 0 and 3.
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
    return (finalized(total) >> np.uint64(32)).astype(np.uint32), starts


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hash of every word, uint64 `[W]`, and the text it stands in, int64 `[W]`.

    With B^i as the weight of character i, the sum over a word divided by B^start is the word's own polynomial hash,
    wherever it stands; running sums give it for all words at once.
    """
    folded = [text.casefold() + " " for text in texts]
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)  # [C]
    kinds = _kinds()[codes]
    letter, ideograph = kinds == _LETTER, kinds == _IDEOGRAPH
    joined = letter[1:] & letter[:-1]  # character i + 1 goes on with the word of character i
    inside = letter | ideograph
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
