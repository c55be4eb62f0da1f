"""Time and memory of the loss: naive logits against `weighted_nll`, by chunk size.

    python bench/loss.py --rows 1500 --vocab 49152 --hidden 576 --dtype bfloat16 --threads 2

Prints a Markdown table: milliseconds for loss and all gradients (best of the repeats; wall, and CPU time summed over
threads), memory above the inputs, and the relative error of the head's gradient against float32.

Seen with bf16, N = 1,500, V = 49,152, D = 576, torch 2.13, on a 2-core AMX machine shared with other jobs (only the
comparison counts, not the times):

| form | ms | CPU ms | MiB above the inputs | gradient error |
|---|---|---|---|---|
| naive | 1134 | 1134 | 866 | 1.3e-03 |
| 32 MiB chunks | 968 | 964 | 221 | 1.3e-03 |
| 64 MiB chunks | 877 | 859 | 260 | 1.3e-03 |
| 128 MiB chunks | 815 | 812 | 323 | 1.3e-03 |

Where the time goes, seen alone on both cores with 256 rows a chunk (ms a chunk): logits in bf16 11 (true float32 60),
copy to float32 1.5, softmax and loss in place about 6 (`logsumexp` alone 21, `softmax(dtype=float32)` of bf16 30),
gradient of the hidden states 13, gradient of the weight added in float32 by a bf16-mode product 21 (a bf16 product
plus an addition to the float32 sum 53).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.models.output_head import OutputHead

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_problem(options: argparse.Namespace, dtype: torch.dtype) -> Problem:
    """Hidden states, head weight, targets and weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.rows, options.hidden, generator=generator)
    weight = torch.randn(options.vocab, options.hidden, generator=generator) * 0.05
    targets = torch.randint(0, options.vocab, (options.rows,), generator=generator)
    tensors = [t.to(torch.bfloat16).to(options.device, dtype).requires_grad_() for t in (hidden, weight)]
    return tensors[0], tensors[1], targets.to(options.device), torch.ones(options.rows, device=options.device)


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The whole logits, then a float32 cross-entropy: what most trainers do."""
    logits = F.linear(hidden, weight).float()
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure(options: argparse.Namespace, chunk_mib: int | None) -> tuple[float, float, float, torch.Tensor]:
    """Wall and CPU milliseconds, MiB above the inputs and the head's gradient; `chunk_mib` None is the naive form."""
    torch.set_num_threads(options.threads)
    problem = make_problem(options, getattr(torch, options.dtype))

    def chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        assert chunk_mib is not None
        return weighted_nll(hidden, OutputHead(weight), targets, w, chunk_bytes=chunk_mib * 2**20).total

    loss: Callable[..., torch.Tensor] = naive if chunk_mib is None else chunked
    _forget_peak(options.device)
    before = _memory(options.device)
    times, cpu_times = [], []
    for _ in range(options.repeats + 1):
        problem[0].grad = problem[1].grad = None
        synchronize(options.device)
        began, cpu_began = time.perf_counter(), time.process_time()
        loss(*problem).backward()
        synchronize(options.device)
        times.append(time.perf_counter() - began)
        cpu_times.append(time.process_time() - cpu_began)
    grad = problem[1].grad
    assert grad is not None
    peak = (_memory(options.device) - before) / 2**20
    return min(times[1:]) * 1e3, min(cpu_times[1:]) * 1e3, peak, grad.float().cpu()


def _forget_peak(device: str) -> None:
    """Start measuring peak memory anew, where the system can."""
    peak = Path("/proc/self/clear_refs")
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif peak.exists():
        peak.write_text("5")


def _memory(device: str) -> float:
    """The peak so far, in bytes (on Linux of this process alone, without what its parent had)."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        return next(float(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure every form in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rows", 1500), ("vocab", 49152), ("hidden", 576), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunks", type=int, nargs="*", default=[16, 32, 64, 128, 256])
    options = parser.parse_args()
    exact = make_problem(argparse.Namespace(**{**vars(options), "device": "cpu"}), torch.float32)
    naive(*exact).backward()
    expected = exact[1].grad
    assert expected is not None
    print("| form | ms | CPU ms | MiB above the inputs | gradient error |\n|---|---|---|---|---|")
    for chunk in [None, *options.chunks]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            wall, cpu, mib, grad = pool.submit(measure, options, chunk).result()
        name = "naive" if chunk is None else f"{chunk} MiB chunks"
        error = (grad - expected).norm() / expected.norm()
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {mib:.0f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
