"""Which rows of a source repeat an earlier one, word for word or nearly: found over arrays, a million rows at a time.

Per row a worker makes `content_key` and `dedup_key` (16 bytes each) and `minhash(dedup_text)` (P × 4 bytes); the arrays
may be memory-mapped files. Then `find_exact` and `find_near` tell for every row which kept row stands for it. Both are
pure functions of their arrays and keep the first row of its kind.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from chatwright.conversations.minhash import drawn, similarity
from chatwright.conversations.schema import Conversation

KEY_BYTES = 16

_ROWS_PER_CHUNK = 16_384
_PAIRS_PER_CHUNK = 16_384
_LEAST_RECALL = 0.99
_LEADERS_PER_BUCKET = 64


def content_key(conversation: Conversation) -> bytes:
    """A 128-bit hash of what a conversation says: roles and parts; Unicode form and whitespace aside.

    How it is shown and trained doesn't count: rows alike in this key must not be trained on and measured on.
    """
    fields: list[str] = ["\x03"] if conversation.document else []
    for message in conversation.messages:
        fields.append(f"\x01{message.role}")
        for part in message.parts:
            words = " ".join(unicodedata.normalize("NFC", part.text).split())
            fields.append(f"\x02{part.kind}\x02{part.tool or ''}\x02{words}")
    return _digest("\x00".join(fields))


def dedup_key(conversation: Conversation, content: bytes | None = None) -> bytes:
    """A 128-bit hash of what a conversation trains: its content, tools, template variables, train flags and weights.

    Its place and columns beside the messages don't count.

    Args:
        content: its `content_key`, where it is known.
    """
    content = content or content_key(conversation)
    flags = [
        (place, message.train, message.weight)
        for place, message in enumerate(conversation.messages)
        if message.train is not None or message.weight != 1
    ]
    if not (flags or conversation.tools or conversation.variables):
        return content
    beside = [flags, conversation.tools, dict(conversation.variables)]
    return _digest(content.hex() + json.dumps(beside, sort_keys=True, ensure_ascii=False, default=repr))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def dedup_text(conversation: Conversation) -> str:
    """What near duplicates are compared by: every part of every message but the system's, which many rows share."""
    return "\n".join(
        part.text for message in conversation.messages if message.role != "system" for part in message.parts
    )


def key_array(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as uint8 `[n, 16]`."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_BYTES)


def find_exact(keys: np.ndarray) -> np.ndarray:
    """For each row the first row with the same key: int64 `[n]`; a row that stays has its own number.

    Args:
        keys: uint8 `[n, 16]`.
    """
    halves = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), KEY_BYTES // 8)
    return _first_of_equal(halves[:, 0], halves[:, 1])


