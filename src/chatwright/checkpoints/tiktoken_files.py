"""Pickled tiktoken encodings, read without running them, as a tokenizer.json that gives the same ids, and back.

tiktoken knows the bytes of every token and merges, within a word, the neighbours whose joined bytes have the lowest
rank. The BPE of tokenizer.json lists pairs instead; so every pair of tokens that joins to a token is listed, by rank.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from chatwright.checkpoints.unpickling import Record, load_records
from chatwright.errors import ModelError

_ENCODING = ("tiktoken.core", "Encoding")
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that GPT-2's byte-level alphabet writes as themselves; the others follow from U+0100 on."""


def _alphabet() -> list[str]:
    hidden = [value for value in range(256) if value not in _VISIBLE]
    shifted = {value: chr(256 + place) for place, value in enumerate(hidden)}
    return [shifted.get(value, chr(value)) for value in range(256)]


ALPHABET = _alphabet()
"""The character that stands for each byte."""


@dataclass(frozen=True, slots=True)
class TiktokenEncoding:
    """What a tiktoken encoding is made of.

    Args:
        pattern: how text is cut into words. ranks: bytes of a token → its id, which is its rank too.
        special: special token → id.
    """

    pattern: str
    ranks: dict[bytes, int]
    special: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """The largest id + 1."""
        return max([*self.ranks.values(), *self.special.values()]) + 1


def read_encoding(path: Path) -> TiktokenEncoding:
    """The encoding that `pickle.dump` wrote into a file.

    Raises:
        ModelError: the file is no such pickle, asks for anything else, or names an encoding without holding it.
    """
    found = load_records(path, {_ENCODING: Record})
    if not isinstance(found, Record) or found.arguments:
        raise ModelError(f"holds no tiktoken encoding but {type(found).__name__}", place=str(path))
    state = found.state
    if isinstance(state, str):
        message = f"names tiktoken's own encoding {state!r} instead of holding one"
        raise ModelError(message, place=str(path), hint="a trained nanochat tokenizer.pkl holds its merges")
    if not isinstance(state, dict):
        raise ModelError("holds a tiktoken encoding without its parts", place=str(path))
    parts: list[Any] = [state.get(name) for name in ("pat_str", "mergeable_ranks", "special_tokens")]
    pattern, ranks, special = parts
    problem = _problem(pattern, ranks, special)
    if problem:
        raise ModelError(f"holds a tiktoken encoding that can't be used: {problem}", place=str(path))
    return TiktokenEncoding(pattern, ranks, special)


def _problem(pattern: Any, ranks: Any, special: Any) -> str | None:
    """What is wrong with the parts of an encoding."""
    if not isinstance(pattern, str) or not isinstance(ranks, dict) or not isinstance(special, dict):
        return "pat_str, mergeable_ranks or special_tokens is missing or of another kind"
    for table, kind in ((ranks, bytes), (special, str)):
        for token, index in table.items():
            if type(token) is not kind or type(index) is not int or index < 0:
                return f"the entry {token!r}: {index!r}"
    lacking = [value for value in range(256) if bytes([value]) not in ranks]
    if lacking:
        return f"{len(lacking)} single bytes have no token, such as 0x{lacking[0]:02x}"
    ids = [*ranks.values(), *special.values()]
    if sorted(ids) != list(range(len(ids))):
        return f"its {len(ids):,} ids are not 0 to {len(ids) - 1:,}, each once"
    return None


def dump_encoding(encoding: TiktokenEncoding, name: str) -> bytes:
    """What `pickle.dump(tiktoken.Encoding(...))` would write; tiktoken itself isn't needed."""
    parts = {
        "name": name,
        "pat_str": encoding.pattern,
        "mergeable_ranks": encoding.ranks,
        "special_tokens": encoding.special,
    }
    head = b"\x80\x03c" + "\n".join([*_ENCODING, ""]).encode() + b")\x81"  # protocol 3: the class, an object of it
    return head + pickle.dumps(parts, protocol=3)[2:-1] + b"b."  # its state, given to it


