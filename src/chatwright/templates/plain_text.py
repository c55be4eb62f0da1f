"""Plain text as training examples: begin-of-text + text + end-of-text, every token trained but the first.

No template goes around a document. Its text is encoded with the twin, so it can't become a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chatwright.conversations.schema import Conversation
from chatwright.templates.rendered import ExampleKey, RenderedExample, Span
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place

DOCUMENT_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|bos|>",
)
"""Control tokens that end a document in pre-training, as GPT-2 (Qwen, SmolLM2, Phi), Llama 3, Llama 2 (Mistral), Gemma
and DeepSeek write them. nanochat's documents are told apart by `<|bos|>` alone, so there it is the end, too."""
TURN_STARTS = ("<|im_start|>",)
"""Tokens that some chat models (SmolLM2-Instruct, MiniMind) name as begin-of-text, though they begin a turn."""


@dataclass(frozen=True, slots=True)
class DocumentFrame:
    """What stands around a document: control ids, None for nothing."""

    begin: int | None
    end: int | None

    @staticmethod
    def of(tokenizer: TextTokenizer) -> DocumentFrame:
        """The frame that a tokenizer's own model was pre-trained with, as far as the tokenizer tells.

        The begin is its begin-of-text token, unless that begins a turn. The end is the first of `DOCUMENT_ENDS` that it
        has, since a chat model's end-of-sequence token often is the end of a turn; else its end-of-sequence token.
        """
        known = tokenizer.control_ids
        begin = None if tokenizer.control_names.get(_none(tokenizer.bos_id)) in TURN_STARTS else tokenizer.bos_id
        end = next((known[name] for name in DOCUMENT_ENDS if name in known), tokenizer.eos_id)
        return DocumentFrame(begin, end)


def _none(index: int | None) -> int:
    return -1 if index is None else index


def render_documents(tokenizer: TextTokenizer, documents: Sequence[Conversation]) -> list[RenderedExample]:
    """The whole of each document as one example, however long; all encoded in one batch."""
    frame = DocumentFrame.of(tokenizer)
    begin, end = ([] if each is None else [each] for each in (frame.begin, frame.end))
    encoded = tokenizer.encode_placed([(document.messages[0].text, Place.START) for document in documents])
    return [_example(document, begin, ids, end) for document, ids in zip(documents, encoded, strict=True)]


def _example(document: Conversation, begin: list[int], text: list[int], end: list[int]) -> RenderedExample:
    ids = np.array([*begin, *text, *end], dtype=np.int32)
    weights = np.ones(len(ids), dtype=np.float32)
    weights[:1] = 0.0
    last = len(begin) + len(text)
    spans = (Span(0, len(begin), -1, -1), Span(len(begin), last, 0, 0), Span(last, len(ids), -1, -1))
    key = ExampleKey(document.source, document.row, 0)
    return RenderedExample(ids, weights, tuple(span for span in spans if span.start < span.end), key)


def split_document(example: RenderedExample, max_tokens: int) -> list[RenderedExample]:
    """A document's example as consecutive pieces of at most `max_tokens` tokens, with parts 0, 1, …; nothing is lost.

    A last piece of one token could train nothing, so the piece before gives it one (where it can spare it).
    """
    length = len(example.ids)
    cuts = [*range(0, length, max_tokens), length]
    if cuts[-1] - cuts[-2] == 1 and len(cuts) > 2 and max_tokens > 2:
        cuts[-2] -= 1
    return [_piece(example, start, end, part) for part, (start, end) in enumerate(pairwise(cuts))]


def _piece(example: RenderedExample, start: int, end: int, part: int) -> RenderedExample:
    weights = example.weights[start:end].copy()
    weights[:1] = 0.0
    spans = tuple(
        span._replace(start=max(span.start, start) - start, end=min(span.end, end) - start)
        for span in example.spans
        if span.start < end and span.end > start
    )
    return replace(
        example, ids=example.ids[start:end], weights=weights, spans=spans, key=example.key._replace(part=part)
    )
