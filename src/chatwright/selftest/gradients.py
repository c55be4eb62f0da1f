"""Laws of the gradient: packing, splitting and chunking change nothing but the last bits.

Gradients are compared in float64. In float32 the rounding of a real model hides small defects: with SmolLM2-135M a
plain program is 1.3e-4 away from the true gradient of some tensors, and ours 5e-5; in float64 they agree to 1e-13.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from chatwright.layouts import SegmentLayout
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.models.moe import EXPERT_COUNTS, ROUTER_PROBS
from chatwright.models.output_head import OutputHead
from chatwright.optim.flat_gradients import FlatGradients, flat_views
from chatwright.runtime import Runtime
from chatwright.selftest.context import Context, reference_dtype
from chatwright.selftest.outcome import LawOutcome, bound_for, judged, waived, worst_relative
from chatwright.selftest.plain_pairs import PlainPairs
from chatwright.train.objectives import next_token_nll
from chatwright.train.parallel import prepare_module
from chatwright.train.step import accumulate_step

NORM = "relative L2, worst tensor"


class SimulatedRank(Runtime):
    """One of several ranks, run one after the other in this process: its sums stay its own."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave `tensor` as it is; the gradients of all ranks gather in one buffer."""
        return tensor

    def union(self, names: set[str]) -> list[str]:
        """This rank's names alone."""
        return sorted(names)


class GradientMeter:
    """Gradients of one step of the context's examples, divided once by the step's weight."""

    def __init__(self, context: Context) -> None:
        self.context = context
        trainable = context.setup.trainable
        self.names = list(trainable)
        self.buffer = FlatGradients(list(trainable.values()))
        pairs = context.sample.pairs
        self.members = list(context.sample.members if pairs is None else context.sample.pair_members)
        self.lengths = [int(context.sample.run_data.store.lengths[member]) for member in self.members]
        self.plain_pairs = None if pairs is None else PlainPairs(context.settings, pairs)
        objective = next_token_nll if self.plain_pairs is None else self.plain_pairs.objective
        self.module = prepare_module(context.model, objective, context.settings.train, context.runtime).eval()

    def of_step(self, groups: list[list[int]], world_size: int = 1, pad_to: int | None = None) -> torch.Tensor:
        """The flat gradient as training makes it, the packs `groups` dealt to `world_size` ranks."""
        self.buffer.zero()
        weight = 0.0
        for rank in range(world_size):
            step = self.context.step(groups, rank, world_size, pad_to, as_trained=True)
            runtime = SimulatedRank(self.context.runtime.device, rank, rank, world_size)
            weight += accumulate_step(self.module, step, runtime, seed=self.context.settings.train.seed).weight
        return self.buffer.flat / weight

    def one_by_one(self) -> torch.Tensor:
        """The flat gradient of a plain program: each example alone, whole logits, its own shift; no batch."""
        self.buffer.zero()
        model, total = self.context.model, 0.0
        if self.plain_pairs is not None:
            for member in self.members:
                self.plain_pairs.loss(model, member, self.context.runtime.device).backward()  # type: ignore[no-untyped-call]
            return self.buffer.flat / len(self.members)
        for member in self.members:
            ids, weights = (torch.tensor(array) for array in self.context.sample.data.store.example(member))
            x = ids.long().to(self.context.runtime.device)
            layout = SegmentLayout.from_lengths([len(x)], device=x.device)
            hidden, aux = model(x, torch.arange(len(x), device=x.device), layout)
            logits = model.output_head().logits(hidden)  # type: ignore[operator]
            losses = F.cross_entropy(logits[:-1], x[1:], reduction="none")
            weight = float(weights[1:].double().sum())
            loss = (losses * weights[1:].to(losses)).sum() + weight * plain_load_balance(model, aux, len(x))
            loss.backward()  # type: ignore[no-untyped-call]
            total += weight
        return self.buffer.flat / total

    def error(self, expected: torch.Tensor, found: torch.Tensor) -> tuple[float, str]:
        """The largest relative L2 error of a parameter, and its name."""
        parameters = self.buffer.parameters
        return worst_relative(self.names, flat_views(expected, parameters), flat_views(found, parameters))


def plain_load_balance(model: Any, aux: dict[str, torch.Tensor], tokens: int) -> torch.Tensor | float:
    """The weighted load-balance loss of one example by its definition; 0 for a dense model."""
    if EXPERT_COUNTS not in aux:
        return 0.0
    moe, layers = model.config.moe, zip(aux[EXPERT_COUNTS][:, 0], aux[ROUTER_PROBS][:, 0], strict=True)
    loss: torch.Tensor = sum(
        moe.num_experts * (counts / (moe.experts_per_token * tokens)) @ (probs / tokens) for counts, probs in layers
    )
    return moe.aux_loss_weight * moe.aux_scale * loss


def gradient_laws(context: Context) -> list[LawOutcome]:
    """Packed = one by one; and any split of the step into micro-batches and ranks = one pack."""
    moe = getattr(context.model.config, "moe", None)
    if moe is not None and moe.aux_loss_weight and not moe.aux_per_segment:
        reason = "moe.exact is false: the load-balance loss is of all that a pack holds"
        return [waived(name, "the gradient of a step, cut otherwise", reason) for name in ("packing", "splits")]
    if moe is not None and moe.aux_loss_weight and context.sample.pairs is not None:
        reason = (
            "of pairs the load-balance loss counts a shared prompt once; set moe.aux_loss_weight=0 to check the rest"
        )
        return [waived(name, "the gradient of a step, cut otherwise", reason) for name in ("packing", "splits")]
    with context.in_double() as dtype:
        return _gradient_laws(context, bound_for(dtype, 1e-3, 1e-10), str(dtype).removeprefix("torch."))


