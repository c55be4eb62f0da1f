"""Muon: equal to its formula and to torch's, on the right matrices only, the same bits for any number of ranks."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chatwright.errors import ConfigError
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.optim.muon import COEFFICIENTS, orthogonalize
from chatwright.optim.param_groups import build_groups, rates_in_words
from chatwright.optim.settings import PRESETS, MuonSettings, OptimizerSettings, Rule
from chatwright.runtime import Runtime
from chatwright.settings import build


class SmallDecoder(nn.Module):
    """Parameters under a decoder's usual names; layer 1 has a stack of experts."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(11, 8)
        self.model.layers = nn.ModuleList(self.layer() for _ in range(3))
        self.model.layers[1].experts = nn.Parameter(torch.randn(4, 6, 8))
        self.model.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.to(dtype)

    @staticmethod
    def layer() -> nn.Module:
        made = nn.Module()
        made.q_proj, made.down_proj, made.up_proj = nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(8, 16)
        made.lora_A = nn.Linear(8, 2, bias=False)
        made.gate = nn.Linear(8, 1, bias=False)
        return made


def gradients(model: nn.Module, seed: int) -> None:
    """Add random gradients, as a backward would."""
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        loss = loss + (parameter * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)).sum()
    loss.backward()


def polynomial(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """What the iterations must give, through the singular values: the odd quintic acts on them alone."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (torch.linalg.vector_norm(s, dim=-1, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ v


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    steps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_iterations_are_the_quintic_of_the_singular_values(shape: tuple[int, ...], steps: int, seed: int) -> None:
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = orthogonalize(matrices, steps)
    assert found.shape == matrices.shape
    assert (found - polynomial(matrices, steps)).abs().max() < 1e-9


def test_singular_values_come_near_one_and_zeros_stay() -> None:
    matrices = torch.randn(2, 40, 24, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalize(matrices, 5))
    assert values.min() > 0.65 and values.max() < 1.25
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4), 5), torch.zeros(1, 3, 4))


MUON = OptimizerSettings(
    name="muon",
    learning_rate=1e-3,
    weight_decay=0.1,
    max_grad_norm=1.0,
    muon=MuonSettings(learning_rate=0.05, momentum_warmup_steps=4),
)


def test_steps_are_the_published_rule() -> None:
    """Ramped momentum, Nesterov, clipping, decay and the stretch of tall matrices, against the formula in float64."""
    model = SmallDecoder()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    averages = {name: torch.zeros_like(p) for name, p in expected.items()}
    optimizer = MasterOptimizer(model.named_parameters(), MUON)
    hidden = {name for group in optimizer.groups if group.optimizer == "muon" for name in group.names}
    for step in range(7):
        gradients(model, step)
        total = optimizer.gradients.norm() / 16
        found = {
            name: p.grad.clone() / 16 / max(1.0, total) for name, p in model.named_parameters() if p.grad is not None
        }
        optimizer.step(0.7, 16.0)
        m = 0.85 + 0.1 * min(1.0, step / 4)
        for name in hidden:
            averages[name] = m * averages[name] + (1 - m) * found[name]
            ahead = (1 - m) * found[name] + m * averages[name]
            rows, columns = ahead.shape[-2:]
            rate = 0.7 * 0.05
            expected[name] = expected[name] * (1 - rate * 0.1) - rate * max(1.0, rows / columns) ** 0.5 * polynomial(
                ahead, 5
            )
    assert len(hidden) == 10
    for name, parameter in model.named_parameters():
        if name in hidden:
            assert (parameter - expected[name]).abs().max() < 1e-9, name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_equals_torchs_muon_within_bfloat16() -> None:
    """torch iterates in bfloat16; so do we where the model computes in it."""
    model = nn.ModuleList([nn.Linear(24, 24, bias=False), nn.Linear(24, 48, bias=False)]).bfloat16()
    reference = [p.detach().float().requires_grad_() for p in model.parameters()]
    theirs: Any = torch.optim.Muon(reference, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True)
    plain = OptimizerSettings(name="muon", weight_decay=0.1, max_grad_norm=None)
    ours = MasterOptimizer(model.named_parameters(), plain)
    for step in range(5):
        gradients(model, step)
        for parameter, view in zip(reference, ours.gradients.views, strict=True):
            parameter.grad = view.clone()
        ours.step(1.0, 1.0)
        theirs.step()
    for master, parameter in zip(ours.master_state().values(), reference, strict=True):
        moved = 5 * 0.02 * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5 / 24**0.5
        assert (master - parameter).abs().max() < 0.05 * moved


def test_muon_takes_the_layers_matrices_and_adamw_the_rest() -> None:
    groups = build_groups(SmallDecoder().named_parameters(), MUON)
    owners = {name: group.optimizer for group in groups for name in group.names}
    assert sorted(owners) == sorted(name for name, _ in SmallDecoder().named_parameters())
    assert {name for name, owner in owners.items() if owner == "muon"} == {
        *(f"model.layers.{n}.{part}.weight" for n in range(3) for part in ("q_proj", "down_proj", "up_proj")),
        "model.layers.1.experts",
    }
    assert [group.optimizer for group in groups] == sorted(group.optimizer for group in groups)


def test_rules_move_parameters_between_the_two() -> None:
    rules = (
        Rule(pattern="*.0.q_proj.weight", optimizer="adamw"),
        Rule(pattern="*lora_A*", optimizer="muon", multiplier=0.5),
        Rule(pattern="lm_head*", learning_rate=3e-4),
    )
    groups = build_groups(SmallDecoder().named_parameters(), MUON.model_copy(update={"rules": rules}))
    found = {name: (group.optimizer, group.learning_rate) for group in groups for name in group.names}
    assert found["model.layers.0.q_proj.weight"] == ("adamw", 1e-3)
    assert found["model.layers.1.q_proj.weight"] == ("muon", 0.05)
    assert found["model.layers.2.lora_A.weight"] == ("muon", 0.025)
    assert found["lm_head.weight"] == ("adamw", 3e-4)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ({"pattern": "*.bias", "optimizer": "muon"}, "needs a matrix"),
        ({"pattern": "model.layers.*.qproj.weight", "optimizer": "muon"}, "near names"),
    ],
)
def test_impossible_rules_are_refused(rule: dict[str, Any], match: str) -> None:
    chosen = build(OptimizerSettings, {"name": "muon", "rules": [rule]}, "test")
    with pytest.raises(ConfigError, match=match):
        MasterOptimizer(SmallDecoder().named_parameters(), chosen)


def test_what_muon_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="finds no matrix of a layer"):
        MasterOptimizer(nn.Embedding(4, 4).named_parameters(), OptimizerSettings(name="muon"))
    for wrong in ({"muon": {}}, {"rules": [{"pattern": "*", "optimizer": "muon"}]}):
        with pytest.raises(ConfigError, match="name: muon"):
            build(OptimizerSettings, wrong, "test")
    with pytest.raises(ConfigError, match="hidden size isn't known"):
        build_groups(SmallDecoder().named_parameters(), OptimizerSettings(preset="nanochat"))


def test_nanochats_rates() -> None:
    """0.2, 0.004, 0.02; AdamW's two scaled by (width / 768)^−½; all times init_lr_frac."""
    chosen = build(OptimizerSettings, {"preset": "nanochat", "rate_factor": 0.02, "max_grad_norm": None}, "test")
    groups = build_groups(SmallDecoder().named_parameters(), chosen, width=192)
    rates = {name: group.learning_rate for group in groups for name in group.names}
    assert rates["model.embed_tokens.weight"] == pytest.approx(0.2 * 2 * 0.02)
    assert rates["lm_head.weight"] == pytest.approx(0.004 * 2 * 0.02)
    assert rates["model.layers.0.up_proj.weight"] == pytest.approx(0.02 * 0.02)
    assert (chosen.betas, chosen.eps, chosen.weight_decay) == ((0.8, 0.95), 1e-10, 0.0)
    assert chosen.muon is not None
    ramp = [chosen.muon.momentum_after(step) for step in (0, 150, 300, 5000)]
    assert ramp == pytest.approx([0.85, 0.9, 0.95, 0.95])


def test_rates_are_told_by_whom_they_are_for() -> None:
    groups = build_groups(SmallDecoder().named_parameters(), OptimizerSettings(name="muon", learning_rate=2e-5))
    told = rates_in_words(groups)
    assert "adamw 2e-05 for model.embed_tokens.weight and" in told
    assert told.endswith("muon 0.02 for model.layers.0.q_proj.weight and 9 more")


def test_what_the_recipe_writes_wins_over_the_preset() -> None:
    mine = {"preset": "nanochat", "eps": 1e-8, "rules": [], "muon": {"momentum": 0.9}}
    chosen = build(OptimizerSettings, mine, "test")
    assert (chosen.name, chosen.eps, chosen.rules, chosen.learning_rate) == ("muon", 1e-8, (), 0.004)
    assert chosen.muon == MuonSettings(learning_rate=0.02, momentum=0.9, momentum_warmup_steps=300)
    assert build(OptimizerSettings, chosen.model_dump(mode="json"), "test") == chosen
    plain = build(OptimizerSettings, {"preset": "nanochat", "name": "adamw"}, "test")
    assert plain.muon is None and plain.rules[0].learning_rate == 0.2
    assert set(PRESETS) == {"nanochat"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_resumed_run_is_bit_identical(dtype: torch.dtype) -> None:
    def steps(optimizer: MasterOptimizer, model: nn.Module, numbers: range) -> None:
        for step in numbers:
            gradients(model, step)
            optimizer.step(1.0 - step / 20, 4.0)

    models = [SmallDecoder(dtype) for _ in range(3)]
    straight, before, after = (MasterOptimizer(model.named_parameters(), MUON) for model in models)
    steps(straight, models[0], range(8))
    steps(before, models[1], range(3))
    after.load_masters(copy.deepcopy(before.master_state()))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    steps(after, models[2], range(3, 8))
    for one, other in ((straight.master_state(), after.master_state()), (straight.state_dict(), after.state_dict())):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    kinds = {name.split(".")[0] for name in straight.state_dict()}
    assert kinds - {"loss_scale"} == {"momentum", "exp_avg", "exp_avg_sq", "step"}


@dataclass
class Threads:
    """Ranks as threads of one process that really sum."""

    count: int
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count, timeout=30)

    def all_reduce(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.tensors[index] for index in range(self.count))
        self.barrier.wait()
        return tensor.copy_(total)


class ThreadRuntime(Runtime):
    """One of `Threads`."""

    __slots__ = ("threads",)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the threads."""
        return self.threads.all_reduce(self.rank, tensor)


def trained(ranks: int) -> list[dict[str, torch.Tensor]]:
    """Every rank's masters and state after three steps on the same gradients."""
    shared, results = Threads(ranks), {}

    def work(rank: int) -> None:
        runtime = ThreadRuntime(torch.device("cpu"), rank=rank, world_size=ranks)
        object.__setattr__(runtime, "threads", shared)
        model = models[rank]
        optimizer = MasterOptimizer(model.named_parameters(), MUON, runtime=runtime)
        for step in range(3):
            gradients(model, step)
            optimizer.step(1.0, 2.0)
        results[rank] = {**optimizer.master_state(), **optimizer.state_dict()}

    models = [SmallDecoder(torch.float32) for _ in range(ranks)]
    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [results[rank] for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_the_matrices_have_one_processs_bits(ranks: int) -> None:
    alone = trained(1)[0]
    for found in trained(ranks):
        assert alone.keys() == found.keys()
        assert [name for name in alone if not torch.equal(alone[name], found[name])] == []


def test_each_rank_has_a_fair_share() -> None:
    model = nn.ModuleList(
        nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 256, bias=False)]) for _ in range(64)
    )
    runtime = Runtime(torch.device("cpu"), rank=1, world_size=4)
    update: Any = MasterOptimizer(model.named_parameters(), OptimizerSettings(name="muon"), runtime=runtime).update
    batches = update.muon.batches
    shares = [sum(batch.momentum.numel() for batch in batches if batch.owner == rank) for rank in range(4)]
    assert max(shares) <= 1.2 * min(shares)
    assert sorted(name for batch in batches for name in batch.names) == sorted(dict(model.named_parameters()))
