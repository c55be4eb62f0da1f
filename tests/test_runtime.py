"""Runtime: ranks, seeds, dtypes; the run folder after kills."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from chatwright.errors import CheckpointError, ModelError, UserError
from chatwright.run_folder import RunFolder
from chatwright.runtime import (
    Runtime,
    available_devices,
    compute_dtype,
    determinism_tuple,
    seed_for,
    start_runtime,
)

CPU = torch.device("cpu")


def test_one_rank_walks_the_same_calls() -> None:
    runtime = start_runtime("cpu")
    tensor = torch.tensor([1.0, 2.0])
    assert runtime.all_reduce(tensor) is tensor
    assert runtime.all_reduce_scalars([1, 2.5]) == [1.0, 2.5]
    assert runtime.broadcast_object({"a": 1}) == {"a": 1}
    runtime.barrier()
    runtime.close()
    assert runtime.is_main and runtime.device == CPU


@pytest.mark.skipif("cuda" in available_devices(), reason="cuda is available here")
def test_a_missing_device_is_named_with_what_is_there() -> None:
    with pytest.raises(ModelError, match=r"'cuda' isn't available here; available: .*cpu"):
        start_runtime("cuda")


def test_world_size_without_torchrun_says_what_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ModelError, match="torchrun"):
        start_runtime("cpu")


RANK_PROGRAM = """
import sys, torch
from chatwright.errors import UserError
from chatwright.run_folder import RunFolder
from chatwright.runtime import start_runtime
runtime = start_runtime("cpu", threads=1)
tensor = torch.full((3,), float(runtime.rank + 1))
runtime.all_reduce(tensor)
assert tensor.tolist() == [3.0] * 3, tensor
assert runtime.all_reduce_scalars([runtime.rank, 0.5]) == [1.0, 1.0]
assert runtime.broadcast_object(f"from {runtime.rank}") == "from 0"
run = RunFolder.create(sys.argv[1], "seed: 1\\n", ranks=runtime)
run.append_metrics({"step": 1, "rank": runtime.rank})
runtime.barrier()
assert [record["rank"] for record in run.read_metrics()] == [0]
try:
    RunFolder.create(sys.argv[1], "seed: 1\\n", ranks=runtime)
except UserError:
    print("refused on every rank")
runtime.close()
"""


def test_two_gloo_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", textwrap.dedent(RANK_PROGRAM), str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in ("0", "1")
    ]
    outputs = [rank.communicate(timeout=60)[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert all("refused on every rank" in output for output in outputs)


def test_seeds_are_stable_and_differ() -> None:
    assert seed_for(1, "dropout", 7, 0) == 862583411715947366
    seeds = {seed_for(seed, step, pack) for seed in range(4) for step in range(20) for pack in range(20)}
    assert len(seeds) == 4 * 20 * 20 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(1, 23) != seed_for(12, 3) and seed_for(1, "2") != seed_for(1, 2)


def test_compute_dtype() -> None:
    assert compute_dtype("float64", CPU) is torch.float64
    assert compute_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    with pytest.raises(ModelError, match="mps has no float64"):
        compute_dtype("float64", torch.device("mps"))
    with pytest.raises(ModelError, match="'bf16'"):
        compute_dtype("bf16", CPU)  # type: ignore[arg-type]


def test_determinism_tuple_is_json_and_repeats() -> None:
    first = determinism_tuple(Runtime(CPU))
    assert first == json.loads(json.dumps(determinism_tuple(Runtime(CPU))))
    assert first["ranks"] == 1 and first["device"].startswith("cpu ")


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "new" / "run", "seed: 1\n")
    assert run.recipe_text == "seed: 1\n" and [path.name for path in run.path.iterdir()] == ["recipe.yaml"]
    with pytest.raises(UserError, match=r"--resume.*--set out="):
        RunFolder.create(run.path, "seed: 2\n")
    assert RunFolder.create(run.path, "seed: 2\n", resume=True).recipe_text == "seed: 1\n"
    with pytest.raises(UserError, match="is a file"):
        RunFolder.create(run.path / "recipe.yaml", "seed: 1\n")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml"):
        _ = RunFolder(tmp_path).recipe_text


def test_truncation_drops_later_steps_and_half_lines(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "seed: 1\n")
    for step in range(1, 6):
        run.append_metrics({"step": step, "loss": torch.tensor(0.5), "bad": float("nan")})
        run.append_trace({"step": step})
    run.append_metrics({"event": "no step"})
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert len(run.read_metrics()) == 6
    assert run.truncate_after(3) == 3 + 2
    assert [record.get("step") for record in run.read_metrics()] == [1, 2, 3, None]
    assert run.read_metrics()[0] == {"step": 1, "loss": 0.5, "bad": None}
    run.append_metrics({"step": 4})
    run.sync()
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b'{"event": "no step"}\n{"step": 4}\n')
    assert (tmp_path / "trace.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert run.truncate_after(4) == 0 and sorted(path.name for path in tmp_path.iterdir())[0] == "metrics.jsonl"


def test_a_damaged_middle_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        RunFolder(tmp_path).read_metrics()
    assert RunFolder(tmp_path).truncate_after(9) == 1
