"""Tokens in a store: whole or not there; a store that fails costs a note and never a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from chatwright.preparation.remote_cache import MANIFEST, RemoteCache
from chatwright.recipes.data import prepare_text
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.tokens import RecipeTokens, find_tokens
from training_runs import conversations, recipe, write_rows


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A store in memory, and one in a folder."""
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket/tokens" if request.param == "memory" else f"file://{tmp_path}/store/tokens"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> RunSettings:
    return recipe(tiny_model, write_rows(tmp_path / "rows.jsonl", conversations(12)), tmp_path / "run")


def on_machine(
    name: str, settings: RunSettings, url: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any
) -> RecipeTokens:
    """The tokens as a machine with a cache of its own finds them."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "caches" / name))
    own = settings.model_copy(update={"preparation": settings.preparation.model_copy(update={"store": url})})
    text = prepare_text(own)
    return find_tokens(own, text.template, text.resolved.text_folder, **options)


def files(tokens: RecipeTokens) -> dict[str, bytes]:
    assert tokens.folder is not None
    return {str(p.relative_to(tokens.folder)): p.read_bytes() for p in tokens.folder.rglob("*") if p.is_file()}


def test_one_machine_makes_them_and_the_next_fetches_them(
    url: str, settings: RunSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store is no part of the key: what was made without one is put there when it is asked for."""
    plain = on_machine("a", settings, None, monkeypatch, tmp_path)
    assert plain.origin == "made" and not plain.uploaded
    kept = on_machine("a", settings, url, monkeypatch, tmp_path, upload_found=True)
    assert kept.origin == "cache" and kept.uploaded and kept.folder == plain.folder
    fetched = on_machine("b", settings, url, monkeypatch, tmp_path)
    assert fetched.origin == "store" and files(fetched) == files(plain)
    assert "fetching tokens from" in capsys.readouterr().err
    made = on_machine("c", settings, f"{url}2", monkeypatch, tmp_path)
    assert made.origin == "made" and made.uploaded
    assert on_machine("d", settings, f"{url}2", monkeypatch, tmp_path).origin == "store"


def test_half_an_upload_is_never_taken(
    url: str, settings: RunSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, root = fsspec.core.url_to_fs(url)
    original, put = type(store).put_file, []

    def dies(self: Any, *args: Any, **options: Any) -> Any:
        if len(put) == 5:
            raise OSError("the line is dead")
        put.append(original(self, *args, **options))

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", dies)
        cut = on_machine("a", settings, url, patch, tmp_path)
    assert cut.origin == "made" and not cut.uploaded, "the run goes on"
    assert "can't be put into" in capsys.readouterr().err
    assert len(store.find(root)) == 5
    other = on_machine("b", settings, url, monkeypatch, tmp_path)
    assert other.origin == "made" and other.uploaded, "and the next machine completes it"
    assert on_machine("c", settings, url, monkeypatch, tmp_path).origin == "store"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "manifest", "leads out"])
def test_a_damaged_store_is_repaired(
    damage: str,
    url: str,
    settings: RunSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = on_machine("a", settings, url, monkeypatch, tmp_path)
    store, root = fsspec.core.url_to_fs(f"{url}/{made.folder.name if made.folder else ''}")
    victim = f"{root}/train/ids.npy"
    content = store.cat_file(victim)
    if damage == "missing":
        store.rm_file(victim)
    elif damage == "manifest":
        store.pipe_file(f"{root}/{MANIFEST}", store.cat_file(f"{root}/{MANIFEST}")[:40])
    elif damage == "leads out":
        read = json.loads(store.cat_file(f"{root}/{MANIFEST}"))
        read["files"]["../../escaped"] = read["files"]["train/ids.npy"]
        store.pipe_file(f"{root}/{MANIFEST}", json.dumps(read).encode())
    else:
        store.pipe_file(victim, content[:-1] + b"\xff" if damage == "changed" else content[:-7])
    again = on_machine("b", settings, url, monkeypatch, tmp_path)
    assert again.origin == "made" and files(again) == files(made) and again.uploaded
    told = "so they are made here" in capsys.readouterr().err
    assert told == (damage in ("changed", "cut", "missing"))
    assert not list((tmp_path / "caches").rglob("escaped"))
    assert on_machine("c", settings, url, monkeypatch, tmp_path).origin == "store"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("refused://bucket/tokens", "can't be used as an address"),
        ("s3://bucket/tokens", "needs a driver that isn't installed"),
        ("memory://closed/tokens", "PermissionError"),
    ],
)
def test_a_store_that_fails_is_one_note_each_way(
    address: str,
    says: str,
    settings: RunSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def closed(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Forbidden")

    if address.startswith("memory"):
        for name in ("cat_file", "get_file", "put_file", "rm_file"):
            monkeypatch.setattr(MemoryFileSystem, name, closed)
    if address.startswith("s3"):
        monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    made = on_machine("a", settings, address, monkeypatch, tmp_path)
    assert made.origin == "made" and not made.uploaded and len(made.rendered.store) == 12
    told = [line for line in capsys.readouterr().err.splitlines() if says in line]
    assert len(told) == 2 and "fetched" in told[0] and "put into" in told[1]


def test_nothing_is_uploaded_twice(
    url: str, settings: RunSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = on_machine("a", settings, url, monkeypatch, tmp_path)
    assert made.folder is not None
    key = json.loads((made.folder / "train" / "meta.json").read_text())["key"]
    store, _ = fsspec.core.url_to_fs(url)
    monkeypatch.setattr(type(store), "put_file", lambda *_, **__: pytest.fail("put again"))
    assert RemoteCache(url, key).upload(made.folder)
