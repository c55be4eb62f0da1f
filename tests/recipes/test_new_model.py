"""Models made from nothing: a preset's shapes, a tokenizer, weights drawn by the run's seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.checkpoints.imports import resolve_model
from chatwright.errors import ConfigError, ModelError
from chatwright.models.config import num_parameters
from chatwright.models.families import config_from_hf
from chatwright.models.presets import preset_config
from chatwright.models.weights import load_model, read_config
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.new_model import new_model_folder
from chatwright.recipes.new_model_settings import NewModelSettings
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import start_runtime
from chatwright.settings import build
from tiny_model import make_tiny_model


def _recipe(folder: Path, tokenizer: Path, **changes: Any) -> RunSettings:
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {number} tells of the sea." for number in range(40)), encoding="utf-8")
    plain: dict[str, Any] = {
        "stage": "pretrain",
        "new_model": {"preset": "llama", "tokenizer": str(tokenizer), "hidden_size": 32, "num_layers": 2},
        "data": [{"path": str(text), "text_by": "paragraph"}],
        "max_tokens": 64,
        "packing": {"tokens_per_pack": 128, "packs_per_step": 1},
        "train": {"device": "cpu", "dtype": "float32", "max_steps": 4, "save_every": 2, "seed": 3},
        "out": str(folder / "run"),
    }
    return build(RunSettings, {**plain, **changes}, "recipe")


def _train(settings: RunSettings, *, resume: bool = False) -> None:
    runtime = start_runtime("cpu")
    data = build_data(settings)
    model = build_model(settings, data.text, runtime)
    build_trainer(settings, data, model, runtime, resume=resume, show_progress=False).train()


def test_a_new_model_trains_on_every_token_of_text_and_is_a_model_like_any(tmp_path: Path) -> None:
    settings = _recipe(tmp_path, make_tiny_model(tmp_path / "tokenizer"))
    data = build_data(settings)
    assert data.store.supervised_counts.tolist() == (data.store.lengths - 1).tolist()
    _train(settings)
    found = resolve_model(settings.out)
    config = config_from_hf(read_config(found.folder))
    assert (config.hidden_size, config.num_layers, config.num_heads) == (32, 2, 4)
    assert sum(p.numel() for p in load_model(found.folder).parameters()) == num_parameters(config)


def test_a_new_model_resumed_is_the_uninterrupted_one(tmp_path: Path) -> None:
    tokenizer = make_tiny_model(tmp_path / "tokenizer")
    whole = _recipe(tmp_path, tokenizer)
    _train(whole)
    again = whole.model_copy(update={"out": str(tmp_path / "again")})
    _train(again)
    shutil.rmtree(tmp_path / "again" / "step-000004")
    _train(again, resume=True)
    one, other = (load_model(resolve_model(out).folder) for out in (whole.out, again.out))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_follow_the_seed(tmp_path: Path) -> None:
    tokenizer = make_tiny_model(tmp_path / "tokenizer")
    runtime = start_runtime("cpu")

    def first_row(seed: int) -> torch.Tensor:
        settings = _recipe(tmp_path, tokenizer, train={"device": "cpu", "dtype": "float32", "seed": seed})
        model = build_model(settings, build_data(settings).text, runtime).model
        return next(model.parameters()).detach()[0].clone()

    assert torch.equal(first_row(1), first_row(1))
    assert not torch.equal(first_row(1), first_row(2))


def test_a_folder_is_named_by_what_it_holds(tmp_path: Path) -> None:
    tokenizer = make_tiny_model(tmp_path / "tokenizer")
    cache = tmp_path / "cache"

    def folder(**options: Any) -> Path:
        return new_model_folder(NewModelSettings(preset="llama", tokenizer=str(tokenizer), **options), cache).folder

    assert folder() == folder()
    assert folder() != folder(num_layers=7)
    before = folder()
    path = tokenizer / "tokenizer.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["added_tokens"].append({**changed["added_tokens"][-1], "id": 9999, "content": "<|new|>"})
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert folder() != before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"preset": "lama"}, "did you mean 'llama'"),
        ({"preset": "llama", "num_layer": 3}, "did you mean 'num_layers'"),
        ({"preset": "llama", "num_layers": "six"}, "must be a positive number (found 'six')"),
        ({"preset": "llama", "tied": 3}, "must be true or false"),
        ({"preset": "llama", "num_heads": 3}, "3 don't divide a hidden_size of 256"),
        ({"preset": "llama", "num_heads": 8, "num_kv_heads": 3}, "can't share"),
    ],
)
def test_what_makes_no_model_is_told(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    tokenizer = make_tiny_model(tmp_path / "tokenizer")
    with pytest.raises(ConfigError) as caught:
        new_model_folder(NewModelSettings(tokenizer=str(tokenizer), **given), tmp_path / "cache")
    assert told in str(caught.value)


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such tokenizer"):
        new_model_folder(NewModelSettings(preset="llama", tokenizer=str(tmp_path / "none")), tmp_path / "cache")


def test_a_recipe_names_one_model(tmp_path: Path) -> None:
    tokenizer = make_tiny_model(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="both are given"):
        _recipe(tmp_path, tokenizer, model="somewhere")
    with pytest.raises(ConfigError, match="neither is given"):
        _recipe(tmp_path, tokenizer, new_model=None)
    with pytest.raises(ConfigError, match="an adapter adapts a trained model"):
        _recipe(tmp_path, tokenizer, adapter={"rank": 4})


def test_a_llama_has_the_shapes_it_is_asked_for() -> None:
    config = preset_config("llama", 100, {"hidden_size": 96, "num_heads": 6, "num_kv_heads": 2, "tied": False})
    assert (config.vocab_size, config.head_dim, config.num_kv_heads, config.intermediate_size) == (100, 16, 2, 256)
    assert not config.tied
