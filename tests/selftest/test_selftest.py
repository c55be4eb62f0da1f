"""The laws hold on tiny recipes, and the command says so."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_recipe import recipe_dict, tiny_settings

from chatwright.cli.selftest import run_selftest
from chatwright.errors import DataError, UserError
from chatwright.runtime import Runtime
from chatwright.selftest.laws import LAWS, check_recipe
from chatwright.selftest.outcome import Status, judged, worst_relative
from shared_files import shared

CPU = Runtime(torch.device("cpu"))
LORA = {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.1}}


def statuses(report: Any) -> dict[str, str]:
    return {outcome.name: str(outcome.status) for outcome in report.outcomes}


def test_every_law_holds_for_full_fine_tuning(tmp_path: Path) -> None:
    report = check_recipe(tiny_settings(tmp_path), CPU)
    found = statuses(report)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]
    assert found.pop("merging") == "not applicable"
    assert set(found.values()) == {"holds"} and len(found) == 15
    figures = {o.name: o.figure for o in report.outcomes}
    assert figures["packing"] > 0 and figures["serving"] > 0, "a comparison of a thing with itself proves nothing"
    assert figures["isolation"] == 0
    assert not (tmp_path / "run").exists(), "the recipe's own run folder stays untouched"


def test_every_law_holds_for_an_adapter(tmp_path: Path) -> None:
    report = check_recipe(tiny_settings(tmp_path, **LORA), CPU)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]
    assert set(statuses(report).values()) == {"holds"}


@pytest.mark.slow
def test_the_full_selftest_in_float64(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, train={"device": "cpu", "dtype": "float64"})
    report = check_recipe(settings, CPU, full=True)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]
    assert {o.name: o.bound for o in report.outcomes}["chunked loss"] == 1e-12


@pytest.mark.slow
def test_a_small_trained_model(tmp_path: Path) -> None:
    model, rows = shared("models/stories260k"), shared("data/sft/fastchat_dummy_conversation.json")
    changes = {"model": str(model), "data": [{"path": str(rows)}], "template": {"format": "chatml"}}
    report = check_recipe(tiny_settings(tmp_path, **changes), CPU)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]


def test_mid_training_rows_and_one_lone_row(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, stage="mid")
    lone = settings.model_copy(update={"data": (settings.data[0].model_copy(update={"stop": 1}),)})
    laws = [name for name in LAWS if name not in ("saving", "resume", "merging")]
    report = check_recipe(lone, CPU, laws=laws)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]


def test_without_transformers_the_laws_of_saving_are_waived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = check_recipe(tiny_settings(tmp_path), CPU, laws=["saving"])
    assert report.passed and set(statuses(report).values()) == {"waived"}
    assert all("not installed" in outcome.detail for outcome in report.outcomes)


def test_the_command_prints_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatwright.selftest.laws.LAWS", {name: LAWS[name] for name in ("labels", "gradients")})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_dict(tmp_path), "recipe_version": 1}), encoding="utf-8")
    run_selftest(str(recipe), ["train.seed=3"], full=False, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True and result["broken"] == [] and result["waived"] == []
    row = next(law for law in result["laws"] if law["name"] == "packing")
    assert set(row) == {"name", "measured", "figure", "norm", "bound", "status", "detail"}
    assert 0 < row["figure"] <= row["bound"] == 1e-10


def test_a_broken_law_is_printed_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_dict(tmp_path)), encoding="utf-8")
    broken = judged("isolation", "change conversation 1", float("nan"), "largest change", 1e-6, "it moved")
    only: dict[str, Any] = {"isolation": lambda context: [broken]}
    monkeypatch.setattr("chatwright.selftest.laws.LAWS", only)
    with pytest.raises(SystemExit) as stop:
        run_selftest(str(recipe), [], full=False, as_json=False)
    printed = capsys.readouterr().out
    assert stop.value.code == 1 and "BROKEN" in printed and "it moved" in printed


def test_users_mistakes_are_no_broken_laws(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with pytest.raises(DataError, match="no data"):
        check_recipe(settings.model_copy(update={"data": ()}), CPU)
    with pytest.raises(UserError, match="one process"):
        check_recipe(settings, Runtime(torch.device("cpu"), 0, 0, 2))
    with pytest.raises(DataError, match="max_tokens"):
        check_recipe(settings.model_copy(update={"max_tokens": 3}), CPU)


def test_relative_errors_name_the_worst_tensor_and_never_hide_a_nan() -> None:
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([1.0])
    assert worst_relative(["a", "b"], [one, two], [one, two * 1.5]) == (0.5, "b")
    figure, name = worst_relative(["a", "b"], [one, two], [one * float("nan"), two])
    assert name == "a" and judged("x", "", figure, "", 1.0).status is Status.BROKEN
    assert worst_relative(["a"], [one * 0], [one * 0])[0] == 0
