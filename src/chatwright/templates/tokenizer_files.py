"""The files of a tokenizer folder: what is read from them, and what is written for transformers to load.

Knows file names and JSON keys; knows nothing of encoding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatwright.errors import TemplateError

Json = dict[str, Any]

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a tokenizer folder says.

    Args:
        tokenizer: tokenizer.json.
        config: tokenizer_config.json, without its chat template.
        special: special token names (`bos_token` …) → content.
        templates: chat templates by name; the usual one is `default`.
        end_ids: the ids that generation_config.json and config.json give as end of sequence.
        fallback_ids: `bos`/`eos`/`pad` → id as config.json has them.
    """

    tokenizer: Json
    config: Json = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    fallback_ids: Mapping[str, int] = field(default_factory=dict)


def read_files(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder.

    Raises:
        TemplateError: there is no tokenizer.json, or a file can't be parsed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TemplateError(
            "there is no tokenizer.json",
            place=str(folder),
            hint="give a Hugging Face model folder with a fast tokenizer; AutoTokenizer.save_pretrained makes the file",
        )
    tokenizer = _read_json(path)
    if "model" not in tokenizer:
        raise TemplateError("has no 'model': it is no tokenizers file", place=str(path))
    tokenizer.setdefault("added_tokens", [])
    if "type" not in tokenizer["model"]:
        tokenizer["model"]["type"] = "BPE"  # files before 2020 leave it out
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_names(config, _read_json(folder / "special_tokens_map.json"))
    model_config = _read_json(folder / "config.json")
    model_config = {**model_config.get("text_config", {}), **model_config}
    generation = _read_json(folder / "generation_config.json")
    end_ids = (*_ids(generation.get("eos_token_id")), *_ids(model_config.get("eos_token_id")))
    fallback = {name: ids[0] for name in ("bos", "eos", "pad") if (ids := _ids(model_config.get(f"{name}_token_id")))}
    templates = _templates(config.pop("chat_template", None), folder)
    return TokenizerFiles(tokenizer, config, special, templates, tuple(dict.fromkeys(end_ids)), fallback)


def _read_json(path: Path) -> Json:
    """The JSON object in a file, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateError(f"can't be read: {error}", place=str(path)) from None
    if not isinstance(data, dict):
        raise TemplateError(f"must hold one JSON object, found {type(data).__name__}", place=str(path))
    return data


def _special_names(config: Json, special_map: Json) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        value = config.get(name) if config.get(name) is not None else special_map.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            names[name] = content
    return names


def _ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, bool) or value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(item for item in value if isinstance(item, int))


def _templates(value: Any, folder: Path) -> dict[str, str]:
    """The chat templates of a folder; transformers' order: the Jinja files win over tokenizer_config.json."""
    found: dict[str, str] = {}
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list):
        found.update({item["name"]: item["template"] for item in value})
    elif isinstance(value, dict):
        found.update(value)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return found


def write_files(folder: Path, files: TokenizerFiles, chat_template: str | None, stop_ids: Sequence[int]) -> None:
    """Write a tokenizer folder that `transformers.AutoTokenizer` loads with the same behaviour.

    `generation_config.json` keeps what it holds; its `eos_token_id` becomes `stop_ids`, so that Hugging Face's
    `generate` stops where ours stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "tokenizer.json", files.tokenizer)
    config = {key: value for key, value in files.config.items() if key not in ("added_tokens_decoder", "backend")}
    config |= dict(files.special)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # loads tokenizer.json as it is, in transformers 4 and 5
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", dict(files.special))
    template_path = folder / "chat_template.jinja"
    if chat_template is not None:
        template_path.write_text(chat_template, encoding="utf-8")
    else:
        template_path.unlink(missing_ok=True)
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path)
    if stop_ids:
        generation["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    _write_json(generation_path, generation)


def _write_json(path: Path, data: Json) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
