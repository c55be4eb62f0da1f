"""Configurations of other systems: whose they are, what of them was read, and where their data is.

Nothing is passed over in silence: every key that isn't mapped is listed with its value and the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatwright.conversations.files import file_kind
from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.stores import is_url

LLAMA_FACTORY, TRL, AXOLOTL = "LLaMA-Factory", "TRL", "Axolotl"
FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow", "pandas")
"""What `load_dataset` takes in place of a name when files are given beside it."""
DATASET_KEYS: tuple[str, ...] = ("path", "name", "split", "data_files", "data_dir", "revision")

_MARKS = {
    AXOLOTL: ("base_model",),
    LLAMA_FACTORY: ("dataset", "dataset_dir", "cutoff_len", "finetuning_type", "lora_rank", "stage", "template"),
    TRL: ("dataset_name", "datasets", "dataset_config", "max_length", "use_peft", "lora_r", "packing", "learning_rate"),
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def foreign_system(plain: Mapping[str, Any]) -> str | None:
    """The system whose configuration this is, by its keys; None for a recipe of ours or an unknown one."""
    if "model" in plain or not ({"base_model", "model_name_or_path"} & plain.keys()):
        return None
    return next((system for system, marks in _MARKS.items() if set(marks) & plain.keys()), None)


class Findings:
    """A configuration read key by key, with an account: what became what, and what has no place here.

    Args:
        values: their settings; a key without a value is as good as absent.
        folder: where the file stands: their relative paths begin there.
        place: what stands before the keys in the account, such as `datasets[0].`.
        account: the configuration that this one stands inside.
    """

    def __init__(
        self, values: Mapping[str, Any], folder: Path, place: str = "", account: Findings | None = None
    ) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self.empty = values.keys() - self.values.keys()
        self.folder, self.place = folder, place
        self.made: dict[str, Any] = {}
        self.mapped: list[tuple[str, str]] = account.mapped if account else []
        self.unmapped: list[tuple[str, Any, str]] = account.unmapped if account else []
        self._left = dict.fromkeys(self.values)

    def inside(self, values: Mapping[str, Any], place: str) -> Findings:
        """A part of this configuration, on the same account."""
        return Findings(values, self.folder, self.place + place, self)

    def take(self, key: str, default: Any = None) -> Any:
        """A value; the caller says with `put` or `lose` what became of it."""
        self._left.pop(key, None)
        return self.values.get(key, default)

    def move(self, key: str, ours: str, default: Any = None) -> None:
        """Take a value over as it is; `default` is what they do where the key is absent."""
        value = self.take(key, default)
        if value is not None:
            self.put(ours, value, key)

    def put(self, ours: str, value: Any, *keys: str, note: str = "") -> None:
        """Set `ours` (dotted) and say which of their keys it comes from."""
        target = self.made
        *path, last = ours.split(".")
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
        self.note(f"{ours}: {value}{f' ({note})' if note else ''}", *keys)

    def note(self, ours: str, *keys: str) -> None:
        """Say that these keys have their place in `ours`."""
        named = " × ".join(f"{self.place}{key}" + ("" if key in self.values else " (default)") for key in keys)
        self.mapped.append((named, ours))
        for key in keys:
            self._left.pop(key, None)

    def lose(self, key: str, why: str, value: Any = None) -> None:
        """Say that a key has no place here, and why."""
        self._left.pop(key, None)
        self.unmapped.append((f"{self.place}{key}", self.values.get(key) if value is None else value, why))

    def is_open(self, key: str) -> bool:
        """Whether a key is given and nothing has asked for it so far."""
        return key in self._left

    def close(self, reasons: Mapping[str, str], otherwise: str = "not known to the importer") -> None:
        """List every key that nothing has asked for."""
        for key in list(self._left):
            self.lose(key, reasons.get(key, otherwise))

    def local(self, text: str, must: bool = False) -> str | None:
        """A path that exists beside the file or in the working folder; with `must`, where it should be."""
        beside = self.folder / Path(text).expanduser()
        if beside.exists() or (must and not Path(text).exists()):
            return os.path.normpath(beside)
        return text if Path(text).exists() else None


def split_names(value: Any) -> list[str]:
    """`a, b` or a list as a list of names."""
    items = value.split(",") if isinstance(value, str) else value or []
    return [str(item).strip() for item in items if str(item).strip()]


def hub_source(name: str, split: str, config: str | None = None, revision: str | None = None) -> str:
    """Our name of a hub data set."""
    pinned = f"@{revision}" if revision and revision != "main" else ""
    return f"{HUB_PREFIX}{name}{pinned}{f':{config}' if config else ''}/{split}"


def hub_files(name: str, path: str, revision: str | None = None) -> str:
    """The address of files of a hub data set."""
    return f"hf://datasets/{name}{f'@{revision}' if revision else ''}/{path}"


def dataset_sources(entry: Findings, default_split: str = "train") -> list[str]:
    """The paths of an entry written for `load_dataset`: `path`, `name`, `split`, `data_files`, `data_dir`, `revision`.

    Empty if it names nothing that can be read; the account says why.
    """
    path, config = str(entry.take("path", "")), entry.take("name")
    split, revision = str(entry.take("split", default_split)), entry.take("revision")
    files, data_dir = entry.take("data_files"), entry.take("data_dir")
    if isinstance(files, Mapping):
        files = files.get(split, [])
    inner = split_names(files) or ([str(data_dir)] if data_dir else [])
    here = None if path in FILE_BUILDERS else entry.local(path, must=_looks_local(path))
    keys = [key for key in DATASET_KEYS if key in entry.values]
    if is_url(path) or here is not None or path in FILE_BUILDERS:
        begin = "" if path in FILE_BUILDERS else (here or path)
        found = [_joined(entry, begin, file) for file in inner] or [begin]
        for key in {"name", "split", "revision"} & entry.values.keys():
            if key != "split" or split != "train" or (not inner and Path(begin).is_dir()):
                entry.lose(key, "files are read whole: name the ones to read in path")
                keys.remove(key)
    elif _HUB_NAME.fullmatch(path):
        found = [hub_files(path, file, revision) for file in inner]
        found = found or [hub_source(path, split, config, revision)]
        if inner and "split" in keys:
            entry.lose("split", "the files that data_files names are read whole")
            keys.remove("split")
    else:
        entry.lose("path", "not a file that is here, nor a hub data set as owner/name")
        return []
    found = [item for item in found if item]
    if found:
        entry.note(f"path: {', '.join(found)}", *keys)
    else:
        entry.lose("path", "names no files")
    return found


def _joined(entry: Findings, begin: str, file: str) -> str:
    if is_url(file):
        return file
    if begin:
        return f"{begin.rstrip('/')}/{file}"
    return entry.local(file, must=True) or file


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or (not is_url(path) and file_kind(path) is not None)
