"""The token store and its cache: same arrays back, never half a cache, stale keys refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.batches import token_cache
from chatwright.batches.token_cache import cache_key, load_store, save_store, save_stores
from chatwright.batches.token_store import TokenStore, concatenate
from chatwright.errors import DataError
from chatwright.templates.rendered import ExampleKey, RenderedExample


def example(ids, weights, source="a.jsonl", row=0, part=0):
    key = ExampleKey(source, row, part)
    return RenderedExample(np.array(ids, np.int32), np.array(weights, np.float32), (), key)


@pytest.fixture
def store():
    return TokenStore.from_examples(
        [example([1, 2, 3], [1, 0, 0.5]), example([4], [1], "b.jsonl", 7, 1), example([5, 6], [0, 2], row=9)]
    )


def test_examples_come_back(store):
    assert len(store) == 3 and store.num_tokens == 6
    assert store.lengths.tolist() == [3, 1, 2]
    ids, weights = store.example(2)
    assert ids.tolist() == [5, 6] and weights.tolist() == [0, 2]
    assert store.keys == [("a.jsonl", 0, 0), ("b.jsonl", 7, 1), ("a.jsonl", 9, 0)]
    assert store.name(1) == "b.jsonl row 7 part 1"
    assert store.supervised_counts.tolist() == [1, 0, 1], "a first token is never supervised"
    assert store.weight_sums.tolist() == [0.5, 0, 2]
    assert store.supervised(0) == 1


def test_bad_weights_are_our_bug():
    with pytest.raises(ValueError, match="not negative"):
        TokenStore.from_examples([example([1], [-1])])
    with pytest.raises(ValueError, match="finite"):
        TokenStore.from_examples([example([1], [np.nan])])
    with pytest.raises(ValueError, match="ids"):
        TokenStore.from_examples([example([1, 2], [1])])


@pytest.mark.parametrize("empty", [False, True])
def test_saved_and_loaded_is_the_same(store, tmp_path, empty):
    saved = TokenStore.from_examples([]) if empty else store
    save_store(saved, tmp_path / "cache" / "x", key="k")
    save_store(saved, tmp_path / "cache" / "x", key="k")  # replacing is fine
    loaded = load_store(tmp_path / "cache" / "x", key="k")
    assert loaded.keys == saved.keys and loaded.sources == saved.sources
    for name in ("ids", "weights", "offsets", "supervised_counts", "weight_sums"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    assert isinstance(loaded.ids, np.memmap) and not loaded.ids.flags.writeable
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["x"], "nothing is left lying aside"


def test_a_cache_of_another_key_is_refused(store, tmp_path):
    save_store(store, tmp_path / "x", key="k")
    with pytest.raises(DataError, match="other data, tokenizer, template or settings"):
        load_store(tmp_path / "x", key="other")


def test_a_damaged_cache_is_named(store, tmp_path):
    save_store(store, tmp_path / "x")
    (tmp_path / "x" / "ids.npy").write_bytes((tmp_path / "x" / "ids.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"x: this token cache can't be used") as caught:
        load_store(tmp_path / "x")
    assert "delete this folder" in str(caught.value)
    np.save(tmp_path / "x" / "ids.npy", np.zeros(5, np.int32))
    with pytest.raises(DataError, match=r"ids\.npy holds int32\[5\], expected int32\[6\]"):
        load_store(tmp_path / "x")
    with pytest.raises(DataError):
        load_store(tmp_path / "absent")


def test_a_save_that_is_killed_leaves_the_old_cache(store, tmp_path, monkeypatch):
    save_store(store, tmp_path / "x", key="old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_cache.json, "dump", killed)
    with pytest.raises(KeyboardInterrupt):
        save_store(store, tmp_path / "x", key="new")
    assert load_store(tmp_path / "x", key="old").num_tokens == 6


def test_the_key_changes_with_every_part():
    parts = {"data": "d", "tokenizer": "t", "template": "p", "policy": {"overflow": "error"}, "renderer_version": 1}
    keys = {cache_key(**parts)}
    for name in parts:
        keys.add(cache_key(**{**parts, name: "other"}))
    assert len(keys) == len(parts) + 1
    assert cache_key(**parts) == cache_key(**dict(reversed(parts.items())))
    with pytest.raises(TypeError):
        cache_key(data=object())


@given(
    groups=st.lists(
        st.lists(st.lists(st.tuples(st.integers(0, 65_535), st.sampled_from([0.0, 1.0, 0.5])), max_size=6), max_size=4),
        min_size=1,
        max_size=4,
    ),
    small=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_runs_take_and_joining_keep_every_token(tmp_path_factory, groups, small, data):
    """Stores written as one, joined in memory, and taken apart give each example's ids and weights back."""
    folder = tmp_path_factory.mktemp("stores")
    vocab = 65_536 if small else None
    examples = [
        [example([i for i, _ in e], [w for _, w in e], f"{place % 2}.jsonl", row) for row, e in enumerate(group)]
        for place, group in enumerate(groups)
    ]
    stores = [TokenStore.from_examples(group, vocab) for group in examples]
    save_stores([lambda store=store: store for store in stores], folder / "all")
    flat = [each for group in examples for each in group]
    order = data.draw(st.permutations(range(len(flat))))
    joined = concatenate(stores)
    for store, wanted in (
        (load_store(folder / "all"), flat),
        (joined, flat),
        (joined.take(np.array(order, dtype=np.int64)), [flat[place] for place in order]),
    ):
        assert store.keys == [each.key for each in wanted]
        assert store.ids.dtype == (np.uint16 if small else np.int32)
        for index, each in enumerate(wanted):
            ids, weights = store.example(index)
            assert ids.tolist() == each.ids.tolist() and weights.tolist() == each.weights.tolist()
            assert store.supervised(index) == each.num_supervised
            assert store.weight_sums[index] == each.weights[1:].sum()
        assert store.weights.tolist() == [w for each in wanted for w in each.weights.tolist()]
