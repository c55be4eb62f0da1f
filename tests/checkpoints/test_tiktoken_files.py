"""A pickled tiktoken encoding becomes a tokenizer.json that gives the same ids."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chatwright.checkpoints.tiktoken_files import (
    ALPHABET,
    TiktokenEncoding,
    dump_encoding,
    encoding_of,
    read_encoding,
    token_lengths,
    tokenizer_json,
    write_tokenizer_json,
)
from chatwright.errors import ModelError
from nanochat_files import PATTERN, encoding_state, pickled_encoding, trained_ranks
from shared_files import shared

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    "Hello, world! It's 12345 o'clock; the river isn't behind the HILL'S.",
    "  leading, trailing  \n\n\ttabs\r\n and   spaces ",
    "naïve café, 你好，世界 🙂🏽 e\u0301 \u200b\ufeff ﷽",
    "def f(x):\n    return x**2 + 1.5e-3  # 'comment'\n",
    "aaaaaaaaaaa bababababa ananananas 0000000 ''''''' ......",
    "",
]
RANKS = trained_ranks()


def tiktokens_ids(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """tiktoken's way, word by word: join the leftmost neighbours of the lowest rank until none is left."""
    found: list[int] = []
    for word in regex.findall(pattern, text):
        parts = [bytes([value]) for value in word.encode()]
        if word.encode() in ranks:
            parts = [word.encode()]
        while True:
            joined = [(ranks[a + b], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not joined:
                break
            place = min(joined)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        found += [ranks[part] for part in parts]
    return found


def loaded(state: dict[str, Any]) -> Tokenizer:
    encoding = TiktokenEncoding(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    made = Tokenizer.from_str(json.dumps(tokenizer_json(encoding)))
    made.encode_special_tokens = True  # the names of control tokens in a text are text, as `encode_ordinary` has it
    return made


MADE = loaded(encoding_state(RANKS))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("ab an'lR 01\n", max_size=40), st.sampled_from(TEXTS)))
def test_ids_are_tiktokens(text: str) -> None:
    found = MADE.encode(text, add_special_tokens=False).ids
    assert found == tiktokens_ids(text, RANKS, PATTERN)
    assert MADE.decode(found, skip_special_tokens=False) == text


def test_gpt2s_own_ids_come_out() -> None:
    """Its ranks as a tiktoken encoding, against its own tokenizer.json with its own merges."""
    path = shared("data/tokenizers/gpt2/tokenizer.json")
    theirs = Tokenizer.from_file(str(path))
    values = {character: value for value, character in enumerate(ALPHABET)}
    vocab = {
        token: index for token, index in theirs.get_vocab(with_added_tokens=False).items() if token != "<|endoftext|>"
    }
    ranks = {bytes(values[character] for character in token): index for token, index in vocab.items()}
    made = loaded(encoding_state(ranks, GPT2_PATTERN))
    lines = shared("data/sft/self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8")[:60_000].splitlines()
    for text in (*TEXTS, *lines):
        assert made.encode(text).ids == theirs.encode(text).ids


def test_tiktoken_itself_agrees(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    state = encoding_state(RANKS)
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(tiktoken.Encoding(**state)))
    assert path.read_bytes() == pickled_encoding(state)  # what the other tests use is what tiktoken writes
    encoding = tiktoken.Encoding(**state)
    for text in TEXTS:
        assert MADE.encode(text).ids == encoding.encode_ordinary(text)
    found = read_encoding(path)
    assert found.vocab_size == encoding.n_vocab
    ours = pickle.loads(dump_encoding(found, "rustbpe"))
    assert isinstance(ours, tiktoken.Encoding) and ours.n_vocab == encoding.n_vocab
    assert ours.encode_ordinary(TEXTS[0]) == encoding.encode_ordinary(TEXTS[0])


def test_an_encoding_goes_out_and_comes_back(tmp_path: Path) -> None:
    state = encoding_state(RANKS)
    encoding = TiktokenEncoding(PATTERN, RANKS, state["special_tokens"])
    assert encoding_of(tokenizer_json(encoding), encoding.special, "x") == encoding
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(dump_encoding(encoding, "rustbpe"))
    assert read_encoding(path) == encoding


def test_tokenizers_without_a_tiktoken_form_are_refused() -> None:
    content = tokenizer_json(TiktokenEncoding(PATTERN, RANKS, encoding_state(RANKS)["special_tokens"]))
    control = encoding_state(RANKS)["special_tokens"]
    wrong: dict[str, dict[str, Any]] = {
        "isn't byte-level BPE": {**content, "normalizer": {"type": "NFC"}},
        "behind one pattern": {**content, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}},
        "isn't made of bytes": {**content, "model": {**content["model"], "vocab": {"你": 0}}},
        "in another order": {
            **content,
            "model": {**content["model"], "ignore_merges": False, "merges": content["model"]["merges"][::-1]},
        },
        "no tiktoken form": {**content, "model": {**content["model"], "vocab": {"a": 0}, "merges": []}},
    }
    for match, changed_content in wrong.items():
        with pytest.raises(ModelError, match=match):
            encoding_of(changed_content, control, "x")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "tokenizer.pkl"
    state = encoding_state(RANKS)
    path.write_bytes(pickled_encoding(state, protocol))
    found = read_encoding(path)
    assert (found.pattern, found.ranks, found.special) == (PATTERN, RANKS, state["special_tokens"])
    assert found.vocab_size == len(RANKS) + 9
    assert token_lengths(found)[-10:] == [len(list(RANKS)[-1]), *[0] * 9]
    write_tokenizer_json(found, tmp_path / "tokenizer.json", "x")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|output_end|>") == len(RANKS) + 8


def test_lengths_are_those_of_each_tokens_decoded_text() -> None:
    """nanochat's rule: a part of a character is decoded to U+FFFD, whose three bytes are counted."""
    ranks = {bytes([value]): value for value in range(256)} | {"é".encode(): 256, b"\xe4\xbd": 257, b" a": 258}
    lengths = token_lengths(TiktokenEncoding(PATTERN, ranks, {"<|bos|>": 259}))
    assert (lengths[0x61], lengths[0xE4], lengths[0x80]) == (1, 3, 3)
    assert lengths[256:] == [2, 3, 2, 0]


def changed(**parts: Any) -> dict[str, Any]:
    return {**encoding_state(RANKS), **parts}


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ("cl100k_base", "names tiktoken's own encoding 'cl100k_base'"),
        (None, "without its parts"),
        (changed(pat_str=3), "of another kind"),
        (changed(mergeable_ranks={}), "single bytes have no token"),
        (changed(mergeable_ranks={**RANKS, "text": 400}), "the entry 'text'"),
        (changed(mergeable_ranks={**RANKS, b"longer": -1}), "the entry b'longer'"),
        (changed(special_tokens={"<|bos|>": 5}), "ids are not 0 to"),
    ],
)
def test_other_contents_are_refused_in_words(tmp_path: Path, state: Any, match: str) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickled_encoding(state))
    with pytest.raises(ModelError, match=match):
        read_encoding(path)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelError, match="holds no tiktoken encoding but list"):
        read_encoding(path)


def test_a_pattern_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    encoding = TiktokenEncoding("(unclosed", RANKS, {"<|bos|>": len(RANKS)})
    with pytest.raises(ModelError, match="can't read its pattern"):
        write_tokenizer_json(encoding, tmp_path / "tokenizer.json", "tokenizer.pkl")
