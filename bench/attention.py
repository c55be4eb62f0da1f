"""Time attention kernels, and a whole forward + backward, for SmolLM2-135M shapes on this machine's CPU.

    python bench/attention.py            # one thread, CPU time: fit for a busy machine
    python bench/attention.py --threads 2 --wall

Prints the table that stands in `models/segment_attention.py` and what a step of hidden states costs beside its pure
matmuls. Every figure is the best of several runs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout
from chatwright.models.block_attention import block_attention
from chatwright.models.block_plan import plan_blocks
from chatwright.models.families import config_from_hf
from chatwright.models.segment_attention import Scores, attend_runs
from chatwright.models.weights import init_model

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 2048, 9, 3, 64
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def mixed_lengths(seed: int) -> list[int]:
    """Segments of 30 to 500 tokens, log-uniform, that fill one pack."""
    generator, lengths, left = random.Random(seed), [], TOKENS
    while left:
        length = min(left, int(2 ** generator.uniform(4.9, 8.97)))
        lengths.append(length)
        left -= length
    return lengths


def best_ms(run: Callable[[], object], clock: Callable[[], float], repeats: int = 7) -> float:
    """Milliseconds of the fastest run."""
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times) * 1e3


def time_kernels(lengths: list[int], clock: Callable[[], float]) -> list[float]:
    """Forward + backward of one layer: flash bf16, flash float32, blocks bf16; then flash bf16 forward alone."""
    layout, scores = SegmentLayout.from_lengths(lengths), Scores(HEAD_DIM**-0.5)

    def heads(dtype: torch.dtype) -> list[torch.Tensor]:
        shapes = [(TOKENS, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
        return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor) -> object:
        return torch.autograd.grad(attend_runs(q, k, v, layout, scores), (q, k, v), grad)

    def blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor) -> object:
        plan = plan_blocks(layout.lengths_q, HEADS, KV_HEADS, None)
        return torch.autograd.grad(block_attention(q, k, v, plan, scores.scale), (q, k, v), grad)

    half, single = heads(torch.bfloat16), heads(torch.float32)
    cases = [lambda: flash(*half), lambda: flash(*single), lambda: blocks(*half)]
    times = [best_ms(case, clock) for case in cases]
    with torch.no_grad():
        return [*times, best_ms(lambda: attend_runs(*half[:3], layout, scores), clock)]


def time_step(clock: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Milliseconds of forward and of forward + backward of the hidden states, bf16, mixed segments."""
    model = init_model(config_from_hf(SMOLLM2_135M), seed=0, dtype=torch.bfloat16)
    lengths = mixed_lengths(1)
    ids = torch.randint(0, SMOLLM2_135M["vocab_size"], (TOKENS,))
    positions = torch.cat([torch.arange(length) for length in lengths])
    layout = SegmentLayout.from_lengths(lengths)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        hidden, _ = model(ids, positions, layout)
        hidden.backward(torch.ones_like(hidden))

    forward = best_ms(lambda: model(ids, positions, layout), clock, repeats)
    return forward, best_ms(step, clock, repeats)


def time_matmuls(clock: Callable[[], float]) -> float:
    """Milliseconds of all the linear layers' products alone, forward + backward, over 30 layers."""
    total = 0.0
    for inputs, outputs in [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]:
        x, w, g = (torch.randn(shape).bfloat16() for shape in ((TOKENS, inputs), (outputs, inputs), (TOKENS, outputs)))
        total += best_ms(lambda x=x, w=w: F.linear(x, w), clock)
        total += best_ms(lambda g=g, w=w: g @ w, clock) + best_ms(lambda g=g, x=x: g.t() @ x, clock)
    return 30 * total


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time instead of this thread's CPU time")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the whole step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.wall or options.threads > 1 else time.thread_time
    print(f"torch {torch.__version__}, {options.threads} thread(s), T = {TOKENS}, ms a layer, forward + backward")
    print(f"{'segments':>20}  {'flash bf16':>10}  {'flash f32':>10}  {'blocks bf16':>11}  {'flash bf16 fwd':>14}")
    cases = {"mixed 30-500": mixed_lengths(1)}
    cases |= {f"{TOKENS // n} x {n}": [n] * (TOKENS // n) for n in (32, 64, 128, 256, 512, 1024)}
    for name, lengths in cases.items():
        flash, single, blocks, forward = time_kernels(lengths, clock)
        print(f"{name:>20}  {flash:10.1f}  {single:10.1f}  {blocks:11.1f}  {forward:14.1f}")
    matmuls = time_matmuls(clock)
    forward, both = time_step(clock, options.repeats)
    print(f"hidden states, 30 layers: forward {forward:.0f} ms, with backward {both:.0f} ms; matmuls {matmuls:.0f} ms")


if __name__ == "__main__":
    main()
