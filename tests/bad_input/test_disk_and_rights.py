"""What only the system can refuse: a full disk, files and folders without the right to read or write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_case import GOOD, GOOD_LINE, RECIPE

from tiny_model import make_tiny_model

NOBODY = 65534
LIMIT = 20_000
RUN = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, user = int(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from chatwright.cli.main import main
command = sys.argv[3:]
if user:  # once as root: what Python loads late may lie where only root may read
    sys.argv = ["chatwright", *["warm.jsonl" if word == "out.jsonl" else word for word in command]]
    try:
        main()
    except SystemExit:
        pass
    os.unlink("warm.jsonl")
    os.seteuid(user)
sys.argv = ["chatwright", *command]
main()
"""


def run(folder: Path, *command: str, limit: int = 0, user: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with files of at most `limit` bytes, or as another user."""
    environment = {**os.environ, "CHATWRIGHT_CACHE": str(folder / "cache"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", RUN, str(limit), str(user), *command]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def files_in(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")


@needs_root
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_bytes(GOOD_LINE)
    (tmp_path / "secret.jsonl").chmod(0)
    tmp_path.chmod(0o777)
    done = run(tmp_path, "convert", "secret.jsonl", "out.jsonl", "--to", "messages", user=NOBODY)
    assert done.returncode == 2 and "secret.jsonl" in done.stderr and "Permission denied" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and files_in(tmp_path) == ["secret.jsonl"]


@needs_root
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.jsonl").write_bytes(GOOD_LINE)
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o777)
    for source in ("closed", "closed/a.jsonl", "closed/*.jsonl"):
        done = run(tmp_path, "convert", source, "out.jsonl", "--to", "messages", user=NOBODY)
        assert done.returncode == 2 and "closed" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert files_in(tmp_path) == ["closed/a.jsonl"]


@needs_root
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE)
    tmp_path.chmod(0o755)
    done = run(tmp_path, "convert", "a.jsonl", "out.jsonl", "--to", "messages", user=NOBODY)
    assert done.returncode == 2 and "out.jsonl" in done.stderr and "Permission denied" in done.stderr, done.stderr
    assert files_in(tmp_path) == ["a.jsonl"]


def test_a_disk_that_is_full_while_caching_leaves_no_half_cache(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    rows = [json.dumps(GOOD).replace('"b"', json.dumps(f"{number} " * 40)) for number in range(600)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE % "rows.jsonl", encoding="utf-8")
    before = files_in(tmp_path)
    done = run(tmp_path, "plan", "recipe.yaml", limit=LIMIT)
    assert "Traceback" not in done.stderr, done.stderr
    assert "cache" in done.stderr and ("large" in done.stderr or "space" in done.stderr), done.stderr
    assert done.returncode in (0, 2)
    assert files_in(tmp_path) == before
    again = run(tmp_path, "plan", "recipe.yaml")
    assert again.returncode == 0, again.stderr


def test_the_installed_command_ends_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(GOOD_LINE + b"{oops\n")
    done = run(tmp_path, "convert", "bad.jsonl", "out.parquet", "--to", "sharegpt")
    assert done.returncode == 2 and "bad.jsonl, row 1" in done.stderr and "Traceback" not in done.stderr
    assert files_in(tmp_path) == ["bad.jsonl"]
