"""Where a run happens: device and dtype, ranks, and counter-based seeds.

World size 1 walks the same code as world size N: the same calls, without a process group behind them.
This module knows nothing of models, data or losses.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from chatwright.errors import ModelError

DeviceName = Literal["auto", "cpu", "cuda", "mps", "npu"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16", "float64"]
T = TypeVar("T")

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "cpu:gloo,npu:hccl"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Runtime:
    """This process among its ranks (`rank` of `world_size` over all machines, `local_rank` on this one)."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes files."""
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def all_reduce_scalars(self, values: Sequence[float]) -> list[float]:
        """The sums of `values` over all ranks, in float64, with one message."""
        if self.world_size == 1:
            return [float(value) for value in values]
        sums = torch.tensor(list(values), dtype=torch.float64, device=self.messenger)
        return [float(value) for value in self.all_reduce(sums).tolist()]

    @property
    def messenger(self) -> torch.device:
        """Where small messages are made: the device, or the host beside an NPU, whose HCCL has no float64."""
        return torch.device("cpu") if self.device.type == "npu" else self.device

    def union(self, names: set[str]) -> list[str]:
        """The names that any rank gives, sorted: the same list on every rank."""
        gathered: list[set[str]] = [names] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(gathered, names)
        return sorted(set().union(*gathered))

    def meeting(self) -> Callable[[set[str]], list[str]]:
        """A `union` for ranks that may come hours apart, as preparing data lets them: its group waits for a day.

        All ranks must ask for it. A rank that dies ends the others' waiting at once.
        """
        if self.world_size == 1:
            return self.union
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))

        def meet(names: set[str]) -> list[str]:
            gathered: list[set[str]] = [names] * self.world_size
            dist.all_gather_object(gathered, names, group=group)
            return sorted(set().union(*gathered))

        return meet

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value` (any picklable object) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.messenger)
        return box[0]

    def close(self) -> None:
        """Leave the process group; the other methods must not be called afterwards."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def available_devices() -> list[str]:
    """The kinds of device this installation of torch can compute on, the fastest first."""
    npu = getattr(torch, "npu", None)
    found = {"cuda": torch.cuda.is_available(), "npu": npu and npu.is_available()}
    found["mps"] = torch.backends.mps.is_available()
    return [name for name, present in found.items() if present] + ["cpu"]


def start_runtime(device: DeviceName = "auto", threads: int | None = None) -> Runtime:
    """Choose the device and, under torchrun (RANK, WORLD_SIZE, LOCAL_RANK in the environment), join the other ranks.

    Args:
        device: "auto" takes the fastest kind present.
        threads: CPU threads of this process; None leaves torch's own choice.

    Raises:
        ModelError: if the device isn't there, or can't be used with several ranks.
    """
    if device == "npu" and not hasattr(torch, "npu"):
        _load_torch_npu()
    kinds = available_devices()
    kind = kinds[0] if device == "auto" else device
    if kind not in kinds:
        raise ModelError(
            f"{kind!r} isn't available here; available: {', '.join(kinds)}",
            place="device",
            hint="use `--set train.device=auto`, or install a torch build for that device",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _rank_device(kind, local_rank)
    if world_size > 1 and not dist.is_initialized():
        _join_ranks(kind, place)
    return Runtime(device=place, rank=rank, local_rank=local_rank, world_size=world_size)


def _load_torch_npu() -> None:
    """Load Ascend's backend where torch hasn't done so by itself (TORCH_DEVICE_BACKEND_AUTOLOAD=0)."""
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"'npu' needs torch_npu, which can't be loaded: {error}",
            place="device",
            hint="install Ascend's CANN and the torch_npu of this torch version, or use `--set train.device=auto`",
        ) from None


def _rank_device(kind: str, local_rank: int) -> torch.device:
    if kind not in ("cuda", "npu"):
        return torch.device(kind)
    module = getattr(torch, kind)
    if local_rank >= module.device_count():
        raise ModelError(
            f"LOCAL_RANK is {local_rank}, but this machine has {module.device_count()} {kind} devices",
            place="device",
            hint=f"start torchrun with --nproc-per-node={module.device_count()}",
        )
    device = torch.device(kind, local_rank)
    module.set_device(device)
    return device


def _join_ranks(kind: str, device: torch.device) -> None:
    if kind not in _BACKENDS:
        raise ModelError(
            f"{kind!r} can't be used with several ranks", place="device", hint="run without torchrun, or use device=cpu"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ModelError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {' and '.join(missing)} is not set",
            place="environment",
            hint="start the ranks with `torchrun --nproc-per-node=N -m chatwright …`, or unset WORLD_SIZE",
        )
    dist.init_process_group(_BACKENDS[kind], device_id=device if kind == "cuda" else None)


def seed_for(seed: int, *counters: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on `seed` and the counters alone: the same on every machine and version.

    `seed_for(seed, "dropout", step, pack)`: nothing about random state ever needs to be saved.
    """
    text = json.dumps([seed, *counters], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def compute_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: "auto" is bfloat16 where the device multiplies it natively.

    Otherwise float16 on CUDA (needs the loss scaler), float32 elsewhere.

    Raises:
        ModelError: for an unknown name, or float64 on a device without it.
    """
    if name == "auto":
        if _multiplies_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ModelError(f"unknown dtype {name!r}", place="dtype", hint=f"one of auto, {', '.join(_DTYPES)}")
    if name == "float64" and device.type in ("mps", "npu"):
        raise ModelError(f"{device.type} has no float64", place="dtype", hint="use device=cpu or dtype=float32")
    return _DTYPES[name]


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Natively, that is: torch emulates bfloat16 nearly everywhere, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type != "cpu":
        supported = getattr(getattr(torch, device.type), "is_bf16_supported", None)
        return supported is not None and bool(supported())
    if platform.machine().lower() in ("x86_64", "amd64"):
        # _is_mkldnn_bf16_supported() is also True for AVX-512 without bf16 instructions
        checks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
        return any(check is not None and check() for check in checks)
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def determinism_tuple(runtime: Runtime) -> dict[str, Any]:
    """All that the bits of a run depend on besides its recipe: two equal tuples promise equal bits."""
    return {
        "device": _device_name(runtime.device),
        "ranks": runtime.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _device_name(device: torch.device) -> str:
    if device.type in ("cuda", "npu"):
        return str(getattr(torch, device.type).get_device_name(device))
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{device.type} {name} {torch.backends.cpu.get_cpu_capability()}"
