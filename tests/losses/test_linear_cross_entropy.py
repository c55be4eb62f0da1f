"""The chunked loss against the naive form: values and every gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.losses.linear_cross_entropy import token_log_probs, weighted_nll
from chatwright.losses.logit_chunks import rows_per_chunk
from chatwright.models.output_head import OutputHead

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    gap, size = (found - expected).double().norm().item(), expected.double().norm().item()
    return gap / size if size > 0 else gap


def make_problem(
    n: int,
    d: int,
    v: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    bias: bool = False,
    rows: int = 0,
    **head: float | None,
) -> tuple[torch.Tensor, OutputHead, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=g, dtype=dtype).requires_grad_()
    full_head = OutputHead(
        weight,
        torch.randn(v, generator=g, dtype=dtype).requires_grad_() if bias else None,
        rows=torch.randperm(v, generator=g)[:rows] if rows else None,
        row_weights=torch.randn(rows, d, generator=g, dtype=dtype).requires_grad_() if rows else None,
        **head,  # type: ignore[arg-type]
    )
    targets = torch.randint(0, v, (n,), generator=g)
    weights = torch.rand(n, generator=g, dtype=dtype) * (torch.rand(n, generator=g) > 0.3)
    return hidden, full_head, targets, weights


def leaves(hidden: torch.Tensor, head: OutputHead) -> list[torch.Tensor]:
    return [t for t in (hidden, head.weight, head.bias, head.row_weights) if t is not None and t.requires_grad]


def naive_nll(hidden: torch.Tensor, head: OutputHead, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head.logits(hidden), targets, reduction="none")


def assert_same_gradients(
    ours: torch.Tensor, naive: torch.Tensor, inputs: list[torch.Tensor], bound: float, factor: float = 1.0
) -> None:
    found = torch.autograd.grad(ours * factor, inputs)
    expected = torch.autograd.grad(naive * factor, inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert relative(one, other) <= bound


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    d=st.integers(1, 9),
    v=st.integers(2, 40),
    chunk_bytes=st.sampled_from([1, 700, 9_000, 10**7]),
    dtype=st.sampled_from(list(BOUNDS)),
    bias=st.booleans(),
    rows=st.integers(0, 2),
    scale=st.sampled_from([1.0, 0.25]),
    soft_cap=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_naive_form(
    n: int,
    d: int,
    v: int,
    chunk_bytes: int,
    dtype: torch.dtype,
    bias: bool,
    rows: int,
    scale: float,
    soft_cap: float | None,
    seed: int,
) -> None:
    hidden, head, targets, weights = make_problem(
        n, d, v, dtype, seed=seed, bias=bias, rows=rows, scale=scale, soft_cap=soft_cap
    )
    result = weighted_nll(hidden, head, targets, weights, chunk_bytes=chunk_bytes)
    nll = naive_nll(hidden, head, targets)
    expected = (nll * weights).sum()
    bound = BOUNDS[dtype]
    assert relative(result.total, expected) <= bound
    assert relative(result.per_token.to(dtype), nll) <= 1e-6 + bound
    assert not result.per_token.requires_grad and result.per_token.dtype == torch.float32
    assert result.supervised_tokens == int((weights > 0).sum())
    assert result.weight == pytest.approx(float(weights.double().sum()))
    assert_same_gradients(result.total, expected, leaves(hidden, head), bound, factor=2.5)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 50),
    v=st.integers(2, 30),
    chunk_bytes=st.sampled_from([1, 700, 10**7]),
    dtype=st.sampled_from(list(BOUNDS)),
    rows=st.integers(0, 2),
    soft_cap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_log_probs_equal_the_naive_form(
    n: int, v: int, chunk_bytes: int, dtype: torch.dtype, rows: int, soft_cap: float | None, seed: int
) -> None:
    hidden, head, targets, _ = make_problem(n, 5, v, dtype, seed=seed, bias=True, rows=rows, soft_cap=soft_cap)
    found = token_log_probs(hidden, head, targets, chunk_bytes=chunk_bytes)
    expected = -naive_nll(hidden, head, targets)
    factors = torch.linspace(-1, 2, n, dtype=dtype)
    assert relative(found, expected) <= BOUNDS[dtype]
    assert_same_gradients((found * factors).sum(), (expected * factors).sum(), leaves(hidden, head), BOUNDS[dtype])


def test_tied_weight_gets_both_gradients() -> None:
    embedding = torch.randn(30, 6, dtype=torch.float64).requires_grad_()
    ids, targets = torch.randint(0, 30, (17,)), torch.randint(0, 30, (17,))
    weights = torch.ones(17, dtype=torch.float64)
    hidden = F.embedding(ids, embedding)  # [17, 6]
    ours = weighted_nll(hidden, OutputHead(embedding), targets, weights, chunk_bytes=1).total
    naive = naive_nll(hidden, OutputHead(embedding), targets).sum()
    found = torch.autograd.grad(ours, embedding, retain_graph=True)[0]
    assert relative(found, torch.autograd.grad(naive, embedding)[0]) <= 1e-12


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_frozen_parts_cost_no_gradient(frozen: str) -> None:
    hidden, head, targets, weights = make_problem(9, 4, 11, torch.float64, rows=2)
    if frozen in ("hidden", "both"):
        hidden = hidden.detach()
    if frozen in ("weight", "both"):
        head = dataclasses.replace(head, weight=head.weight.detach())
    result = weighted_nll(hidden, head, targets, weights, chunk_bytes=1)
    expected = (naive_nll(hidden, head, targets) * weights).sum()
    assert_same_gradients(result.total, expected, leaves(hidden, head), 1e-12)


def test_everything_frozen_or_no_grad_gives_a_plain_value() -> None:
    hidden, head, targets, weights = make_problem(9, 4, 11, torch.float32)
    with torch.no_grad():
        result = weighted_nll(hidden, head, targets, weights)
    assert not result.total.requires_grad
    frozen = weighted_nll(hidden.detach(), OutputHead(head.weight.detach()), targets, weights)
    assert not frozen.total.requires_grad and torch.equal(frozen.total, result.total)


def test_no_rows_gives_exact_zero_with_a_graph() -> None:
    hidden, head, targets, weights = make_problem(0, 4, 11, torch.float32, bias=True, rows=2)
    result = weighted_nll(hidden, head, targets, weights)
    assert result.total.item() == 0.0 and result.weight == 0.0 and result.supervised_tokens == 0
    for gradient in torch.autograd.grad(result.total, leaves(hidden, head)):
        assert torch.count_nonzero(gradient) == 0
    assert token_log_probs(hidden, head, targets).shape == (0,)


def test_all_ignored_gives_exact_zero_with_a_graph() -> None:
    hidden, head, targets, weights = make_problem(8, 4, 11, torch.float32, bias=True, rows=2)
    result = weighted_nll(hidden, head, targets, torch.zeros_like(weights), chunk_bytes=1)
    assert result.total.item() == 0.0 and result.supervised_tokens == 0
    for gradient in torch.autograd.grad(result.total, leaves(hidden, head)):
        assert torch.count_nonzero(gradient) == 0


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 40), seed=st.integers(0, 1000))
def test_any_split_of_the_rows_gives_the_same_sums(cut: int, seed: int) -> None:
    hidden, head, targets, weights = make_problem(40, 6, 19, torch.float64, seed=seed)
    whole = weighted_nll(hidden, head, targets, weights)
    parts = [weighted_nll(hidden[s], head, targets[s], weights[s]) for s in (slice(0, cut), slice(cut, 40))]
    total = parts[0].total + parts[1].total
    assert relative(total, whole.total) <= 1e-12
    assert parts[0].weight + parts[1].weight == pytest.approx(whole.weight, rel=1e-12)
    assert_same_gradients(total, whole.total, leaves(hidden, head), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float32(dtype: torch.dtype) -> None:
    hidden, head, targets, weights = make_problem(65, 64, 300, torch.float32, bias=True, rows=3)
    with torch.no_grad():
        for tensor in leaves(hidden, head):
            tensor.copy_((tensor * 0.3).to(dtype).float())  # both sides start from the same numbers
    low_hidden = hidden.detach().to(dtype).requires_grad_()
    low_head = OutputHead(
        head.weight.detach().to(dtype).requires_grad_(),
        head.bias.detach().to(dtype).requires_grad_() if head.bias is not None else None,
        rows=head.rows,
        row_weights=head.row_weights.detach().to(dtype).requires_grad_() if head.row_weights is not None else None,
    )
    result = weighted_nll(low_hidden, low_head, targets, weights, chunk_bytes=10**5)
    expected = (naive_nll(hidden, head, targets) * weights).sum()
    assert result.total.dtype == torch.float32
    assert relative(result.total, expected) <= 2e-3
    found = torch.autograd.grad(result.total, leaves(low_hidden, low_head))
    for one, other in zip(found, torch.autograd.grad(expected, leaves(hidden, head)), strict=True):
        assert one.dtype == dtype
        assert relative(one.float(), other) <= 1e-2


def test_float16_gradients_survive_loss_scaling() -> None:
    """Gradients that underflow in float16 come back when the incoming gradient is the scaler's factor."""
    hidden, head, targets, _ = make_problem(4, 16, 50, torch.float32)
    low = (hidden.detach() * 0.1).half().requires_grad_()
    low_head = OutputHead((head.weight.detach() * 0.1).half().requires_grad_())
    tiny = torch.full((4,), 1e-8)
    total = weighted_nll(low, low_head, targets, tiny).total
    plain = torch.autograd.grad(total, low_head.weight, retain_graph=True)[0]
    scaled = torch.autograd.grad(total * 2.0**16, low_head.weight)[0]
    assert torch.count_nonzero(plain) < torch.count_nonzero(scaled)


