"""Decoding with a cache = running the whole text at once, windows, truncation and copies included."""

from __future__ import annotations

import pytest
import torch
from model_variants import VARIANTS
from random_segments import distance, packed

from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models import kv_cache
from chatwright.models.families import config_from_hf
from chatwright.models.kv_cache import KVCache
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model

LENGTHS = [13, 5, 21]


def run(model: CausalLM, cache: KVCache, pieces: dict[int, tuple[torch.Tensor, int]]) -> dict[int, torch.Tensor]:
    """One pass: row → (its new ids, their first position); row → their hidden states."""
    rows = list(pieces)
    ids = torch.cat([ids for ids, _ in pieces.values()])
    positions = torch.cat([torch.arange(start, start + len(ids)) for ids, start in pieces.values()])
    lengths = [len(ids) for ids, _ in pieces.values()]
    hidden, _ = model(ids, positions, SegmentLayout.from_lengths(lengths), cache, rows)
    return dict(zip(rows, hidden.split(lengths), strict=True))


@pytest.mark.parametrize("flat_tokens", [0, 1024])
@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_then_tokens_then_forced_tokens(name: str, flat_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether new tokens are written by their places or row by row."""
    monkeypatch.setattr(kv_cache, "FLAT_TOKENS", flat_tokens)
    model = init_model(config_from_hf(VARIANTS[name]), seed=0).double()
    ids, positions, layout = packed(LENGTHS)
    with torch.inference_mode():
        whole = model(ids, positions, layout)[0].split(LENGTHS)
        texts = ids.split(LENGTHS)
        cache = KVCache(model.config, 4, 24, torch.float64)
        rows = (2, 0, 3)
        plan = [[8, 2, 9], [1, 1, 1], [1, 0, 1], [3, 2, 10]]  # prefill, decode, decode of some, several at once
        done = [0, 0, 0]
        for news in plan:
            pieces = {rows[i]: (texts[i][done[i] : done[i] + n], done[i]) for i, n in enumerate(news) if n}
            found = run(model, cache, pieces)
            for i, n in enumerate(news):
                if n:
                    assert distance(found[rows[i]], whole[i][done[i] : done[i] + n]) < 1e-12
                done[i] += n
    assert done == LENGTHS and cache.lengths == [5, 0, 13, 21]


def test_truncated_and_copied_rows_go_on_as_if_fresh() -> None:
    model = init_model(config_from_hf(VARIANTS["gemma3"]), seed=0).double()
    ids, positions, layout = packed([20])
    whole = model(ids, positions, layout)[0]
    cache = model.new_cache(2, 20)
    run(model, cache, {0: (ids.flip(0), 0)})
    cache.reset(0)
    run(model, cache, {0: (ids[:15], 0)})
    cache.copy_prefix(0, 1, 15)
    cache.truncate(0, 4)
    cache.truncate(1, 14)
    found = run(model, cache, {1: (ids[14:], 14), 0: (ids[4:7], 4)})
    assert distance(found[1], whole[14:]) < 1e-12
    assert distance(found[0], whole[4:7]) < 1e-12
    assert cache.lengths == [7, 20]


def test_a_cache_made_in_inference_mode_can_be_used_outside() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    ids, _, _ = packed([4])
    with torch.inference_mode():
        cache = model.new_cache(1, 8)
        run(model, cache, {0: (ids, 0)})
    assert not run(model, cache, {0: (ids[:1], 4)})[0].requires_grad


def test_overflow_names_the_row() -> None:
    model = init_model(config_from_hf(VARIANTS["llama"]), seed=0)
    ids, _, _ = packed([9])
    cache = model.new_cache(2, 8)
    with pytest.raises(ModelError, match=r"row 1 has 0 tokens and gets 9 more"):
        run(model, cache, {1: (ids, 0)})
    assert cache.lengths == [0, 0]
    with pytest.raises(ValueError, match="cut"):
        cache.truncate(0, 3)
    with pytest.raises(ValueError, match="different cache rows"):
        model(ids[:2], torch.zeros(2, dtype=torch.long), SegmentLayout.from_lengths([1, 1]), cache, [0, 0])


def test_many_rows_in_half_precision_see_what_one_row_sees() -> None:
    """Two products for many rows of different lengths against the fused kernel for each alone."""
    model = init_model(config_from_hf({**VARIANTS["llama"], "initializer_range": 0.4}), seed=0).bfloat16()
    texts = packed([3 + 2 * row for row in range(16)])[0].split([3 + 2 * row for row in range(16)])
    with torch.inference_mode():
        cache, alone = model.new_cache(16, 40), model.new_cache(16, 40)
        for one in (cache, alone):
            run(model, one, {row: (text[:-1], 0) for row, text in enumerate(texts)})
        last = {row: (text[-1:], len(text) - 1) for row, text in enumerate(texts)}
        found = run(model, cache, last)
        for row, piece in last.items():
            assert distance(found[row], run(model, alone, {row: piece})[row]) < 0.1


def test_a_resized_cache_goes_on_as_if_nothing_had_happened() -> None:
    model = init_model(config_from_hf(VARIANTS["gemma3"]), seed=0).double()
    ids, positions, layout = packed([20, 9])
    whole = model(ids, positions, layout)[0].split([20, 9])
    first, second = ids.split([20, 9])
    cache = model.new_cache(3, 20)
    run(model, cache, {0: (first[:15], 0), 2: (second[:5], 0)})
    other = cache.resized(2, 24, [2, 0])
    found = run(model, other, {0: (second[5:], 5), 1: (first[15:], 15)})
    assert distance(found[0], whole[1][5:]) < 1e-12 and distance(found[1], whole[0][15:]) < 1e-12
    other.move(1, 0)
    assert other.lengths == [20, 0]
