"""Trained tokenizers: bytes never lost, control tokens out of reach, the same texts giving the same tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.errors import ConfigError, DataError, TemplateError
from chatwright.settings import build
from chatwright.templates.template import load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_report import compression
from chatwright.templates.tokenizer_training import (
    BYTES,
    TOKENIZER_PRESETS,
    TokenizerSettings,
    train_tokenizer,
)

TEXTS = [
    "The cat sat on the mat, and the cat saw 1234 rats. " * 3,
    "What can the cat see from the mat? It's the other cats; they'll run.\n\nThen the cats ran. " * 3,
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 2,
]


def _trained(preset: str = "nanochat", vocab_size: int = 330, **changes: object) -> TextTokenizer:
    return train_tokenizer(TEXTS, build(TokenizerSettings, {"preset": preset, "vocab_size": vocab_size, **changes}, ""))


TRAINED = {name: _trained(name) for name in TOKENIZER_PRESETS}


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
@given(text=st.text(max_size=60) | st.sampled_from(TEXTS))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_byte_for_byte_and_never_as_a_control_token(preset: str, text: str) -> None:
    tokenizer = TRAINED[preset]
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.control_names)


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_control_tokens_stand_where_the_system_has_them(preset: str) -> None:
    tokenizer, form = TRAINED[preset], TOKENIZER_PRESETS[preset]
    first = 0 if form.special_first else tokenizer.vocab_size - len(form.special)
    assert [tokenizer.control_ids[name] for name in form.special] == list(range(first, first + len(form.special)))
    assert tokenizer.vocab_size == 330
    assert (tokenizer.bos_id, tokenizer.eos_id) == (tokenizer.control_ids[form.bos], tokenizer.control_ids[form.eos])
    text = "".join(form.special)
    assert not set(tokenizer.encode_text(text)) & set(tokenizer.control_names)


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_its_template_finds_all_it_needs(preset: str) -> None:
    chosen = TokenizerSettings(preset=preset, vocab_size=330).template  # type: ignore[arg-type]
    assert load_template(TRAINED[preset], chosen).settings.format == TOKENIZER_PRESETS[preset].format


def test_the_same_texts_give_the_same_tokenizer_and_others_another() -> None:
    assert _trained().identity == _trained().identity
    other = train_tokenizer(TEXTS[:2], TokenizerSettings(vocab_size=330))
    assert other.identity != _trained().identity


def test_numbers_are_cut_after_two_digits() -> None:
    tokenizer = train_tokenizer(["1234 1234 1234 1234 5678"] * 9, TokenizerSettings(vocab_size=300))
    assert [tokenizer.decode([index]) for index in tokenizer.encode_text("1234")] == ["12", "34"]


def test_more_control_tokens_follow_the_presets() -> None:
    tokenizer = _trained(special=("<|think|>",))
    assert tokenizer.control_ids["<|think|>"] == tokenizer.vocab_size - 1 == 329


def test_only_what_counts_is_counted() -> None:
    long = "zqzqzqzq" * 50
    texts = ["the cat " * 20 + long, "the mat " * 20]
    cut = train_tokenizer(texts, TokenizerSettings(vocab_size=280, document_characters=160))
    whole = train_tokenizer(texts, TokenizerSettings(vocab_size=280))
    assert cut.token_id("zq") is None and whole.token_id("zq") is not None
    read: list[int] = []

    def watched() -> object:
        for number, text in enumerate(TEXTS * 9):
            read.append(number)
            yield text

    train_tokenizer(watched(), TokenizerSettings(vocab_size=280, max_characters=len(TEXTS[0]) + 1))  # type: ignore[arg-type]
    assert read[-1] <= 2


def test_what_gives_no_tokenizer_is_told() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], TokenizerSettings())
    with pytest.raises(TemplateError, match="no pair of bytes"):
        train_tokenizer(["a"], TokenizerSettings())
    with pytest.raises(ConfigError, match=f"at least {BYTES + 9}"):
        build(TokenizerSettings, {"vocab_size": 264}, "tokenizer")
    with pytest.raises(ConfigError, match="visible name"):
        build(TokenizerSettings, {"special": [" "]}, "tokenizer")
    for preset in TOKENIZER_PRESETS:
        for word in ("a", "the", "###"):  # no text with it could be written any more
            with pytest.raises(ConfigError, match=f"can't be a word that stands in texts .found '{word}';"):
                build(TokenizerSettings, {"preset": preset, "special": [word]}, "tokenizer")


def test_compression_counts_bytes_tokens_and_entropy() -> None:
    """Sixteen bytes, one token each, two of them equally often: one bit a token."""
    found = compression("bytes", train_tokenizer(["xyxy"] * 3, TokenizerSettings(vocab_size=266)), ["x", "z"] * 8, "t")
    assert (found.num_bytes, found.num_tokens) == (16, 16)
    assert found.bits_per_byte == pytest.approx(1.0)
    assert found.bytes_per_token == 1.0
