"""Sampling: the kept sets, independence of the batch, and that padding columns are never drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.errors import ConfigError
from chatwright.inference.sampling import (
    SamplingSettings,
    chosen_log_probs,
    filtered,
    penalized,
    row_key,
    sample,
    uniform,
)
from chatwright.settings import build

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40)


def kept(scores: torch.Tensor) -> set[int]:
    return set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())


@given(LOGITS, st.integers(1, 45))
def test_top_k_keeps_the_k_most_likely_and_ties(values: list[float], k: int) -> None:
    scores = torch.tensor([values])
    floor = sorted(values, reverse=True)[min(k, len(values)) - 1]
    assert kept(filtered(scores, SamplingSettings(top_k=k))) == {i for i, v in enumerate(values) if v >= floor}


@given(LOGITS, st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_reach_p(values: list[float], p: float) -> None:
    scores = torch.tensor([values])
    probs = torch.softmax(scores.double(), -1)[0]
    chosen = kept(filtered(scores, SamplingSettings(top_p=p)))
    mass = float(probs[sorted(chosen)].sum())
    assert mass >= p - 1e-5
    least = min(values[i] for i in chosen)
    assert chosen == {i for i, v in enumerate(values) if v >= least}
    assert mass - sum(float(probs[i]) for i in chosen if values[i] == least) < p + 1e-5


def test_top_p_sorts_whole_rows_where_the_first_few_hold_too_little() -> None:
    flat = torch.zeros(1, 5000) + torch.arange(5000) * 1e-4
    assert len(kept(filtered(flat, SamplingSettings(top_p=0.9)))) > 4000


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0, 5.0]))
def test_a_row_draws_the_same_alone_and_in_any_batch(num_rows: int, seed: int, temperature: float) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(num_rows, 50)
    options = SamplingSettings(temperature=temperature, top_k=20, top_p=0.95, seed=seed)
    keys = [row_key(seed, [row]) for row in range(num_rows)]
    steps = list(range(num_rows))
    together = sample(logits, options, keys, steps).tolist()
    alone = [int(sample(logits[i : i + 1], options, [keys[i]], [steps[i]])) for i in range(num_rows)]
    assert together == alone


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.0, 0.2])
    keys = [row_key(7, [n]) for n in range(20_000)]
    ids = sample(probs.log().expand(len(keys), 4), SamplingSettings(temperature=1.0), keys, [0] * len(keys))
    shares = torch.bincount(ids, minlength=4) / len(keys)
    assert shares[2] == 0
    assert (shares - probs).abs().max() < 0.015


def test_temperature_near_zero_is_greedy_and_stays_finite() -> None:
    logits = torch.randn(8, 30)
    cold = sample(logits, SamplingSettings(temperature=1e-30), list(range(8)), [0] * 8)
    assert torch.equal(cold, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_columns_beyond_the_tokenizer_are_never_drawn(temperature: float) -> None:
    logits = torch.zeros(500, 12)
    logits[:, 9:] = 50.0
    options = SamplingSettings(temperature=temperature, top_k=11)
    assert int(sample(logits, options, list(range(500)), [0] * 500, num_tokens=9).max()) < 9


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    logits, ids = torch.randn(3, 20), torch.tensor([[1, 2, 2], [3, 4, 5], [0, 0, 19]])
    seen = torch.zeros(3, 20, dtype=torch.bool)
    seen[torch.arange(3)[:, None], ids] = True
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    assert torch.equal(penalized(logits, seen, 1.7), expected)


def test_log_probs_are_of_the_model_over_all_columns() -> None:
    logits = torch.randn(4, 16, dtype=torch.bfloat16)
    ids = torch.tensor([0, 3, 15, 7])
    expected = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(chosen_log_probs(logits, ids), expected)


def test_random_numbers_depend_on_seed_prompt_copy_and_step() -> None:
    keys = {row_key(seed, prompt, copy) for seed in (-1, 0, 1) for prompt in ([], [0], [0, 0], [1]) for copy in (0, 1)}
    assert len(keys) == 24
    draws = [uniform(5, step) for step in range(1000)]
    assert len(set(draws)) == 1000 and min(draws) >= 0 and max(draws) < 1


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"top_p.*\n.*max_new_tokens|max_new_tokens.*\n.*top_p"):
        build(SamplingSettings, {"top_p": 0.0, "max_new_tokens": 0}, "test")
