"""Makes this folder importable for the tests below it, and gives them one tiny model and a token cache of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatwright.console import err, out
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # for tiny tensors more threads only wait for each other
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_consoles() -> None:
    """A console remembers how wide the terminal was when it was made, which an earlier test may have set."""
    out.cache_clear()
    err.cache_clear()
