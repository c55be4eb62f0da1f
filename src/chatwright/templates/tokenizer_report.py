"""How well a tokenizer compresses, beside others on the same texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chatwright.templates.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Compression:
    """What a tokenizer makes of some texts.

    Args:
        tokenizer, text: their names. vocab_size: of the tokenizer.
        num_bytes: UTF-8 bytes of the texts. num_tokens: what they became.
        bits_per_byte: what the texts cost if each token costs −log2 of its own share among them: the best that a model
            without context could do (a text with few tokens beside the vocabulary looks cheaper than it is).
    """

    tokenizer: str
    vocab_size: int
    text: str
    num_bytes: int
    num_tokens: int
    bits_per_byte: float

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes a token stands for on average."""
        return self.num_bytes / max(self.num_tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"bytes_per_token": self.bytes_per_token}


def compression(name: str, tokenizer: TextTokenizer, texts: Sequence[str], text_name: str) -> Compression:
    """Encode the texts and count."""
    encoded = tokenizer.encode_texts([(text, True) for text in texts])
    ids = np.concatenate([np.asarray(each, dtype=np.int64) for each in encoded]) if encoded else np.zeros(0, np.int64)
    num_bytes = sum(len(text.encode()) for text in texts)
    counts = np.bincount(ids) if len(ids) else np.zeros(1, np.int64)
    seen = counts[counts > 0]
    bits = float(-(seen * np.log2(seen / max(len(ids), 1))).sum())
    return Compression(name, tokenizer.vocab_size, text_name, num_bytes, len(ids), bits / max(num_bytes, 1))


def compare_compression(
    tokenizers: Mapping[str, TextTokenizer], texts: Mapping[str, Sequence[str]]
) -> list[Compression]:
    """Every tokenizer on every text, by text."""
    return [
        compression(name, tokenizer, found, text_name)
        for text_name, found in texts.items()
        for name, tokenizer in tokenizers.items()
    ]
