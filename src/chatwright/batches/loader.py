"""Steps of batches for one rank, made ahead in the background: a pure function of (store, plan, step).

The resume state is therefore one integer, the next step. Every rank runs the same number of
micro-batches and knows the whole step's sums without asking the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from chatwright.batches.collate import Collate, collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.batches.token_store import TokenStore
from chatwright.packing.pack_plan import PackPlan
from chatwright.templates.rendered import ExampleKey

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepBatches:
    """One rank's micro-batches of one step, with the sums of the whole step over all ranks.

    Args:
        step: counted from 0.
        epoch: the epoch of the step's first pack.
        packs: this rank's micro-batches, equally many on every rank.
        weight: Σ weight of the step's supervised tokens on all ranks: the divisor.
        supervised_tokens: how many they are, on all ranks.
        num_tokens: tokens of the step on all ranks, padding not counted.
        num_examples: examples of the step on all ranks.
        keys: their names, in the plan's order.
        left_out: the part of `weight` whose tokens are in no pack, since their gradient is known to be zero.
        metrics: name → (sum, weight), what is known of the step before it is trained, over all ranks.
        seconds: how long the training waited for it.
    """

    step: int
    epoch: int
    packs: list[PackedBatch]
    weight: float
    supervised_tokens: int
    num_tokens: int
    num_examples: int
    keys: tuple[ExampleKey, ...]
    left_out: float = 0.0
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0


FAST_MULTIPLE = 32
"""CPU matrix products of an odd number of rows can take twice the time (measured: T = 2,047 against 2,048)."""


def step_batches(
    store: TokenStore,
    plan: PackPlan,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    pad_to: int | None = None,
    pad_multiple: int = 1,
    collate_with: Collate | None = None,
) -> StepBatches:
    """Make a rank's batches of one step on the CPU.

    Rank r takes packs r, r + W, r + 2W …; where others still have one and it hasn't, it gets a dummy.

    Args:
        store: the tokenized examples the plan was made for.
        plan: packs and steps. step: 0 … `plan.num_steps` − 1.
        rank: 0 … W − 1. world_size: W.
        pad_to: tokens every pack is filled up to, or None.
        pad_multiple: without `pad_to`, every pack is filled up to a multiple of this.
        collate_with: makes the batches; None: `collate`.
    """

    def padded(members: np.ndarray) -> int:
        tokens = int((store.offsets[members + 1] - store.offsets[members]).sum())
        return max(1, -(-tokens // pad_multiple)) * pad_multiple

    make = partial(collate, joined=True) if plan.joined else collate_with or collate
    packs = plan.packs_of_step(step)
    examples = plan.examples_of_step(step)
    rounds = -(-len(packs) // world_size)
    mine = [
        packs[place] if place < len(packs) else examples[:0] for place in range(rank, rounds * world_size, world_size)
    ]
    return StepBatches(
        step=step,
        epoch=int(plan.epoch_of_pack[plan.step_starts[step]]),
        packs=[make(store, members, pad_to=pad_to or padded(members)) for members in mine],
        weight=float(store.weight_sums[examples].sum()),
        supervised_tokens=int(store.supervised_counts[examples].sum()),
        num_tokens=int((store.offsets[examples + 1] - store.offsets[examples]).sum()),
        num_examples=len(examples),
        keys=tuple(store.key(int(index)) for index in examples),
    )


class StepLoader:
    """Iterate over a plan's steps from `start_step` on; iterating again starts there again.

    Args:
        store: the tokenized examples the plan was made for.
        plan: packs and steps.
        rank: 0 … world_size − 1. world_size: number of ranks.
        device: where the batches go; copies to CUDA go through pinned memory and don't wait.
        start_step: the first step to give: all that a resumed run needs.
        prefetch: steps made ahead by one background thread; 0 makes each when it is asked for.
        pad_to: tokens every pack is filled up to, or None.
        pad_multiple: without `pad_to`, every pack is filled up to a multiple of this.
        collate_with: makes the batches; None: `collate`.

    Raises:
        ValueError: when the plan was made for another store, or rank, prefetch or start_step make no sense.
    """

    def __init__(
        self,
        store: TokenStore,
        plan: PackPlan,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        start_step: int = 0,
        prefetch: int = 2,
        pad_to: int | None = None,
        pad_multiple: int = 1,
        collate_with: Collate | None = None,
    ) -> None:
        if plan.num_examples != len(store):
            raise ValueError(f"a plan for {plan.num_examples} examples, but a store of {len(store)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if not 0 <= start_step <= plan.num_steps:
            raise ValueError(f"start_step {start_step} of a plan with {plan.num_steps} steps")
        if prefetch < 0:
            raise ValueError(f"prefetch {prefetch} is negative")
        self.store, self.plan = store, plan
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.start_step, self.prefetch = start_step, prefetch
        self.pad_to, self.pad_multiple, self.collate_with = pad_to, pad_multiple, collate_with

    def __len__(self) -> int:
        """Steps from `start_step` to the end."""
        return self.plan.num_steps - self.start_step

    def __iter__(self) -> Iterator[StepBatches]:
        """Give the steps in order. An error in the background is raised here, at its step; leaving early stops it."""
        steps = range(self.start_step, self.plan.num_steps)
        for batches in made_ahead(self._make, steps, self.prefetch):
            yield on_device(batches, self.device)

    def _make(self, step: int) -> StepBatches:
        filled = (self.pad_to, self.pad_multiple, self.collate_with)
        batches = step_batches(self.store, self.plan, step, self.rank, self.world_size, *filled)
        return pinned_for(batches, self.device)


def made_ahead(make: Callable[[int], T], steps: range, prefetch: int) -> Iterator[T]:
    """What `make` gives for each step in order, made by one background thread, `prefetch` steps ahead.

    An error is raised here, at its step; leaving early stops the thread.
    """
    waiting: deque[Future[T]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chatwright-loader")
    try:
        for step in steps:
            waiting.append(thread.submit(make, step))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def on_device(batches: StepBatches, device: torch.device) -> StepBatches:
    """The step with its packs on a device."""
    return replace(batches, packs=[pack.to(device) for pack in batches.packs])


def pinned_for(batches: StepBatches, device: torch.device) -> StepBatches:
    """The step with its packs in page-locked memory where the device is a CUDA GPU."""
    if device.type != "cuda":
        return batches
    return replace(batches, packs=[_pinned(pack) for pack in batches.packs])


def _pinned(batch: PackedBatch) -> PackedBatch:
    """The batch in page-locked memory, from where copies to the GPU don't wait."""
    tensors: dict[str, Any] = {
        each.name: getattr(batch, each.name).pin_memory()
        for each in fields(batch)
        if isinstance(getattr(batch, each.name), torch.Tensor)
    }
    layout = batch.layout
    cu_q = layout.cu_q.pin_memory()
    cu_k = cu_q if layout.cu_k is layout.cu_q else layout.cu_k.pin_memory()
    gather = None if layout.kv_gather is None else layout.kv_gather.pin_memory()
    return replace(batch, layout=replace(layout, cu_q=cu_q, cu_k=cu_k, kv_gather=gather), **tensors)
