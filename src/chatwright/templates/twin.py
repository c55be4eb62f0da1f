"""The twin tokenizer: the same tokenizer with every control token made unreachable.

Text from users, tools and files is encoded with the twin only, so that no text can become a control token, whether
that token is special or merely added (`encode_special_tokens` still turns the text `<think>` into an added token).

Knows the JSON of the `tokenizers` library, and nothing of folders or templates.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from tokenizers import Tokenizer

Json = dict[str, Any]


class Place(Enum):
    """Where a piece of text stands, which decides whether a tokenizer puts a space before it."""

    START = "start"
    """The first text of a sequence."""
    AFTER_CONTROL = "after_control"
    """Right behind a control token."""
    INSIDE = "inside"
    """Behind other text that was encoded on its own, such as a generation prompt."""


def is_whitespace_token(content: str) -> bool:
    """Whether an added token is whitespace only (SentencePiece's `▁` counts): such tokens are text, not control."""
    return not content.replace("▁", " ").strip()


def control_tokens(data: Json) -> dict[str, int]:
    """Every added token that is no mere whitespace, special or not: content → id."""
    return {
        token["content"]: token["id"] for token in data["added_tokens"] if not is_whitespace_token(token["content"])
    }


def unknown_id(data: Json) -> int | None:
    """The id that the model gives to text it has no token for, or None."""
    model = data["model"]
    if model["type"] == "Unigram":
        found = model.get("unk_id")
        return None if found is None else int(found)
    name = model.get("unk_token")
    return model["vocab"].get(name) if isinstance(name, str) else None


def build_twins(data: Json) -> dict[Place, Tokenizer]:
    """A twin for each place; places that need no difference share one tokenizer.

    Args:
        data: the parsed tokenizer.json; not changed.
    """
    bare = without_control(data)
    variants: dict[Place, Json] = {
        Place.START: _with_prefix_rule(bare, lambda scheme: scheme),
        Place.AFTER_CONTROL: _with_prefix_rule(bare, lambda scheme: "never" if scheme == "first" else scheme),
        Place.INSIDE: _with_prefix_rule(bare, lambda scheme: "never"),
    }
    made: list[tuple[Json, Tokenizer]] = []
    twins: dict[Place, Tokenizer] = {}
    for place, variant in variants.items():
        shape = {key: variant[key] for key in ("normalizer", "pre_tokenizer")}
        twin = next((tokenizer for known, tokenizer in made if known == shape), None)
        if twin is None:
            twin = Tokenizer.from_str(json.dumps(variant))
            made.append((shape, twin))
        twins[place] = twin
    return twins


def without_control(data: Json) -> Json:
    """A copy of the tokenizer's JSON in which no text leads to a control token's id.

    The control tokens leave `added_tokens`; their entries in the model's vocabulary get a random private name, and
    merges that make or use them are dropped. Whitespace-only added tokens stay.
    """
    control = set(control_tokens(data).values())
    twin = {key: copy.deepcopy(value) for key, value in data.items() if key not in ("model", "added_tokens")}
    twin["added_tokens"] = [token for token in data["added_tokens"] if token["id"] not in control]
    twin["post_processor"] = twin["truncation"] = twin["padding"] = None
    twin["model"] = _model_without(data["model"], control)
    return twin


def _model_without(model: Mapping[str, Any], control: set[int]) -> Json:
    private = f"\U0010fffe{secrets.token_hex(16)}"  # no text can hold it but by a guess of 128 bits
    result = dict(model)
    if model["type"] == "Unigram":
        result["vocab"] = [
            [f"{private}{index}" if index in control else piece, score]
            for index, (piece, score) in enumerate(model["vocab"])
        ]
        return result
    renamed = {name: f"{private}{index}" for name, index in model["vocab"].items() if index in control}
    result["vocab"] = {renamed.get(name, name): index for name, index in model["vocab"].items()}
    if model.get("unk_token") in renamed:
        result["unk_token"] = renamed[model["unk_token"]]
    if model["type"] == "BPE":
        result["dropout"] = None
        result["merges"] = _kept_merges(model, renamed)
    return result


def _kept_merges(model: Mapping[str, Any], renamed: Mapping[str, str]) -> list[Any]:
    """The merges that neither use nor make a renamed token."""
    if not renamed:
        return list(model["merges"])
    prefix = model.get("continuing_subword_prefix") or ""
    kept = []
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list | tuple) else merge.split(" ")
        made = left + right.removeprefix(prefix)
        if left not in renamed and right not in renamed and made not in renamed:
            kept.append(merge)
    return kept


def _with_prefix_rule(data: Json, rule: Callable[[str], str]) -> Json:
    """A copy whose automatic space before text follows `rule`: scheme (always, first, never) → scheme."""
    changed = dict(data)
    changed["normalizer"] = _change_prefix(data.get("normalizer"), rule)
    changed["pre_tokenizer"] = _change_prefix(data.get("pre_tokenizer"), rule)
    return changed


def _change_prefix(node: Json | None, rule: Callable[[str], str]) -> Json | None:
    if node is None:
        return None
    kind = node.get("type")
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        inner = [_change_prefix(item, rule) for item in node[key]]
        return {**node, key: [item for item in inner if item is not None]}
    if kind == "Prepend" and rule("always") == "never":
        return None
    if kind == "Metaspace":
        old = "always" if node.get("add_prefix_space", True) else "never"
        changed = {key: value for key, value in node.items() if key != "add_prefix_space"}
        return {**changed, "prepend_scheme": rule(node.get("prepend_scheme") or old)}
    if kind == "ByteLevel" and node.get("add_prefix_space"):
        return {**node, "add_prefix_space": rule("always") != "never"}
    return node