def _first_of_equal(*columns: np.ndarray) -> np.ndarray:
    """For each row the first one that is equal in all columns, int64 `[n]`."""
    order = np.lexsort(columns)  # stable: equal rows keep their order
    starts = np.ones(len(order), dtype=bool)
    if len(order):
        starts[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def bands_for(threshold: float, num_hashes: int) -> tuple[int, int]:
    """How many bands of how many rows a signature is cut into.

    Two texts meet if one band is equal, which happens with probability 1 − (1 − s^rows)^bands (Leskovec et al.,
    "Mining of Massive Datasets", 3.4). Of the cuts that find 99 % of the pairs at the threshold, the one with the
    longest bands brings the fewest others together.

    Returns:
        (bands, rows), rows ≥ 1.
    """
    for rows in range(num_hashes, 1, -1):
        bands = num_hashes // rows
        if 1 - (1 - threshold**rows) ** bands >= _LEAST_RECALL:
            return bands, rows
    return num_hashes, 1


def find_near(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each row the kept row that stands for it: int64 `[n]`; a row that stays has its own number.

    A row goes if an earlier row *that stays* has an estimated similarity of at least `threshold`; so none is lost
    through a chain of rows each a little different. Pairs are sought among rows that share a band: at least 99 % of
    those at the threshold are seen, and nearly all above it. A row is compared with the first of each bucket, not
    with all, so two rows whose common likeness goes may both stay.

    Args:
        signatures: uint32 `[n, P]`, in memory or memory-mapped; read in chunks.
        threshold: from 0 to 1.
    """
    bands, rows = bands_for(threshold, signatures.shape[1])
    keys = _band_keys(signatures, bands, rows)
    same = _first_of_equal(*_two_words(signatures))  # rows with equal signatures: only the first is compared
    distinct = np.flatnonzero(same == np.arange(len(same)))
    edges = np.zeros(0, dtype=np.uint64)
    for band in range(bands):
        found = [_code(later, earlier) for later, earlier in _similar(keys[band], distinct, signatures, threshold)]
        edges = np.union1d(edges, np.concatenate([edges[:0], *found]))
    return _settle(edges, same)


def _band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """A 32-bit hash of each band of each signature: uint32 `[bands, n]`. Equal hashes are verified later."""
    keys = np.empty((bands, len(signatures)), dtype=np.uint32)
    weights = drawn(rows, 3) | np.uint64(1)
    for first in range(0, len(signatures), _ROWS_PER_CHUNK):
        chunk = np.asarray(signatures[first : first + _ROWS_PER_CHUNK])
        banded = chunk[:, : bands * rows].reshape(len(chunk), bands, rows)
        total = np.zeros((len(chunk), bands), dtype=np.uint64)
        for place in range(rows):
            total += (banded[:, :, place].astype(np.uint64) + np.uint64(1)) * weights[place]
        total ^= total >> np.uint64(29)
        keys[:, first : first + len(chunk)] = (total * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).T
        _let_go(signatures)
    return keys


def _two_words(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """128 bits of each signature as two uint64 `[n]`, hashed over all of it."""
    left, right = np.empty((2, len(signatures)), dtype=np.uint64)
    weights = drawn(2 * signatures.shape[1], 4).reshape(2, -1) | np.uint64(1)
    for first in range(0, len(signatures), _ROWS_PER_CHUNK):
        chunk = np.asarray(signatures[first : first + _ROWS_PER_CHUNK]).astype(np.uint64)
        left[first : first + len(chunk)] = (chunk * weights[0]).sum(axis=1)
        right[first : first + len(chunk)] = ((chunk ^ (chunk << np.uint64(32))) * weights[1]).sum(axis=1)
        _let_go(signatures)
    return left, right


def _similar(
    band: np.ndarray, distinct: np.ndarray, signatures: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (later, earlier) of rows in one bucket whose similarity reaches the threshold.

    In each round every bucket's first row is compared with its others, and those that are unlike it go on to the next
    round; after 64 rounds a bucket is left, so that a common phrase can't cost n² comparisons.
    """
    packed = np.sort((band[distinct].astype(np.uint64) << np.uint64(32)) | distinct.astype(np.uint64))
    bucket, row = (packed >> np.uint64(32)).astype(np.uint32), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    for _ in range(_LEADERS_PER_BUCKET):
        starts = np.ones(len(bucket), dtype=bool)
        starts[1:] = bucket[1:] != bucket[:-1]
        others = np.flatnonzero(~starts)
        if not len(others):
            return
        leaders = row[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
        alike = _verify(signatures, row[others], leaders[others], threshold)
        yield row[others[alike]], leaders[others[alike]]
        bucket, row = bucket[others[~alike]], row[others[~alike]]


def _verify(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """bool: which pairs of rows reach the threshold."""
    alike = np.empty(len(left), dtype=bool)
    for first in range(0, len(left), _PAIRS_PER_CHUNK):
        part = slice(first, first + _PAIRS_PER_CHUNK)
        alike[part] = similarity(signatures[left[part]], signatures[right[part]]) >= threshold
        _let_go(signatures)
    return alike


def _let_go(array: np.ndarray) -> None:
    """Give the pages of a memory-mapped file back: read ones would count as this process's memory until the end."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def _code(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Pairs as one uint64 each, which sorts by the later row, then the earlier one."""
    return (later.astype(np.uint64) << np.uint64(32)) | earlier.astype(np.uint64)


def _settle(edges: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Go through the rows in order: a row goes to the first kept row that it is like.

    Args:
        edges: sorted codes of (later, earlier) pairs. same: for each row the first with an equal signature.
    """
    kept = np.arange(len(same))
    pairs = zip((edges >> np.uint64(32)).tolist(), (edges & np.uint64(0xFFFFFFFF)).tolist(), strict=True)
    for later, earlier in pairs:
        if kept[later] == later and kept[earlier] == earlier:
            kept[later] = earlier
    result: np.ndarray = kept[same]
    return result
