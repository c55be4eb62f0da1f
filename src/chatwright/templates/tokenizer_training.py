"""Training a tokenizer: byte-level BPE on any texts, with its control tokens declared (Sennrich et al. 2016, GPT-2).

The merges are counted by the `tokenizers` library. Knows texts; knows no file format of data and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatwright.errors import DataError, TemplateError
from chatwright.settings import Settings
from chatwright.templates.native import NATIVE_FORMATS
from chatwright.templates.template import TemplateSettings
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_files import TokenizerFiles

BYTES = 256
"""The smallest vocabulary of text: every byte is a token, so that nothing is ever unknown."""

TOKENS_OF_TWO_DIGITS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""How nanochat cuts text into words before merging: GPT-4's pattern with numbers of at most two digits."""


@dataclass(frozen=True, slots=True)
class TokenizerPreset:
    """A system's way to make its tokenizer.

    Args:
        special: control tokens in their order. special_first: they have the lowest ids, else the highest.
        pattern: how text is cut before merging; None for GPT-2's own pattern.
        bos, eos, pad: which of them begin and end a text, and pad.
        format: the native template that speaks them.
    """

    special: tuple[str, ...]
    special_first: bool
    pattern: str | None
    bos: str
    eos: str
    pad: str
    format: str


TOKENIZER_PRESETS: dict[str, TokenizerPreset] = {
    # nanochat, tokenizer.py and scripts/tok_train.py (December 2025)
    "nanochat": TokenizerPreset(
        NATIVE_FORMATS["nanochat"].control,
        special_first=False,
        pattern=TOKENS_OF_TWO_DIGITS,
        bos="<|bos|>",
        eos="<|assistant_end|>",
        pad="<|assistant_end|>",
        format="nanochat",
    ),
    # MiniMind, scripts/train_tokenizer.py: before 2025, and since
    "minimind-older": TokenizerPreset(("<unk>", "<s>", "</s>"), True, None, "<s>", "</s>", "<unk>", "minimind"),
    "minimind": TokenizerPreset(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        special_first=True,
        pattern=None,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        format="chatml",
    ),
}
"""Every way by name."""


class TokenizerSettings(Settings):
    """What a trained tokenizer is like.

    Args:
        preset: whose control tokens, word pattern and template it has.
        vocab_size: tokens in all, control tokens included.
        special: more control tokens, behind the preset's; none that could be a single word of a text.
        min_frequency: pairs seen less often are never merged.
        document_characters: of each text only so many characters are counted (nanochat: 10,000); None for all.
        max_characters: counting ends after so many (nanochat: 2 billion); None for all.
    """

    preset: Literal["nanochat", "minimind", "minimind-older"] = "nanochat"
    vocab_size: PositiveInt = 32_768
    special: tuple[str, ...] = ()
    min_frequency: int = Field(0, ge=0)
    document_characters: PositiveInt | None = None
    max_characters: PositiveInt | None = None

    @model_validator(mode="after")
    def _has_room_for_bytes(self) -> TokenizerSettings:
        least = BYTES + len(self.control)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size must be at least {least} (found {self.vocab_size}): {BYTES} bytes and "
                f"{len(self.control)} control tokens"
            )
        blank = [name for name in self.special if not name.strip()]
        if blank:
            raise ValueError(f"a special token needs a visible name (found {blank[0]!r})")
        words = _words(TOKENIZER_PRESETS[self.preset].pattern)
        plain = [name for name in self.special if len(words.pre_tokenize_str(name)) < 2]
        if plain:  # a token of the text could be called so, too, and would be out of every text's reach
            found = f"found {plain[0]!r}; write <|name|>"
            raise ValueError(f"a special token can't be a word that stands in texts ({found})")
        return self

    @property
    def control(self) -> tuple[str, ...]:
        """All control tokens, in their order."""
        return tuple(dict.fromkeys((*TOKENIZER_PRESETS[self.preset].special, *self.special)))

    @property
    def template(self) -> TemplateSettings:
        """The template that belongs to it."""
        return TemplateSettings(format=TOKENIZER_PRESETS[self.preset].format)


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> TextTokenizer:
    """Count the merges of texts, and make the tokenizer.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: read once; long ones count by their first `document_characters`.

    Raises:
        DataError: there is no text.
        TemplateError: the texts are too few for more than bytes.
    """
    preset = TOKENIZER_PRESETS[settings.preset]
    first = list(settings.control) if preset.special_first else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _words(preset.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - (0 if first else len(settings.control)),
        min_frequency=settings.min_frequency,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in first],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_counted(_required(texts), settings), trainer)
    if tokenizer.get_vocab_size() <= BYTES + len(first):
        raise TemplateError("the texts give no pair of bytes to merge", place="tokenizer", hint="give more text")
    if not first:
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in settings.control])
    special = {"bos_token": preset.bos, "eos_token": preset.eos, "pad_token": preset.pad}
    return TextTokenizer(TokenizerFiles(json.loads(tokenizer.to_str()), special=special))


def _words(pattern: str | None) -> pre_tokenizers.PreTokenizer:
    """What cuts text before merging."""
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole: pre_tokenizers.PreTokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return whole


def _required(texts: Iterable[str]) -> Iterator[str]:
    found = iter(texts)
    first = next(found, None)
    if first is None:
        raise DataError("there is no text to train a tokenizer on", source="tokenizer", hint="name files with text")
    return chain([first], found)


def _counted(texts: Iterator[str], settings: TokenizerSettings) -> Iterator[str]:
    """The texts as far as they count."""
    left = settings.max_characters
    for text in texts:
        part = text if settings.document_characters is None else text[: settings.document_characters]
        if left is not None:
            part, left = part[:left], left - len(part)
        yield part
        if left is not None and left <= 0:
            return


def byte_tokenizer(preset: str) -> TextTokenizer:
    """A tokenizer that merges nothing: control tokens and the 256 bytes, which needs no text to be trained on.

    Its ids are those that training with so small a vocabulary gives (MiniMind's first notebook trains this one).

    Args:
        preset: a name of `TOKENIZER_PRESETS`.

    Raises:
        TemplateError: there is no such preset.
    """
    if preset not in TOKENIZER_PRESETS:
        known = ", ".join(TOKENIZER_PRESETS)
        raise TemplateError(f"no tokenizer is made like {preset!r}", place="tokenizer", hint=f"known: {known}")
    way = TOKENIZER_PRESETS[preset]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*way.special, *letters] if way.special_first else [*letters, *way.special]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = _words(way.pattern), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in way.special])
    special = {"bos_token": way.bos, "eos_token": way.eos, "pad_token": way.pad}
    return TextTokenizer(TokenizerFiles(json.loads(tokenizer.to_str()), special=special))