def _gradient_laws(context: Context, bound: float, dtype: str) -> list[LawOutcome]:
    meter = GradientMeter(context)
    members = meter.members
    try:
        packed = meter.of_step([members])
        error, where = meter.error(meter.one_by_one(), packed)
        words = "examples" if meter.plain_pairs is None else "pairs"
        detail = f"{len(members)} {words}, {sum(meter.lengths)} tokens, {dtype}; worst: {where}"
        outcomes = [judged("packing", "packed gradient = one-by-one gradient", error, NORM, bound, detail)]
        worst, detail = -1.0, ""
        for name, groups, ranks, pad in splits(members, meter.lengths, full=context.full):
            error, where = meter.error(packed, meter.of_step(groups, ranks, pad))
            if not error <= worst:
                worst, detail = error, f"worst: {name}, {where}"
        measured = "any split of a step, divided once = one pack"
        return [*outcomes, judged("splits", measured, worst, NORM, bound, detail)]
    finally:
        meter.buffer.close()


Split = tuple[str, list[list[int]], int, int | None]


def splits(members: list[int], lengths: list[int], *, full: bool) -> list[Split]:
    """Ways to cut a step: (name, packs, ranks, tokens every pack is filled up to); `lengths`: tokens of each member."""
    single = [[member] for member in members]
    third = max(1, -(-len(members) // 3))
    uneven = [members[first : first + third] for first in range(0, len(members), third)]
    found: list[Split] = [("one example a pack", single, 1, None), ("2 ranks, uneven packs", uneven, 2, None)]
    if full:
        pairs = [members[first : first + 2] for first in range(0, len(members), 2)]
        longest = 2 * max(lengths)
        found += [("3 ranks", single, 3, None), ("pairs filled up with padding", pairs, 1, longest)]
        found += [("more ranks than packs", [members], 2, None)]
    return found


def chunked_loss_law(context: Context) -> list[LawOutcome]:
    """`weighted_nll` in chunks = cross-entropy of whole logits in float64 with its own shift: value and gradients."""
    batch = context.packed()
    with torch.no_grad():
        hidden, _ = context.model(batch.input_ids, batch.position_ids, batch.layout)
        head: OutputHead = context.model.output_head()  # type: ignore[operator]
    h1, head1, leaves1 = _leaves(hidden, head, hidden.dtype)
    h2, head2, leaves2 = _leaves(hidden, head, reference_dtype(hidden.device))
    rows = len(batch.targets)
    # three quarters of the buffers of the low-precision or capped case would still make two chunks
    budget = max(1, rows // 4) * head.weight.shape[0] * hidden.element_size()
    chunked = weighted_nll(h1[batch.supervised_index], head1, batch.targets, batch.weights, chunk_bytes=budget).total
    chunked.backward()  # type: ignore[no-untyped-call]
    naive = _naive_loss(context, h2, head2)
    naive.backward()  # type: ignore[no-untyped-call]
    value = abs(float(chunked.detach()) - float(naive.detach())) / max(abs(float(naive.detach())), 1e-12)
    names = list(leaves1)
    error, where = worst_relative(names, [leaves2[n] for n in names], [leaves1[n] for n in names])
    detail = f"{rows} rows of {head.weight.shape[0]:,} logits; value {value:.1e}, gradient {error:.1e} ({where})"
    bound = bound_for(context.dtype, 1e-5, 1e-12)
    figure = value if value != value else max(value, error)
    return [judged("chunked loss", "chunked loss = naive cross-entropy", figure, "relative, worst", bound, detail)]


def _leaves(
    hidden: torch.Tensor, head: OutputHead, dtype: torch.dtype
) -> tuple[torch.Tensor, OutputHead, dict[str, torch.Tensor]]:
    """Hidden states and head as leaves that get gradients of their own; the gradients by name come as a live view."""
    h = hidden.detach().to(dtype, copy=True).requires_grad_()
    parts = {"weight": head.weight, "bias": head.bias, "row_weights": head.row_weights}
    fresh: dict[str, Any] = {
        n: part.detach().to(dtype).requires_grad_() for n, part in parts.items() if part is not None
    }
    for leaf in (h, *fresh.values()):
        leaf.grad = torch.zeros_like(leaf)
    grads = {name: leaf.grad for name, leaf in {"hidden states": h, **fresh}.items() if leaf.grad is not None}
    return h, replace(head, **fresh), grads


def _naive_loss(context: Context, hidden: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """Σ weight · cross-entropy over whole logits, the labels shifted here."""
    logits = head.logits(hidden)  # [T, V]
    total, start = logits.new_zeros(()), 0
    for member in context.sample.members:
        ids, weights = (
            torch.tensor(array, device=hidden.device) for array in context.sample.data.store.example(member)
        )
        mine = logits[start : start + len(ids) - 1]
        total = total + (F.cross_entropy(mine, ids[1:].long(), reduction="none") * weights[1:].to(mine)).sum()
        start += len(ids)
    return total