def encoding_of(tokenizer: Mapping[str, Any], control: Mapping[str, int], place: str) -> TiktokenEncoding:
    """The tiktoken encoding of a tokenizer.json: byte-level BPE with a pattern that cuts words.

    Args:
        tokenizer: the file's content. control: added token → id.

    Raises:
        ModelError: it is of another kind, which tiktoken has no form for; says what.
    """
    model, steps = tokenizer["model"], _steps(tokenizer.get("pre_tokenizer"))
    pattern = steps[0]["pattern"].get("Regex") if steps and "pattern" in steps[0] else None
    usual = [{"type": "Split", "behavior": "Isolated", "invert": False}, {"type": "ByteLevel", "use_regex": False}]
    alike = len(steps) == 2 and all(wanted.items() <= step.items() for wanted, step in zip(usual, steps, strict=True))
    if model.get("type") != "BPE" or tokenizer.get("normalizer") or pattern is None or not alike:
        message = "its tokenizer isn't byte-level BPE behind one pattern, which is all that tiktoken has"
        raise ModelError(message, place=place)
    values = {character: value for value, character in enumerate(ALPHABET)}
    plain = {token: index for token, index in model["vocab"].items() if token not in control}
    strange = [token for token in plain if any(character not in values for character in token)]
    if strange:
        raise ModelError(f"its token {strange[0]!r} isn't made of bytes", place=place)
    ranks = {bytes(values[character] for character in token): index for token, index in plain.items()}
    joined = [plain["".join(pair.split(" ") if isinstance(pair, str) else pair)] for pair in model["merges"]]
    if not model.get("ignore_merges") and joined != sorted(joined):
        raise ModelError("its merges are in another order than its ids, which are tiktoken's ranks", place=place)
    problem = _problem(pattern, ranks, dict(control))
    if problem:
        raise ModelError(f"its tokenizer has no tiktoken form: {problem}", place=place)
    return TiktokenEncoding(pattern, ranks, dict(control))


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]


def token_lengths(encoding: TiktokenEncoding) -> list[int]:
    """Bytes of each id's text, 0 for special ones: what nanochat keeps as token_bytes.pt.

    It measures the decoded text of each token alone, so that bytes which are no UTF-8 by themselves count as those of
    U+FFFD, three for each.
    """
    lengths = [0] * encoding.vocab_size
    for token, index in encoding.ranks.items():
        lengths[index] = len(token.decode("utf-8", errors="replace").encode())
    return lengths


def write_tokenizer_json(encoding: TiktokenEncoding, path: Path, place: str) -> None:
    """Write tokenizer.json, and read it back to see that it loads.

    Raises:
        ModelError: the `tokenizers` library can't use the pattern, or gives a token another id; names `place`.
    """
    text = json.dumps(tokenizer_json(encoding), ensure_ascii=False)
    try:
        made = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises just that where its regex engine refuses a pattern
        raise ModelError(f"the tokenizers library can't read its pattern: {error}", place=place) from None
    for token, index in encoding.special.items():
        if made.token_to_id(token) != index:
            message = f"the special token {token!r} has id {index}, but would get {made.token_to_id(token)}"
            raise ModelError(message, place=place)
    path.write_text(text, encoding="utf-8")


def tokenizer_json(encoding: TiktokenEncoding) -> dict[str, Any]:
    """The content of tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ordered = sorted(encoding.special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for token, index in ordered],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # tiktoken looks for the whole word first
            "vocab": {_written(token): index for token, index in encoding.ranks.items()},
            "merges": _merges(encoding.ranks),
        },
    }


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Every pair that joins to a token, by the token's rank; of one token's pairs the one of lower ranks first."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right, token[:cut], token[cut:]))
    return [[_written(left), _written(right)] for *_, left, right in sorted(found)]


def _written(token: bytes) -> str:
    return "".join(ALPHABET[value] for value in token)