def test_the_cpu_precision_switch_is_put_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    hidden, head, targets, weights = make_problem(5, 8, 20, torch.float32)
    low_head = OutputHead(head.weight.detach().bfloat16().requires_grad_())
    weighted_nll(hidden.detach().bfloat16(), low_head, targets, weights).total.backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_large_logits_stay_finite() -> None:
    hidden, head, targets, weights = make_problem(6, 8, 20, torch.float32)
    loud = OutputHead(head.weight, scale=1e4)
    result = weighted_nll(hidden, loud, targets, weights)
    assert torch.isfinite(result.total)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(result.total, [hidden, head.weight]))


def test_shapes_that_disagree_are_named() -> None:
    hidden, head, targets, weights = make_problem(5, 8, 20, torch.float32)
    with pytest.raises(ValueError, match=r"5 rows, but found targets \[4\]"):
        weighted_nll(hidden, head, targets[:4], weights)
    with pytest.raises(ValueError, match=r"hidden must be \[N, 8\]"):
        weighted_nll(hidden[:, :3], head, targets, weights)


@given(num_rows=st.integers(0, 10**5), bytes_per_row=st.integers(0, 10**7), chunk_bytes=st.integers(0, 10**9))
def test_chunk_rows_fit_the_budget(num_rows: int, bytes_per_row: int, chunk_bytes: int) -> None:
    rows = rows_per_chunk(num_rows, bytes_per_row, chunk_bytes)
    assert 1 <= rows <= max(1, num_rows)
    assert rows == 1 or rows * bytes_per_row <= chunk_bytes
