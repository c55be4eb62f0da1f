"""Rebuilds the tokenizer files that a GGUF file's metadata describes.

A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) where tokenizer.json spells it out. A wrong one still encodes
everything, only not as in training; so an unknown name is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from chatwright.checkpoints.gguf_header import GgufHeader
from chatwright.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

# the published pre-tokenizers of Llama 3 and Qwen 2, as in their tokenizer.json
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES | {"use_regex": False}]}


# families of `tokenizer.ggml.pre` → changes to tokenizer.json (by the dotted keys of it)
_FAMILIES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("smollm", "starcoder", "refact", "command-r", "codeshell"),
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
            }
        },
    ),
    (("gpt-2", "gpt2", "default", "mpt", "olmo"), {"pre_tokenizer": _BYTES}),
    (("llama-bpe", "llama3", "llama-v3"), {"pre_tokenizer": _split(_LLAMA3), "model.ignore_merges": True}),
    (("qwen2", "deepseek-r1-qwen"), {"pre_tokenizer": _split(_QWEN2), "normalizer": {"type": "NFC"}}),
)
PRE_TOKENIZERS = {name: changes for names, changes in _FAMILIES for name in names}
_ONE_TOKEN_A_DIGIT = (*_FAMILIES[0][0], *_FAMILIES[3][0])
_GENERATION = {"bos_token_id": "bos", "pad_token_id": "padding"}


def write_tokenizer(header: GgufHeader, converted: str, folder: Path) -> tuple[int, ...]:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

    Args:
        converted: the tokenizer.json that transformers makes of the file: vocabulary and merges right, pre-tokenizer
            and added tokens not always.

    Returns:
        the ids that end a turn.

    Raises:
        ModelError: for a pre-tokenizer that isn't known, or a tokenizer that doesn't split as it must.
    """
    metadata = header.metadata
    tokenizer = json.loads(converted)
    if metadata["tokenizer.ggml.model"] == "gpt2":
        _set_pre_tokenizer(tokenizer, metadata.get("tokenizer.ggml.pre", "default"))
    _complete_added_tokens(tokenizer, metadata)
    text = json.dumps(tokenizer, ensure_ascii=False)
    _check(text, metadata)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    if template := metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stop_ids = tuple(dict.fromkeys(index for index in stops if index is not None))
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _GENERATION.items()}
    generation = {name: index for name, index in found.items() if index is not None}
    _write_json(folder / "generation_config.json", generation | {"eos_token_id": list(stop_ids)})
    return stop_ids


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is not None:
            config[f"{key}_token"] = metadata["tokenizer.ggml.tokens"][index]
    if metadata.get("tokenizer.ggml.add_bos_token"):
        config["add_bos_token"] = True
    return config


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _set_pre_tokenizer(tokenizer: dict[str, Any], name: str) -> None:
    if name not in PRE_TOKENIZERS:
        raise ModelError(
            f"has the pre-tokenizer {name!r}, which isn't known; known: {', '.join(PRE_TOKENIZERS)}",
            place="tokenizer.ggml.pre",
            hint="use the model's original Hugging Face folder instead of the GGUF file",
        )
    for key, value in PRE_TOKENIZERS[name].items():
        owner = tokenizer
        *path, last = key.split(".")
        for part in path:
            owner = owner[part]
        owner[last] = value


def _complete_added_tokens(tokenizer: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Every control and user-defined token of the file becomes an added token, at its own id."""
    present = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for index, (text, kind) in enumerate(zip(metadata["tokenizer.ggml.tokens"], kinds, strict=False)):
        known = isinstance(vocabulary, list) or vocabulary.get(text) == index
        if kind in (_CONTROL, _USER_DEFINED) and index not in present and known:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            tokenizer["added_tokens"].append({"id": index, "content": text, **flags, "special": kind == _CONTROL})
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])


def _check(text: str, metadata: dict[str, Any]) -> None:
    """The rebuilt tokenizer, tried: digits split as they must, and text comes back as it was."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    name, sample = metadata.get("tokenizer.ggml.pre"), "Hello, wörld!  12345\n\n\tif x: 你好"
    if name in _ONE_TOKEN_A_DIGIT:
        found = tokenizer.encode("12345", add_special_tokens=False).tokens
        if found != list("12345"):
            raise ModelError(f"the rebuilt tokenizer splits '12345' into {found}", place="tokenizer.ggml.pre")
    back = tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False).ids)
    if metadata["tokenizer.ggml.model"] == "gpt2" and back != sample:
        raise ModelError(f"the rebuilt tokenizer makes {back!r} of {sample!r}", place="tokenizer.ggml")
