"""Duplicates: keys and signatures against true Jaccard similarities and datasketch, and who stays."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from filter_examples import CALL, PROSE, calling, chat
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.conversations.duplicates import (
    bands_for,
    content_key,
    dedup_key,
    dedup_text,
    find_exact,
    find_near,
    key_array,
)
from chatwright.conversations.minhash import NUM_HASHES, minhash, minhash_many, similarity
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.sources import load_conversations
from shared_files import shared

WORDS = [f"{first}{second}" for first in "bcdfgklmnprst" for second in ("a", "en", "ilo", "orum", "ush", "yx")]


def shingles(text: str) -> set[tuple[str, ...]]:
    """The shingles of a text by the plain definition."""
    words = re.findall("[\u4e00-\u9fff]|[^\\W_\u4e00-\u9fff]+", text.casefold())
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def changed_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 40 to 200 words, each with a copy in which some words differ."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = generator.choices(WORDS, k=generator.randrange(40, 200))
        copy = list(words)
        for _ in range(generator.choice([0, 1, 2, 5, 10, 30])):
            copy[generator.randrange(len(copy))] = "other"
        pairs.append((" ".join(words), " ".join(copy)))
    return pairs


def test_signatures_estimate_the_true_similarity():
    pairs = changed_pairs(600)
    truth = np.array([jaccard(*pair) for pair in pairs])
    found = similarity(minhash_many([left for left, _ in pairs]), minhash_many([right for _, right in pairs]))
    error = found - truth
    expected = np.sqrt(truth * (1 - truth) / NUM_HASHES)
    assert abs(error.mean()) < 0.006
    assert np.all(error[truth == 1] == 0)
    sure = expected > 0
    assert 0.85 < (error[sure] / expected[sure]).std() < 1.15, "as good as independent hash functions can be"


def test_signatures_are_as_good_as_datasketchs():
    datasketch = pytest.importorskip("datasketch")

    def theirs(text: str) -> object:
        made = datasketch.MinHash(num_perm=NUM_HASHES, seed=1)
        made.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
        return made

    pairs = changed_pairs(150, seed=1)
    truth = np.array([jaccard(*pair) for pair in pairs])
    ours = similarity(minhash_many([left for left, _ in pairs]), minhash_many([right for _, right in pairs]))
    others = np.array([theirs(left).jaccard(theirs(right)) for left, right in pairs])  # type: ignore[attr-defined]
    assert np.abs(ours - others).max() < 0.25, "two independent estimates, each with an error of 0.044 at most"
    assert np.abs(ours - truth).mean() < 1.2 * np.abs(others - truth).mean() + 0.005


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=8))
def test_a_signature_does_not_depend_on_its_batch(texts):
    together = minhash_many(texts)
    assert together.shape == (len(texts), NUM_HASHES)
    for text, signature in zip(texts, together, strict=True):
        assert np.array_equal(signature, minhash(text))


def test_long_texts_and_long_words_are_like_any_other():
    long = "word " * 3 + "x" * 200_000 + " " + PROSE
    assert similarity(*minhash_many([long, long.upper()])) == 1
    other = "word " * 3 + "x" * 199_999 + "y " + PROSE
    assert similarity(*minhash_many([long, other])) < 1


def test_what_counts_in_a_text():
    same = minhash_many(["One two, three: four five! Six (seven), eight.", "one TWO three four\nfive six seven eight"])
    assert similarity(*same) == 1
    signs = minhash_many([f"What does a{sign}b give in this language?" for sign in ("+", "*", "-", "/", "%", "<", " ")])
    assert not np.any(np.triu([[similarity(a, b) == 1 for b in signs] for a in signs], 1))
    chinese = minhash_many(["河流从山上流下来，穿过田野，最后流入大海。", "河流从山上流下来，穿过田野，最后流入湖泊。"])
    assert 0.4 < similarity(*chinese) < 0.95, "each character is a word"
    swapped = minhash_many(["a b c d e f g h", "h g f e d c b a"])
    assert similarity(*swapped) < 0.2


def test_texts_of_few_words_are_alike_only_where_they_are_the_same():
    texts = ["yes", "Yes!", "no", "", " ...", "yes yes", "🙂\n👍", "???\n!!!", "Is 3 > 5?\nNo", "Is 3 < 5?\nNo", "a\nb"]
    found = minhash_many(texts)
    alike = np.array([[similarity(a, b) for b in found] for a in found])
    assert np.all(np.diag(alike) == 1) and np.all(alike[~np.eye(len(texts), dtype=bool)] < 0.1)
    assert similarity(*minhash_many(["Is 3  > 5?\nNo", " Is 3 > 5?\n\nNo\n"])) == 1
    assert similarity(*minhash_many(["one two three four five six seven", "one two three four five six seven!"])) < 0.1


def test_signatures_stay_the_same_on_every_machine():
    assert minhash("The quick brown fox jumps over the lazy dog.")[:4].tolist() == [
        455487253,
        257921513,
        2423887619,
        81971802,
    ]


def test_keys_see_what_is_said_and_no_more():
    row = chat("What is it?", "A river.")
    same = [
        chat("What is  it?", "A river.\n"),
        replace(row, source="elsewhere", row=9, extra={"a": 1}),
    ]
    trained_otherwise = [
        chat("What is it?", "A river.", variables={"enable_thinking": False}),
        replace(row, tools=({"type": "function", "function": {"name": "f"}},)),
        Conversation((row.messages[0], replace(row.messages[1], train=False))),
        Conversation((row.messages[0], replace(row.messages[1], weight=0.5))),
    ]
    other = [
        chat("What is it?", "A river!"),
        chat("What is it? A river."),
        Conversation(tuple(reversed(row.messages))),
        replace(row, document=True),
        Conversation((row.messages[0], Message("assistant", (Part("thinking", "A river."),)))),
        chat("what is it?", "a river."),
    ]
    assert all(dedup_key(each) == dedup_key(row) for each in same)
    different = [row, *trained_otherwise, *other]
    assert len({dedup_key(each) for each in different}) == len(different)
    assert all(content_key(each) == content_key(row) for each in [*same, *trained_otherwise])
    assert len({content_key(each) for each in [row, *other]}) == 1 + len(other)
    assert all(dedup_key(each, content_key(each)) == dedup_key(each) for each in different)
    assert dedup_key(chat("é", "x")) == dedup_key(chat("e\u0301", "x"))
    assert dedup_key(calling(CALL)) != dedup_key(calling(replace(CALL, tool="python")))


def test_texts_leave_the_system_prompt_out():
    row = Conversation((Message.of("system", "You help."), *chat("a", "b").messages))
    assert dedup_text(row) == "a\nb"


@given(st.lists(st.integers(0, 6), max_size=30))
def test_exact_duplicates_point_to_their_first(values):
    found = find_exact(key_array([bytes([value]) * 16 for value in values]))
    assert found.dtype == np.int64
    assert found.tolist() == [values.index(value) for value in values]


def test_keys_that_differ_in_one_byte_are_not_equal():
    keys = np.zeros((17, 16), dtype=np.uint8)
    keys[np.arange(16), np.arange(16)] = 1
    assert find_exact(keys).tolist() == list(range(17))


def test_bands_find_what_they_promise():
    for threshold in (0.4, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands, rows = bands_for(threshold, 128)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert bands_for(0.8, 128)[1] > bands_for(0.5, 128)[1]


def noisy(signature: np.ndarray, equal: float, seed: int) -> np.ndarray:
    """A signature that equals another in so many of its entries."""
    generator = np.random.default_rng(seed)
    other = generator.integers(0, 2**32, len(signature), dtype=np.uint32)
    places = generator.permutation(len(signature))[: round(equal * len(signature))]
    other[places] = signature[places]
    return other


def test_near_duplicates_go_and_the_first_stays():
    base = np.random.default_rng(0).integers(0, 2**32, (3, 128), dtype=np.uint32)
    rows = [base[0], base[1], noisy(base[0], 0.9, 1), base[1], noisy(base[1], 0.7, 2), base[2], noisy(base[0], 0.85, 3)]
    assert find_near(np.stack(rows), 0.8).tolist() == [0, 1, 0, 1, 4, 5, 0]
    assert find_near(np.stack(rows), 0.65).tolist() == [0, 1, 0, 1, 1, 5, 0]
    assert find_near(np.stack(rows), 1.0).tolist() == [0, 1, 2, 1, 4, 5, 6]
    assert find_near(np.zeros((0, 128), dtype=np.uint32), 0.8).tolist() == []


def test_no_row_is_lost_through_a_chain():
    first = np.random.default_rng(0).integers(0, 2**32, 128, dtype=np.uint32)
    chain = [first]
    for step in range(12):
        chain.append(noisy(chain[-1], 0.9, step))
    signatures = np.stack(chain)
    found = find_near(signatures, 0.8)
    gone = np.flatnonzero(found != np.arange(len(found)))
    assert 0 < len(gone) < 12
    assert np.all(found[found] == found)
    assert np.all(similarity(signatures[gone], signatures[found[gone]]) >= 0.8)


def test_near_duplicates_agree_with_comparing_all_pairs(tmp_path):
    """On clusters of rows like their first, LSH finds what the quadratic rule finds; from a mapped file, too."""
    generator = np.random.default_rng(3)
    fresh = generator.integers(0, 2**32, (300, 128), dtype=np.uint32)
    rows = list(fresh)
    for number in range(300):
        rows.append(noisy(fresh[generator.integers(0, 300)], generator.choice([0.5, 0.82, 0.9, 0.97]), 1000 + number))
    np.save(tmp_path / "signatures.npy", np.stack(rows))
    signatures = np.load(tmp_path / "signatures.npy", mmap_mode="r")
    found = find_near(signatures, 0.8)
    wanted = np.arange(len(rows))
    for row in range(len(rows)):
        alike = np.flatnonzero(similarity(signatures[:row], signatures[row]) >= 0.8)
        wanted[row] = next((earlier for earlier in alike if wanted[earlier] == earlier), row)
    assert np.mean(found == wanted) > 0.985
    assert np.array_equal(find_near(np.asarray(signatures), 0.8), found)


def test_a_bucket_of_many_unlike_rows_ends():
    signatures = np.random.default_rng(0).integers(0, 2**32, (2000, 128), dtype=np.uint32)
    signatures[:, :40] = 7  # a phrase that all rows share: every band of it is one bucket
    assert np.array_equal(find_near(signatures, 0.8), np.arange(2000))


def test_real_rows_near_duplicates_are_near():
    rows = load_conversations(shared("data/sft/fastchat_dummy_conversation.json")).conversations
    texts = [dedup_text(row) for row in rows]
    near = find_near(minhash_many(texts), 0.8)
    exact = find_exact(key_array([dedup_key(row) for row in rows]))
    gone = np.flatnonzero(near != np.arange(len(rows)))
    assert len(gone) > 20
    assert all(jaccard(texts[row], texts[near[row]]) > 0.6 for row in gone)
    assert set(np.flatnonzero(exact != np.arange(len(rows)))) <= set(gone)
