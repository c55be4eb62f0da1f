"""MiniMind's tokenizer by its settings: 6,400 ids on Chinese text equal to the `tokenizers` library's own; its first
notebook's byte by byte."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chatwright.errors import TemplateError
from chatwright.templates.tokenizer_training import (
    TOKENIZER_PRESETS,
    TokenizerSettings,
    byte_tokenizer,
    train_tokenizer,
)
from shared_files import shared

NOTEBOOK_TEXT = "失去的东西就要学着去接受，学着放下。"
NOTEBOOK_IDS = [
    *(1, 164, 100, 112, 164, 239, 122, 166, 251, 229, 163, 119, 253, 167, 101, 126, 164, 111, 112, 167, 102, 226, 164),
    *(258, 102, 166, 254, 225, 164, 239, 122, 165, 239, 101, 164, 240, 248, 174, 123, 237, 164, 258, 102, 166, 254),
    *(225, 165, 245, 125, 163, 119, 236, 162, 225, 227, 2),
]
"""What notebook/0_tokenizer.ipynb prints for it, between <s> and </s>."""


def chinese() -> list[str]:
    poems = json.loads(shared("data/text/zh/tang_poems_0.json").read_text(encoding="utf-8"))
    lunyu = json.loads(shared("data/text/zh/lunyu.json").read_text(encoding="utf-8"))
    return ["".join(item["paragraphs"]) for item in (*poems, *lunyu)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["minimind", "minimind-older"])
def test_6400_ids_on_chinese_text_are_the_librarys_own(preset: str) -> None:
    texts = chinese()
    ours = train_tokenizer(texts, TokenizerSettings(preset=preset, vocab_size=6400))  # type: ignore[arg-type]
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6400,
        special_tokens=list(TOKENIZER_PRESETS[preset].special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    assert ours.vocab_size == theirs.get_vocab_size() == 6400
    assert [ours.token_id(name) for name in TOKENIZER_PRESETS[preset].special] == [0, 1, 2]
    for text in [*texts[:40], "今天天气 very good，2026年！\n"]:
        assert ours.encode_text(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode_text(text)) == text


def test_the_first_notebooks_ids() -> None:
    tokenizer = byte_tokenizer("minimind-older")
    assert tokenizer.vocab_size == 259  # printed
    assert (tokenizer.control_ids, tokenizer.bos_id, tokenizer.eos_id) == ({"<unk>": 0, "<s>": 1, "</s>": 2}, 1, 2)
    assert [1, *tokenizer.encode_text(NOTEBOOK_TEXT), 2] == NOTEBOOK_IDS
    assert tokenizer.decode(NOTEBOOK_IDS) == NOTEBOOK_TEXT


@pytest.mark.parametrize("preset", sorted(TOKENIZER_PRESETS))
def test_bytes_alone_have_the_ids_that_training_begins_with(preset: str) -> None:
    alone = byte_tokenizer(preset)
    trained = train_tokenizer(
        ["aaaa bbbb"] * 4,
        TokenizerSettings(preset=preset, vocab_size=alone.vocab_size + 1),  # type: ignore[arg-type]
    )
    assert trained.vocab_size == alone.vocab_size + 1
    same = trained.control_ids if TOKENIZER_PRESETS[preset].special_first else {}
    assert all(alone.control_ids[name] == index for name, index in same.items())
    for text in ("xyz", "你好", "7 cats\n"):
        assert alone.encode_text(text) == trained.encode_text(text)
        assert len(alone.encode_text(text)) == len(text.encode())


def test_an_unknown_kind_of_tokenizer_is_told() -> None:
    with pytest.raises(TemplateError, match=r"no tokenizer is made like 'gpt'(.|\n)*minimind-older"):
        byte_tokenizer("gpt")
