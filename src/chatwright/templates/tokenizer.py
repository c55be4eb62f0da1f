"""A tokenizer that keeps text and control tokens apart: text is encoded with the twin, control tokens are ids by name.

Built on the `tokenizers` library; loads neither torch nor transformers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from chatwright.errors import TemplateError
from chatwright.templates.tokenizer_files import TokenizerFiles, read_files, write_files
from chatwright.templates.twin import Place, build_twins, control_tokens, unknown_id

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte that SentencePiece's fallback has a token for."""
SMALL_BATCH = 32
"""Fewer texts than this are encoded one by one."""


class TextTokenizer:
    """Text ↔ ids, with control tokens out of the reach of any text.

    Attributes:
        control_ids: every added token, special or not, but for whitespace-only ones: content → id.
        control_names: id → content.
        bos_id, eos_id, pad_id: as the folder's files say, or None.
        unknown_id: what the model gives to text it has no token for, or None.
        stop_ids: the end-of-sequence token and those of generation_config.json.
        chat_template: the folder's chat template, or None. chat_templates: all of them by name.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._files = files
        self.control_ids: dict[str, int] = control_tokens(files.tokenizer)
        self.control_names: dict[int, str] = {index: name for name, index in self.control_ids.items()}
        self.special_names: dict[str, str] = dict(files.special)
        self.bos_id, self.eos_id, self.pad_id = (self._special_id(name) for name in ("bos", "eos", "pad"))
        ends = ((self.eos_id,) if self.eos_id is not None else ()) + files.end_ids
        self.stop_ids: tuple[int, ...] = tuple(sorted({index for index in ends if index is not None}))
        self.chat_templates: dict[str, str] = dict(files.templates)
        self.chat_template: str | None = files.templates.get("default")
        self.unknown_id = unknown_id(files.tokenizer)
        # Text without a token becomes the model's own "unknown"; only where that id delimits something is it forbidden.
        delimiters = {*self.stop_ids, self.bos_id}
        self._forbidden = frozenset(self.control_names) - ({self.unknown_id} - delimiters)

    @staticmethod
    def load(folder: str | Path) -> TextTokenizer:
        """Load a Hugging Face folder that has a tokenizer.json.

        Raises:
            TemplateError: the file is missing or damaged.
        """
        return TextTokenizer(read_files(Path(folder)))

    def _special_id(self, name: str) -> int | None:
        content = self._files.special.get(f"{name}_token")
        if content is not None:
            return self.token_id(content)
        return self._files.fallback_ids.get(name)

    def token_id(self, content: str) -> int | None:
        """The id of a token by its exact name: a control token's, else one of the vocabulary's."""
        if content in self.control_ids:
            return self.control_ids[content]
        return self._vocab.get(content)

    @cached_property
    def _vocab(self) -> dict[str, int]:
        model = self._files.tokenizer["model"]
        if model["type"] == "Unigram":
            return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
        return dict(model["vocab"])

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids: the largest one (added tokens included) + 1."""
        added = (token["id"] for token in self._files.tokenizer["added_tokens"])
        return max(max(self._vocab.values(), default=-1), *added, -1) + 1

    @cached_property
    def identity(self) -> str:
        """sha256 of everything that decides which ids a text gets."""
        text = json.dumps([self._files.tokenizer, self.special_names, self.stop_ids], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # Encoding

    @cached_property
    def _twins(self) -> dict[Place, Tokenizer]:
        return build_twins(self._files.tokenizer)

    def encode_text(self, text: str, at_start: bool = False) -> list[int]:
        """The ids of plain text; never a control id.

        Args:
            at_start: the text begins the sequence; else it stands right behind a control token.
        """
        return self.encode_texts([(text, at_start)])[0]

    def encode_texts(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """The ids of many (text, at_start) pairs in one batch."""
        return self.encode_placed([(text, Place.START if start else Place.AFTER_CONTROL) for text, start in texts])

    def encode_placed(self, texts: Sequence[tuple[str, Place]]) -> list[list[int]]:
        """The ids of many (text, place) pairs; equal pairs are encoded once and share a list, not to be changed.

        Raises:
            TemplateError: a text would become a control token (only a tokenizer of an unknown build can do this).
        """
        known: dict[tuple[int, str], list[int]] = {}
        keys = [(id(self._twins[place]), text) for text, place in texts]
        for twin in {id(twin): twin for twin in self._twins.values()}.values():
            wanted = [text for owner, text in dict.fromkeys(keys) if owner == id(twin)]
            encoded = _encode(twin, wanted)
            self._check(encoded, wanted)
            known.update(zip(((id(twin), text) for text in wanted), encoded, strict=True))
        return [known[key] for key in keys]

    def _check(self, encoded: Sequence[list[int]], texts: Sequence[str]) -> None:
        """Refuse control ids among the ids of texts; all are looked up at once, since this guards every token."""
        ids = np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=sum(map(len, encoded)))
        if not self._is_control[ids].any():
            return
        found, text = next((ids, text) for ids, text in zip(encoded, texts, strict=True) if self._is_control[ids].any())
        names = sorted({self.control_names[index] for index in self._forbidden.intersection(found)})
        raise TemplateError(
            f"the text {text[:80]!r} would become the control token {', '.join(names)}",
            hint="this tokenizer can't keep text and control tokens apart; please report its type",
        )

    @cached_property
    def _is_control(self) -> np.ndarray:
        """bool `[V]`: ids that no text may become."""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[sorted(self._forbidden)] = True
        return table

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer with its control tokens on: for comparison with others, never for training."""
        data = {**self._files.tokenizer, "post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(data))

    def encode_whole(self, text: str) -> list[int]:
        """The ids that other programs give to a whole rendered string, control tokens on; to compare and count only."""
        return list(self._whole.encode(text, add_special_tokens=False).ids)

    # Decoding

    @cached_property
    def _anchors(self) -> dict[Place, tuple[list[int], int]]:
        """For each place the ids to decode in front of a text, and the characters they make.

        Some decoders take the first space off; that is right only where encoding has put one on.
        """
        inside = self._twins[Place.INSIDE]
        anchor = inside.encode("a", add_special_tokens=False).ids
        faithful = inside.decode(inside.encode(" a", add_special_tokens=False).ids, skip_special_tokens=False) == " a"
        front = ([], 0) if faithful else (anchor, len(inside.decode(anchor, skip_special_tokens=False)))
        return {place: front if twin is inside else ([], 0) for place, twin in self._twins.items()}

    def decode(self, ids: Iterable[int], with_control: bool = False, place: Place = Place.AFTER_CONTROL) -> str:
        """The text of ids.

        Args:
            with_control: write control tokens by name; they are left out otherwise.
            place: where the first id stood.
        """
        result: list[str] = []
        run: list[int] = []
        for index in ids:
            if index in self.control_names:
                result.append(self._decode_run(run, place))
                run, place = [], Place.AFTER_CONTROL
                if with_control:
                    result.append(self.control_names[index])
            else:
                run.append(index)
        result.append(self._decode_run(run, place))
        return "".join(result)

    def _decode_run(self, ids: list[int], place: Place) -> str:
        if not ids:
            return ""
        anchor, width = self._anchors[place]
        return self._twins[place].decode(anchor + ids, skip_special_tokens=False)[width:]

    def normal_text(self, text: str, place: Place = Place.AFTER_CONTROL) -> str:
        """The text as it comes back from encoding and decoding; differs where the tokenizer normalizes."""
        return self.decode(self.encode_placed([(text, place)])[0], place=place)

    def token_text(self, index: int) -> str:
        """One token as text for people: control tokens by name, broken characters by the vocabulary's own name."""
        if index in self.control_names:
            return self.control_names[index]
        text = self._decode_run([index], Place.INSIDE)
        return text if "�" not in text else self._twins[Place.INSIDE].id_to_token(index) or text

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 `[V]`: bytes of text that each token stands for, 0 for control tokens; what bits per byte divide by.

        Byte-level tokenizers name a token by one character a byte. Where a tokenizer puts a space before the first word
        of a text (older SentencePiece), that byte is counted although the text doesn't have it.
        """
        names = {index: name for name, index in self._vocab.items()}
        level = "ByteLevel" in json.dumps(self._files.tokenizer.get("decoder"))
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for index, name in names.items():
            if level or _BYTE.fullmatch(name):
                sizes[index] = len(name) if level else 1
            else:
                sizes[index] = len(self._decode_run([index], Place.INSIDE).encode())
        for token in self._files.tokenizer["added_tokens"]:
            text = token["content"].replace("▁", " ")  # one that isn't control is whitespace
            sizes[token["id"]] = 0 if token["id"] in self.control_names else len(text.encode())
        return sizes

    # Changing and saving

    def add_control_tokens(self, names: Sequence[str]) -> TextTokenizer:
        """A new tokenizer with these control tokens after the largest id; those it has already stay as they are.

        Raises:
            TemplateError: a name is empty or only whitespace.
        """
        blank = [name for name in names if not name.strip()]
        if blank:
            raise TemplateError(f"a control token needs a visible name, found {blank[0]!r}")
        tokenizer = copy.copy(self._files.tokenizer)
        missing = [name for name in dict.fromkeys(names) if name not in self.control_ids]
        off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = []
        following = self.vocab_size
        for name in missing:
            index = self._vocab.get(name)
            if index is None:
                index, following = following, following + 1
            added.append({"id": index, "content": name, **off, "special": True})
        tokenizer["added_tokens"] = sorted([*tokenizer["added_tokens"], *added], key=lambda token: token["id"])
        return TextTokenizer(replace(self._files, tokenizer=tokenizer))

    def with_chat_templates(self, templates: Mapping[str, str]) -> TextTokenizer:
        """The same tokenizer with other chat templates (by name; the usual one is `default`)."""
        return TextTokenizer(replace(self._files, templates=dict(templates)))

    def with_special(self, **names: str) -> TextTokenizer:
        """The same tokenizer with other special tokens, such as `bos_token="<s>"`; they must be tokens it has."""
        return TextTokenizer(replace(self._files, special={**self._files.special, **names}))

    def added_token_flags(self) -> list[dict[str, Any]]:
        """The control tokens with their `lstrip`, `rstrip` and `single_word` flags, as tokenizer.json has them."""
        return [token for token in self._files.tokenizer["added_tokens"] if token["content"] in self.control_ids]

    def save(self, folder: str | Path, chat_template: str | None = None, stop_ids: Sequence[int] | None = None) -> None:
        """Write the tokenizer's files for transformers' AutoTokenizer.

        Args:
            chat_template: the Jinja text to save; None keeps the tokenizer's own.
            stop_ids: where generation stops; None keeps the tokenizer's own.
        """
        template = self.chat_template if chat_template is None else chat_template
        write_files(Path(folder), self._files, template, self.stop_ids if stop_ids is None else stop_ids)


def _encode(twin: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text: in one parallel batch, but for a few texts, which cost less than waking the threads."""
    if len(texts) < SMALL_BATCH:
        return [twin.encode(text, add_special_tokens=False).ids for text in texts]
    return [encoding.ids for encoding in twin.encode_batch_fast(texts, add_special_tokens=False)]
