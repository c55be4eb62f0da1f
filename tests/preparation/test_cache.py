"""Locks that let one in at a time, and what ended preparations leave behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from chatwright.preparation.cache import STALE_DAYS, only_one, sweep


def test_a_lock_lets_one_in_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    """Each remove their lock file while others wait for it; an error frees it as well."""
    pytest.importorskip("fcntl")
    inside, most = 0, 0

    def work(name: int) -> None:
        nonlocal inside, most
        for turn in range(20):
            try:
                with only_one(tmp_path / "key"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.0005 * (name + turn % 3))
                    inside -= 1
                    if turn % 5 == name:
                        raise ValueError
            except ValueError:
                continue

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_what_was_left_long_ago_is_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    names = ["old.shards", "new.shards", "old.crew-shards", ".old.tmp-1-a", "tokens"]
    for name in names:
        (tmp_path / name / "entry-000-shard-00000").mkdir(parents=True)
    locks = [tmp_path / f".{name}.lock" for name in ("old", "new", "held")]
    for lock in locks:
        lock.touch()
    long_ago = time.time() - (STALE_DAYS + 1) * 86400
    with only_one(tmp_path / "held"):
        for path in (*tmp_path.rglob("*"), *tmp_path.iterdir()):
            if "new" not in str(path):
                os.utime(path, (long_ago, long_ago))
        sweep(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == [".held.lock", ".new.lock", "new.shards", "tokens"]
