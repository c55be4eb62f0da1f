"""The laws hold for models with experts, load-balance loss included; the batch-wide form waives two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_settings

from chatwright.models.families import config_from_hf
from chatwright.models.weights import init_model, read_config, save_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.selftest.laws import check_recipe
from chatwright.selftest.outcome import Status

CPU = Runtime(torch.device("cpu"))
EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 3},
    "minimind_moe": {"use_moe": True},
}


def with_experts(folder: Path, family: str = "qwen3_moe", **changes: Any) -> RunSettings:
    """The tiny recipe with a model of a family with experts in its folder."""
    settings = tiny_settings(folder, **changes)
    shapes = {k: v for k, v in read_config(folder / "model").items() if not k.startswith("rope_")}
    model_type = "minimind" if family == "minimind_moe" else family
    config = config_from_hf({**shapes, "model_type": model_type, "head_dim": 8, **EXPERTS[family]})
    save_model(init_model(config, seed=1), folder / "model")
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_every_law_holds_with_experts(family: str, tmp_path: Path) -> None:
    report = check_recipe(with_experts(tmp_path, family, moe={"aux_loss_weight": 0.3}), CPU)
    found = {outcome.name: str(outcome.status) for outcome in report.outcomes}
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]
    assert found.pop("merging") == "not applicable" and set(found.values()) == {"holds"}


@pytest.mark.slow
def test_every_law_holds_for_an_adapter_on_experts(tmp_path: Path) -> None:
    report = check_recipe(with_experts(tmp_path, adapter={"rank": 4, "alpha": 8}), CPU)
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]


@pytest.mark.parametrize("family", EXPERTS)
def test_laws_of_gradients_and_serving_hold_with_experts(family: str, tmp_path: Path) -> None:
    """Those of saving compare with transformers, which doesn't know MiniMind's family."""
    report = check_recipe(with_experts(tmp_path, family), CPU, laws=["gradients", "isolation", "serving"])
    assert report.passed, [o for o in report.outcomes if o.status is Status.BROKEN]


def test_saving_is_waived_where_transformers_knows_no_such_model(tmp_path: Path) -> None:
    report = check_recipe(with_experts(tmp_path, "minimind_moe"), CPU, laws=["saving"])
    assert [(outcome.name, str(outcome.status)) for outcome in report.outcomes] == [
        ("saving", "waived"),
        ("stopping", "waived"),
    ]
    assert "minimind" in report.outcomes[0].detail


def test_the_batch_wide_loss_waives_what_it_breaks(tmp_path: Path) -> None:
    settings = with_experts(tmp_path, moe={"aux_loss_weight": 0.3, "exact": False})
    waived = check_recipe(settings, CPU, laws=["gradients"])
    assert [str(outcome.status) for outcome in waived.outcomes] == ["waived", "waived"]
    assert all("moe.exact" in outcome.detail for outcome in waived.outcomes)


def test_a_loss_that_depends_on_the_pack_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws would see it, were it not exact."""
    from chatwright.train import auxiliary

    def of_the_batch(counts: torch.Tensor, probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return auxiliary.batch_load_balance(counts, probs, lengths).expand(len(lengths))

    monkeypatch.setattr(auxiliary, "segment_load_balance", of_the_batch)
    report = check_recipe(with_experts(tmp_path, moe={"aux_loss_weight": 0.3}), CPU, laws=["gradients"])
    assert set(report.broken) == {"packing", "splits"}
