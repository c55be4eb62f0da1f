"""The token store and its cache: same arrays back, never half a cache, stale keys refused."""

from __future__ import annotations

import numpy as np
import pytest

from chatwright.batches import token_cache
from chatwright.batches.token_cache import TokenStore, cache_key
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
    saved.save(tmp_path / "cache" / "x", key="k")
    saved.save(tmp_path / "cache" / "x", key="k")  # replacing is fine
    loaded = TokenStore.load(tmp_path / "cache" / "x", key="k")
    assert loaded.keys == saved.keys and loaded.sources == saved.sources
    for name in ("ids", "weights", "offsets", "supervised_counts", "weight_sums"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    assert isinstance(loaded.ids, np.memmap) and not loaded.ids.flags.writeable
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["x"], "nothing is left lying aside"


def test_a_cache_of_another_key_is_refused(store, tmp_path):
    store.save(tmp_path / "x", key="k")
    with pytest.raises(DataError, match="other data, tokenizer, template or settings"):
        TokenStore.load(tmp_path / "x", key="other")


def test_a_damaged_cache_is_named(store, tmp_path):
    store.save(tmp_path / "x")
    (tmp_path / "x" / "ids.npy").write_bytes((tmp_path / "x" / "ids.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"x: this token cache can't be used") as caught:
        TokenStore.load(tmp_path / "x")
    assert "delete this folder" in str(caught.value)
    np.save(tmp_path / "x" / "ids.npy", np.zeros(5, np.int32))
    with pytest.raises(DataError, match=r"ids\.npy holds int32\[5\], expected int32\[6\]"):
        TokenStore.load(tmp_path / "x")
    with pytest.raises(DataError):
        TokenStore.load(tmp_path / "absent")


def test_a_save_that_is_killed_leaves_the_old_cache(store, tmp_path, monkeypatch):
    store.save(tmp_path / "x", key="old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_cache.json, "dump", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(tmp_path / "x", key="new")
    assert TokenStore.load(tmp_path / "x", key="old").num_tokens == 6


def test_the_key_changes_with_every_part():
    parts = {"data": "d", "tokenizer": "t", "template": "p", "policy": {"overflow": "error"}, "renderer_version": 1}
    keys = {cache_key(**parts)}
    for name in parts:
        keys.add(cache_key(**{**parts, name: "other"}))
    assert len(keys) == len(parts) + 1
    assert cache_key(**parts) == cache_key(**dict(reversed(parts.items())))
    with pytest.raises(TypeError):
        cache_key(data=object())
