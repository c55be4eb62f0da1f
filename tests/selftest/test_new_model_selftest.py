"""The laws on models made from nothing; what is zero in a fresh nanochat model is stirred, so that laws can break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_settings

from chatwright.models.presets import preset_config
from chatwright.models.weights import init_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.selftest.context import stir_zeros
from chatwright.selftest.laws import check_recipe
from chatwright.selftest.outcome import Status

CPU = Runtime(torch.device("cpu"))


def from_nothing(folder: Path, **changes: Any) -> RunSettings:
    settings = tiny_settings(folder, **changes)
    new = {"preset": "nanochat", "depth": 2, "head_dim": 32, "tokenizer": str(folder / "model")}
    return RunSettings.model_validate({**settings.model_dump(), "model": None, "new_model": new})


@pytest.mark.parametrize("law", ["gradients", "isolation", "serving"])
def test_laws_hold_for_a_new_nanochat_model(law: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    report = check_recipe(from_nothing(tmp_path), CPU, laws=[law])
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]
    assert any(outcome.status is Status.HOLDS for outcome in report.outcomes)


@pytest.mark.slow
def test_every_law_holds_with_muon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    report = check_recipe(from_nothing(tmp_path, optimizer={"preset": "nanochat"}), CPU)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]


def test_only_matrices_of_zeros_are_stirred() -> None:
    fresh = init_model(preset_config("nanochat", 90, {"depth": 1}), seed=0)
    stirred = init_model(fresh.config, seed=0)
    stir_zeros(stirred)
    changed = {
        name
        for (name, one), other in zip(fresh.named_parameters(), stirred.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert changed == {"lm_head.weight", *(f"model.layers.0.{end}.weight" for end in ("self_attn.o_proj", "mlp.fc2"))}
    before = {name: parameter.clone() for name, parameter in stirred.named_parameters()}
    stir_zeros(stirred)
    assert all(torch.equal(parameter, before[name]) for name, parameter in stirred.named_parameters())
