"""Ascend NPUs as far as a machine without one can show: a stand-in for torch_npu registers the device, and no kernel.

What runs is which device is chosen, by which calls, in which dtype, and how ranks join and exchange float64; tensors
stay on the host. Training on an NPU has not been run.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from chatwright.errors import ModelError
from chatwright.runtime import compute_dtype, start_runtime

STAND_IN = """
import types, torch
from datetime import timedelta
import torch.distributed as dist

torch.utils.rename_privateuse1_backend("npu")  # as torch_npu does when it is imported
calls = []
module = types.ModuleType("npu")
module.is_available = lambda: True
module.device_count = lambda: 2
module.current_device = lambda: calls[-1] if calls else 0
module.set_device = lambda device: calls.append(torch.device(device).index)
module.is_bf16_supported = lambda: True
module.get_device_name = lambda device: "Ascend910B"
torch._register_device_module("npu", module)
asked = []

def hccl(store, rank, size, timeout):
    asked.append((rank, size))
    return dist.ProcessGroupGloo(store, rank, size, timeout)

dist.Backend.register_backend("hccl", hccl, devices=["npu"])
"""

ONE = """
from chatwright.runtime import available_devices, compute_dtype, determinism_tuple, start_runtime
assert available_devices()[0] == "npu", available_devices()
for name in ("auto", "npu"):
    runtime = start_runtime(name, threads=1)
    assert str(runtime.device) == "npu:0" and calls[-1] == 0
assert compute_dtype("auto", runtime.device) is torch.bfloat16
module.is_bf16_supported = lambda: False
assert compute_dtype("auto", runtime.device) is torch.float32
assert determinism_tuple(runtime)["device"] == "Ascend910B"
assert runtime.messenger.type == "cpu"
assert start_runtime("cpu").messenger.type == "cpu"
print("one is right")
"""

RANKS = """
from chatwright.runtime import start_runtime
runtime = start_runtime("npu", threads=1)
assert str(runtime.device) == f"npu:{runtime.rank}" and calls == [runtime.rank]
assert runtime.all_reduce_scalars([runtime.rank + 1 / 3, 0.5]) == [1 + 2 * (1 / 3), 1.0]
assert runtime.broadcast_object(f"from {runtime.rank}") == "from 0"
assert runtime.union({f"name {runtime.rank}"}) == ["name 0", "name 1"]
assert asked == [(runtime.rank, 2)] and "npu:hccl" in dist.get_backend_config(), (asked, dist.get_backend_config())
print("ranks are right")
runtime.close()
"""


def program(text: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STAND_IN) + textwrap.dedent(text)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def finished(*programs: subprocess.Popen[str]) -> list[str]:
    """What each printed; none is left behind."""
    try:
        return [each.communicate(timeout=240)[0] for each in programs]
    finally:
        for each in programs:
            each.kill()


def test_an_npu_is_taken_by_itself_or_by_name() -> None:
    (output,) = finished(program(ONE))
    assert "one is right" in output, output


@pytest.mark.slow
def test_npu_ranks_join_by_hccl_and_send_float64_over_the_host() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = finished(*(program(RANKS, RANK=rank, LOCAL_RANK=rank, **common) for rank in ("0", "1")))
    assert all("ranks are right" in output for output in outputs), "\n".join(outputs)


@pytest.mark.skipif(hasattr(torch, "npu"), reason="torch_npu is installed here")
def test_without_torch_npu_it_says_what_to_install() -> None:
    with pytest.raises(ModelError, match=r"'npu' needs torch_npu, which can't be loaded: (.|\n)*CANN"):
        start_runtime("npu")
    with pytest.raises(ModelError, match="npu has no float64"):
        compute_dtype("float64", _Npu())  # type: ignore[arg-type]


class _Npu:
    """A device as far as `compute_dtype` looks at it: torch knows no npu here."""

    type = "npu"
