"""AdamW on masters: equal to torch's, exact on resume, untouched by bad gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from chatwright.errors import CheckpointError, ConfigError, UserError
from chatwright.optim import updates
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.optim.settings import OptimizerSettings, Rule


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=g)
    return x.to(dtype), torch.stack([x.sum(1), x[:, 0] * x[:, 1], x[:, 2].abs(), x[:, 3]], dim=1).to(dtype)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x, y = batch(step, dtype)
    return (model(x).float() - y.float()).square().sum()


def run(optimizer: MasterOptimizer, model: nn.Module, steps: range, dtype: torch.dtype = torch.float32) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, step, dtype)
        (loss * optimizer.loss_scale).backward()
        losses.append(loss.item())
        optimizer.step(lr_multiplier=1.0 - step / 200, divide_by=16.0)
    return losses


SETTINGS = OptimizerSettings(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0)


def test_equals_torch_adamw_bit_for_bit_when_nothing_is_scaled() -> None:
    ours, theirs = small_model(), small_model()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    optimizer = MasterOptimizer(
        ours.named_parameters(), OptimizerSettings(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=None)
    )
    for step in range(10):
        loss_of(ours, step).backward()
        optimizer.step(1.0, 1.0)
        loss_of(theirs, step).backward()
        reference.step()
        reference.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_equals_torch_adamw_with_division_and_clipping() -> None:
    ours, theirs = small_model(), small_model()
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0, foreach=False)
    optimizer = MasterOptimizer(ours.named_parameters(), OptimizerSettings(learning_rate=1e-2, max_grad_norm=0.5))
    for step in range(10):
        loss_of(ours, step).backward()
        norm = optimizer.step(0.7, 16.0)
        (loss_of(theirs, step) / 16).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert norm == pytest.approx(expected.item(), rel=1e-4)
        reference.param_groups[0]["lr"] = 0.7e-2
        reference.step()
        reference.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one - other).abs().max() <= 1e-6


def test_bf16_with_masters_follows_float32() -> None:
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(dtype)
        settings = OptimizerSettings(learning_rate=3e-3)
        losses[dtype] = run(MasterOptimizer(model.named_parameters(), settings), model, range(100), dtype)
    tails = {dtype: sum(found[-20:]) for dtype, found in losses.items()}
    assert tails[torch.bfloat16] == pytest.approx(tails[torch.float32], rel=0.01)
    assert tails[torch.float32] < 0.5 * sum(losses[torch.float32][:20])


def test_small_updates_reach_the_master_but_not_bf16() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterOptimizer([("w", parameter)], OptimizerSettings(learning_rate=1e-5))
    for _ in range(10):
        parameter.sum().backward()
        optimizer.step(1.0, 1.0)
    assert parameter.tolist() == [1.0] * 4
    assert optimizer.master_state()["w"][0].item() == pytest.approx(1 - 1e-4, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_resume_is_bit_identical(dtype: torch.dtype) -> None:
    whole = small_model(dtype)
    straight = MasterOptimizer(whole.named_parameters(), SETTINGS)
    run(straight, whole, range(12), dtype)

    first = small_model(dtype)
    before = MasterOptimizer(first.named_parameters(), SETTINGS)
    run(before, first, range(5), dtype)
    state = copy.deepcopy(before.state_dict())
    masters = copy.deepcopy(before.master_state())

    second = small_model(dtype)
    after = MasterOptimizer(second.named_parameters(), SETTINGS)
    after.load_masters(masters)
    after.load_state_dict(state)
    assert after.step_count == 5
    run(after, second, range(5, 12), dtype)
    for name, master in straight.master_state().items():
        assert torch.equal(master, after.master_state()[name])
    for name, value in straight.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


def test_state_is_named_by_parameter() -> None:
    optimizer = MasterOptimizer(small_model().named_parameters(), SETTINGS)
    assert set(optimizer.state_dict()) == {
        "step",
        *(f"{kind}.{i}.{part}" for kind in ("exp_avg", "exp_avg_sq") for i in (0, 2) for part in ("weight", "bias")),
    }


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_gradient_touches_nothing(bad: float) -> None:
    model = small_model()
    optimizer = MasterOptimizer(model.named_parameters(), SETTINGS)
    run(optimizer, model, range(2))
    before = copy.deepcopy((optimizer.master_state(), optimizer.state_dict()))
    (loss_of(model, 3) * bad).backward()
    assert not math.isfinite(optimizer.step(1.0, 1.0))
    assert not optimizer.skipped_last_step
    for saved, now in zip(before, (optimizer.master_state(), optimizer.state_dict()), strict=True):
        assert all(torch.equal(saved[name], now[name]) for name in saved)
    assert int(torch.count_nonzero(optimizer.flat_gradient)) == 0


def test_float16_overflow_halves_the_scale_and_skips() -> None:
    model = small_model(torch.float16)
    optimizer = MasterOptimizer(model.named_parameters(), SETTINGS)
    first = optimizer.loss_scale
    before = copy.deepcopy(optimizer.master_state())
    optimizer.flat_gradient[0] = math.inf
    assert not math.isfinite(optimizer.step(1.0, 1.0))
    assert optimizer.skipped_last_step and optimizer.loss_scale == first / 2 and optimizer.step_count == 0
    assert all(torch.equal(before[name], now) for name, now in optimizer.master_state().items())
    run(optimizer, model, range(1), torch.float16)
    assert not optimizer.skipped_last_step and optimizer.step_count == 1


def test_float16_follows_float32() -> None:
    losses = {}
    for dtype in (torch.float32, torch.float16):
        model = small_model(dtype)
        optimizer = MasterOptimizer(model.named_parameters(), OptimizerSettings(learning_rate=3e-3))
        losses[dtype] = run(optimizer, model, range(60), dtype)
    assert sum(losses[torch.float16][-20:]) == pytest.approx(sum(losses[torch.float32][-20:]), rel=0.01)


def test_float64_is_divided_exactly() -> None:
    model = small_model(torch.float64)
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = MasterOptimizer([("w", parameter)], OptimizerSettings(max_grad_norm=None))
    (parameter * 0.1).sum().backward()
    optimizer.step(1.0, 3.0)
    assert optimizer.state_dict()["exp_avg.w"][0].item() == pytest.approx(0.1 / 3 * 0.1, rel=1e-14)
    assert model[0].weight.dtype == torch.float64


def test_rules_move_only_what_they_name() -> None:
    model = small_model()
    before = copy.deepcopy(dict(model.named_parameters()))
    settings = OptimizerSettings(learning_rate=1e-2, rules=(Rule(pattern="0.*", multiplier=0.0),))
    run(MasterOptimizer(model.named_parameters(), settings), model, range(3))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"2.weight", "2.bias"}


def test_a_state_of_another_model_is_refused_by_name() -> None:
    optimizer = MasterOptimizer(small_model().named_parameters(), SETTINGS)
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match=r"exp_avg\.0\.weight.*missing"):
        optimizer.load_state_dict({name: t for name, t in state.items() if name != "exp_avg.0.weight"})
    with pytest.raises(CheckpointError, match=r"exp_avg\.other"):
        optimizer.load_state_dict({**state, "exp_avg.other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        optimizer.load_masters({**optimizer.master_state(), "0.bias": torch.zeros(3)})


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_dividing_by_no_weight_is_a_bug_of_the_caller(weight: float) -> None:
    optimizer = MasterOptimizer(small_model().named_parameters(), SETTINGS)
    with pytest.raises(ValueError, match="positive weight"):
        optimizer.step(1.0, weight)


def test_a_rule_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="near names"):
        MasterOptimizer(
            small_model().named_parameters(), OptimizerSettings(rules=(Rule(pattern="head.*", multiplier=2),))
        )


def test_8bit_moments_train_save_and_resume() -> None:
    pytest.importorskip("bitsandbytes")
    settings = OptimizerSettings(name="adamw8bit", learning_rate=3e-3)

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, 4))

    model = wide()
    optimizer = MasterOptimizer(model.named_parameters(), settings)
    losses = run(optimizer, model, range(30))
    assert sum(losses[-5:]) < sum(losses[:5])
    state = copy.deepcopy(optimizer.state_dict())
    assert state["exp_avg.0.weight"].dtype == torch.uint8 and "exp_avg_scale.0.weight" in state
    assert state["exp_avg.2.bias"].dtype == torch.float32

    other = wide()
    resumed = MasterOptimizer(other.named_parameters(), settings)
    resumed.load_masters(copy.deepcopy(optimizer.master_state()))
    resumed.load_state_dict(state)
    run(optimizer, model, range(30, 34))
    run(resumed, other, range(30, 34))
    for name, master in optimizer.master_state().items():
        assert torch.equal(master, resumed.master_state()[name])


def test_8bit_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install"):
        updates._bitsandbytes()
