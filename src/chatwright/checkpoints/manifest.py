"""The manifest of a checkpoint: what it is, where it came from, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from chatwright.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
Verify = Literal["sizes", "full"]
T = TypeVar("T")


class FileRecord(BaseModel):
    """One file of a checkpoint: its size in bytes and its sha256, in hexadecimal."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """All that must be known about a checkpoint besides its tensors. `save_checkpoint` fills in `files`.

    Args:
        step, tokens, supervised_tokens: training done so far. stage: such as "sft" or "dpo".
        parent: `manifest_hash` of the checkpoint it grew from. metrics: by name; one of them decides the best.
        base_source: what `resolve_model` takes to find the model that training began with.
        base_hash: `model_hash` of that model's folder; an adapter is refused on any other.
        start_source, start_hash: where training began with an adapter on that model: what `resolve_model` takes to find
            it, and the `weights_hash` of both.
        model, adapter: their configurations. template_identity, tokenizer_identity: hashes.
        recipe: the whole recipe. versions: package → version. determinism: see `determinism_tuple`.
        progress: whatever else the loop must remember. created: ISO 8601, UTC.
        contamination: evaluation → rows trained on that hold items of it (see `checkpoints.contamination`).
        data: sha256 of what the run trains on: `data` its tokens with their weights, `plan` their order, `heldout`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int = Field(ge=0)
    stage: str
    tokens: int = 0
    supervised_tokens: int = 0
    format_version: int = FORMAT_VERSION
    parent: str | None = None
    base_source: str | None = None
    base_hash: str | None = None
    start_source: str | None = None
    start_hash: str | None = None
    model: dict[str, Any] = {}
    adapter: dict[str, Any] | None = None
    template_identity: str | None = None
    tokenizer_identity: str | None = None
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}
    determinism: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    progress: dict[str, Any] = {}
    contamination: dict[str, int] = {}
    data: dict[str, str] = {}
    created: str = ""
    files: dict[str, FileRecord] = {}

    def to_json(self) -> str:
        """The text of manifest.json."""
        return self.model_dump_json(indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: if it's missing, damaged, or written by a newer format.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror or error}", place=str(path)) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"damaged: {where + ': ' if where else ''}{first['msg']}", place=str(path)) from None
    if manifest.format_version > FORMAT_VERSION:
        raise CheckpointError(
            f"has format version {manifest.format_version}; this version reads up to {FORMAT_VERSION}",
            place=str(path),
            hint="pip install --upgrade chatwright",
        )
    return manifest


def manifest_hash(folder: Path) -> str:
    """What names a checkpoint as a parent: the sha256 of its manifest, and so of all its files."""
    return hash_file(folder / MANIFEST_NAME)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_threads(work: Callable[[Path], T], paths: Iterable[Path]) -> list[T]:
    """`work` on every path, several at a time: hashing and syncing leave the interpreter free."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, paths))


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Every file below `folder` except the manifest, by its path with `/`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST_NAME]
    records = in_threads(lambda path: FileRecord(bytes=path.stat().st_size, sha256=hash_file(path)), paths)
    return {path.relative_to(folder).as_posix(): record for path, record in zip(paths, records, strict=True)}


def find_damage(folder: Path, verify: Verify = "sizes") -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it's complete.

    Args:
        verify: "sizes" compares the size of every file, "full" its sha256 as well.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return error.full_text()
    for name, record in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{path}: missing"
        if size != record.bytes:
            return f"{path}: {size:,} bytes, but {record.bytes:,} were saved"
    if verify == "full":
        hashes = in_threads(hash_file, [folder / name for name in manifest.files])
        for (name, record), found in zip(manifest.files.items(), hashes, strict=True):
            if found != record.sha256:
                return f"{folder / name}: the contents have changed since they were saved (sha256 differs)"
    return None
