"""LLaMA-Factory's data sections: `dataset_info.json` and the data sets that a training file names.

Source of the schema: LLaMA-Factory `data/README.md` and `src/llamafactory/data/parser.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatwright.conversations.foreign_configs import Findings, hub_files, hub_source, split_names
from chatwright.conversations.message_formats import ROLE_NAMES
from chatwright.conversations.other_formats import SHAREGPT_ROLES
from chatwright.errors import ConfigError, UserError

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
OPTIONAL_COLUMNS = ("history", "system", "tools")
FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
REASONS = {
    "file_sha1": "not checked here; the run's fingerprint is of the file's bytes",
    "ms_hub_url": "ModelScope isn't read; the Hugging Face name or a file is",
    "om_hub_url": "OpenMind isn't read; the Hugging Face name or a file is",
    "script_url": "loading scripts aren't run; save the data as files",
}


def llama_factory_data(config: Findings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and evaluation entries that `dataset` and `eval_dataset` name.

    Raises:
        UserError: if there is no `dataset_info.json`, or it doesn't name a data set.
    """
    train, held_out = split_names(config.take("dataset")), split_names(config.take("eval_dataset"))
    folder = str(config.take("dataset_dir", "data"))
    infos = {} if folder == "ONLINE" else _read_infos(config, folder)
    most, streaming = config.take("max_samples"), bool(config.take("streaming"))
    made: list[list[dict[str, Any]]] = []
    for names in (train, held_out):
        made.append([])
        for name in names:
            info = {"hf_hub_url": name} if folder == "ONLINE" else infos.get(name)
            if info is None:
                raise UserError(f"there is no data set {name!r} in it", place=f"{folder}/dataset_info.json")
            entry = config.inside(info, f"{name}.")
            settings = _entry(entry, Path(config.local(folder, must=True) or folder))
            if settings is None:
                entry.close({}, "the data set is left out")
            else:
                entry.close(REASONS)
                settings |= {"name": name} | ({"stop": most} if most else {})
                made[-1].append(settings | _streamed(settings["path"], streaming))
    config.note("data", *(key for key in ("dataset", "dataset_dir") if key in config.values))
    if held_out:
        config.note("heldout.data", "eval_dataset")
    if most:
        config.note(f"data.*.stop: {most}", "max_samples")
    if streaming:
        config.note("data.*.hub_mode: streaming", "streaming")
    return made[0], made[1]


def _streamed(path: str, streaming: bool) -> dict[str, str]:
    return {"hub_mode": "streaming"} if streaming and path.startswith("hub:") else {}


def _read_infos(config: Findings, folder: str) -> dict[str, Any]:
    found = config.local(f"{folder}/dataset_info.json")
    if found is None:
        raise UserError(
            f"there is no {folder}/dataset_info.json",
            place=str(config.folder),
            hint="set dataset_dir to the folder that has it, or run in the folder where you train",
        )
    try:
        infos = json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"can't be read: {error}"], source=found) from None
    if not isinstance(infos, dict) or not all(isinstance(info, dict) for info in infos.values()):
        raise ConfigError(["must be an object of named data sets"], source=found)
    return infos


def _entry(entry: Findings, folder: Path) -> dict[str, Any] | None:
    """One entry of `dataset_info.json` as ours; None if it can't be trained on, which the account says."""
    columns = dict(entry.take("columns") or {})
    if entry.take("ranking") or {"chosen", "rejected", "kto_tag"} & columns.keys():
        key = "ranking" if "ranking" in entry.values else "columns"
        entry.lose(key, "preference data; left out, since supervised training takes conversations")
        return None
    path = _path(entry, folder)
    theirs = str(entry.take("formatting", "alpaca"))
    if path is None or theirs not in FORMATS:
        if theirs not in FORMATS:
            entry.lose("formatting", f"unknown; known: {', '.join(FORMATS)}; the data set is left out")
        return None
    format = FORMATS[theirs]
    entry.note(f"format: {format}", "formatting")
    made: dict[str, Any] = {"path": path, "format": format}
    renamed = _columns(columns, "columns" in entry.values, format)
    if renamed:
        made["columns"] = renamed
        entry.note(f"columns: {renamed}", "columns")
    for name in columns.keys() & {"images", "videos", "audios"}:
        entry.lose(f"columns.{name}", "only text is trained", columns[name])
    tags = dict(entry.take("tags") or {})
    if tags and format != "alpaca":
        made |= _tags(tags, format)
        entry.note(f"message_columns, roles: {_tags(tags, format)}", "tags")
    if entry.take("num_samples") is not None:
        made["max_rows"] = entry.values["num_samples"]
        entry.note(f"max_rows: {made['max_rows']}", "num_samples")
    return made


def _path(entry: Findings, folder: Path) -> str | None:
    hub, cloud, file = (entry.take(key) for key in ("hf_hub_url", "cloud_file_name", "file_name"))
    split, subset, inner = entry.take("split", "train"), entry.take("subset"), entry.take("folder")
    revision = entry.take("revision")
    keys = [key for key in ("split", "subset", "folder", "revision") if key in entry.values]
    if hub:
        path = hub_files(hub, inner, revision) if inner else hub_source(hub, split, subset, revision)
        entry.note(f"path: {path}", "hf_hub_url", *keys)
        return path
    for key in keys:
        entry.lose(key, "files are read whole")
    if cloud or file:
        path = str(cloud or folder / str(file))
        entry.note(f"path: {path}", "cloud_file_name" if cloud else "file_name")
        return path
    entry.lose("file_name", "no file or Hugging Face name is given; the data set is left out")
    return None


def _columns(columns: Mapping[str, str], given: bool, format: str) -> dict[str, str | None]:
    """Ours → theirs. A column that isn't named isn't read there, so it isn't here."""
    wanted: dict[str, str | None] = {name: columns.get(name) for name in OPTIONAL_COLUMNS}
    if format == "alpaca":
        wanted |= {ours: columns.get(name) if given else ours for name, ours in ALPACA_COLUMNS.items()}
    else:
        del wanted["history"]
        ours = "messages" if format == "messages" else "conversations"
        wanted[ours] = columns.get("messages") or "conversations"
    return {ours: theirs for ours, theirs in wanted.items() if ours != theirs}


def _tags(tags: Mapping[str, str], format: str) -> dict[str, Any]:
    """The fields of a message and the names of the roles, where they differ from what the format has."""
    role, content = ("role", "content") if format == "messages" else ("from", "value")
    fields = {role: tags.get("role_tag", "from"), content: tags.get("content_tag", "value")}
    fields = {ours: theirs for ours, theirs in fields.items() if ours != theirs}
    known = ROLE_NAMES if format == "messages" else SHAREGPT_ROLES
    roles: dict[str, list[str]] = {}
    for tag, ours in ROLE_TAGS.items():
        name = tags.get(tag)
        same = name == "function_call" if ours == "function_call" else known.get(str(name)) == ours
        if name and not same:
            roles[ours] = [name]
    return ({"message_columns": fields} if fields else {}) | ({"roles": roles} if roles else {})
