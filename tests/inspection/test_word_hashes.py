"""Word hashes: the same words give the same hashes, other words other ones, and every word knows its characters."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.inspection.word_hashes import grams, hash_words, word_spans

SAME = [
    ("Hello, World!", "hello world"),
    ("it's  a\n\ttest", "IT S A TEST"),
    ("Héllo Wörld", "hello world"),
    ("héllo", unicodedata.normalize("NFD", "héllo")),
    ("ＡＢＣ１２", "abc12"),
    ("你好，世界", "你 好 世 界"),
    ("a_b-c", "a b c"),
    ("“quoted” — text…", "quoted text"),
]
OTHER = [
    ("ab", "ba"),
    ("a b", "ab"),
    ("aab", "aba"),
    ("1 2", "12"),
    ("你好", "好你"),
    ("word", "words"),
    ("a", "b"),
    ("が", "か"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_case_punctuation_accents_and_width_do_not_matter(one: str, other: str) -> None:
    words = hash_words([one, other])
    assert words.of(0).tolist() == words.of(1).tolist()
    assert len(words.of(0))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_words_have_other_hashes(one: str, other: str) -> None:
    words = hash_words([one, other])
    assert words.of(0).tolist() != words.of(1).tolist()


def test_texts_without_words_have_none() -> None:
    words = hash_words(["", "?!", "a", ""])
    assert words.bounds.tolist() == [0, 0, 0, 1, 1]
    assert hash_words([]).bounds.tolist() == [0]
    assert len(word_spans("…")[0]) == 0


@given(st.lists(st.text(alphabet="abcAB12 .,-_\n'", max_size=60), max_size=6))
def test_hashes_tell_words_apart_as_a_regular_expression_does(texts: list[str]) -> None:
    plain = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    words = hash_words(texts)
    names: dict[int, str] = {}
    for place, expected in enumerate(plain):
        found = words.of(place).tolist()
        assert len(found) == len(expected)
        for number, word in zip(found, expected, strict=True):
            assert names.setdefault(number, word) == word
    assert len(set(names.values())) == len(names)


@given(st.text(max_size=80))
def test_spans_are_the_words_that_are_hashed(text: str) -> None:
    hashes, starts, ends = word_spans(text)
    assert hashes.tolist() == hash_words([text]).of(0).tolist()
    assert (starts < ends).all() and (starts[1:] >= ends[:-1]).all()
    for number, start, end in zip(hashes.tolist(), starts, ends, strict=True):
        assert hash_words([text[start:end]]).of(0).tolist() == [number]


def test_a_lone_surrogate_is_no_error() -> None:
    assert len(hash_words(["a \ud800 b"]).of(0)) == 2


def test_a_text_longer_than_the_kept_powers_has_the_same_hashes() -> None:
    text = "one two three " * 30_000
    assert len(np.unique(hash_words([text]).hashes)) == 3


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 20))
def test_grams_are_equal_where_the_words_are(numbers: list[int], n: int) -> None:
    hashes = hash_words([" ".join(f"w{number}" for number in numbers)]).hashes
    found = grams(hashes, n).tolist()
    expected = [tuple(numbers[start : start + n]) for start in range(len(numbers) - n + 1)]
    assert len(found) == len(expected)
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))
