"""The n-gram index beside a plain dictionary."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatwright.inspection.ngram_index import GramIndex

HASHES = st.one_of(st.integers(0, 5), st.integers(2**64 - 3, 2**64 - 1), st.integers(2**40, 2**40 + 3))
TEXTS = st.lists(st.lists(HASHES, max_size=8), max_size=6)


def build(texts: list[list[int]], most: int) -> GramIndex:
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    grams = np.array([gram for text in texts for gram in text], dtype=np.uint64)
    return GramIndex.build(grams, owners, len(texts), most)


@given(TEXTS, TEXTS, st.integers(1, 4))
def test_finds_and_counts_what_a_dictionary_does(texts: list[list[int]], queries: list[list[int]], most: int) -> None:
    index = build(texts, most)
    holders = Counter(gram for text in texts for gram in set(text))
    telling = {gram for gram, count in holders.items() if count <= most}
    assert index.hashes.tolist() == sorted(telling)
    assert index.per_text.tolist() == [len(set(text) & telling) for text in texts]
    asked = [(owner, gram) for owner, query in enumerate(queries) for gram in query]
    at, numbers = index.find(np.array([gram for _, gram in asked], dtype=np.uint64))
    assert at.tolist() == [place for place, (_, gram) in enumerate(asked) if gram in telling]
    assert index.hashes[numbers].tolist() == [asked[place][1] for place in at]
    owners, found, counts = index.shared(np.array([asked[place][0] for place in at], dtype=np.int64), numbers)
    expected = [
        (owner, place, len(set(query) & set(text) & telling))
        for owner, query in enumerate(queries)
        for place, text in enumerate(texts)
        if set(query) & set(text) & telling
    ]
    assert list(zip(owners.tolist(), found.tolist(), counts.tolist(), strict=True)) == expected
