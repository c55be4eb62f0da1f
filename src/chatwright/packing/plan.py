"""Plan a run's packs and steps: a pure function of lengths, settings, seed, mixture and epochs.

Each example that an epoch draws is in exactly one pack, or listed in `PackPlan.unplaced` with a reason.
It always ends: an epoch that can't fill one pack is an error, and every other adds at least one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from chatwright.errors import DataError
from chatwright.packing.by_examples import PackByExamples
from chatwright.packing.by_tokens import PackByTokens
from chatwright.packing.constant_length import PackConstantLength
from chatwright.packing.mixture import Mixture
from chatwright.packing.pack_plan import EpochPacks, PackingSettings, PackPlan, PackWaste, Unplaced, count_draws

__all__ = ["PLANNERS", "PackPlan", "PackWaste", "PackingSettings", "Planner", "Unplaced", "plan_packs"]

NO_TOKENS = "has no tokens"
AFTER_THE_END = "after the last planned step"
INCOMPLETE = "in an incomplete step (packing.last_step: drop)"


class Planner(Protocol):
    """Makes the packs of one epoch; steps are `units_per_step` consecutive units."""

    def units_per_step(self, settings: PackingSettings) -> int:
        """How many units make a step."""

    def whole_units(self, epoch: EpochPacks, settings: PackingSettings) -> int:
        """How many of an epoch's units come before its incomplete last step, if a step ends with the epoch."""

    def pack_epoch(
        self, lengths: np.ndarray, groups: Sequence[np.ndarray], settings: PackingSettings, seed: int, epoch: int
    ) -> EpochPacks:
        """Place each example of `groups` in exactly one pack, a group after the other.

        Args:
            groups: at least one, each int64 `[m]`, m > 0, numbers into `lengths`; a number may be there many times.
        """


PLANNERS: dict[str, Planner] = {
    "tokens": PackByTokens(),
    "examples": PackByExamples(),
    "constant_length": PackConstantLength(),
}


def plan_packs(
    lengths: np.ndarray,
    settings: PackingSettings,
    *,
    seed: int,
    epochs: float | None = None,
    max_steps: int | None = None,
    name_of: Callable[[int], str] = "example {}".format,
    mixture: Mixture | None = None,
) -> PackPlan:
    """Plan which examples each step trains on.

    Args:
        lengths: int `[n]`, tokens of each example.
        settings: capacity, step size and planner.
        seed: with the epoch's number, all that the random order depends on.
        epochs: how often to go through the data; 0.5 is the first half of an epoch's units, rounded up
            (as the Hugging Face trainer rounds). None: as often as `max_steps` needs.
        max_steps: the most steps; with `epochs` too, whichever ends first.
        name_of: the user's name for an example number, for messages.
        mixture: says which examples each epoch draws, and in which groups; None: each example once, as one group.

    Raises:
        DataError: when there is nothing to train on, not one whole step, or an example is longer than a pack.
        ValueError: when neither `epochs` nor `max_steps` is given, or one isn't positive.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    everything = np.arange(len(lengths), dtype=np.int64) if mixture is None else mixture.examples
    _check_horizon(epochs, max_steps)
    _check_lengths(lengths, everything, settings, name_of)
    planner = PLANNERS[settings.by]
    per_step = planner.units_per_step(settings)

    chosen: list[EpochPacks] = []
    unplaced: list[Unplaced] = []
    units_left = math.inf if max_steps is None else max_steps * per_step
    for epoch, fraction in enumerate(_epoch_fractions(epochs)):
        if units_left <= 0:
            break
        groups, empty = _with_tokens([everything] if mixture is None else mixture.epoch_groups(epoch), lengths)
        drawn = planner.pack_epoch(lengths, groups, settings, seed, epoch)
        whole = drawn if settings.last_step == "keep" else drawn.first(planner.whole_units(drawn, settings))
        if not whole.num_units:
            raise _no_whole_step(len(drawn.members), "examples an epoch", settings)
        # the tiny allowance keeps 1.1 epochs of 10 units at 11: 0.1 isn't exact in binary
        taken = whole.first(int(min(math.ceil(fraction * whole.num_units - 1e-9), units_left)))
        units_left -= taken.num_units
        chosen.append(taken)
        rest = np.sort(drawn.members[len(taken.members) :])
        why = AFTER_THE_END if taken.num_units < whole.num_units or settings.last_step == "keep" else INCOMPLETE
        unplaced += [Unplaced(epoch, why, who) for why, who in ((NO_TOKENS, empty), (why, rest)) if len(who)]
    if settings.last_step == "drop":
        unplaced += _drop_incomplete(chosen, per_step, settings)
    if mixture is not None:
        draws = count_draws((each.members for each in chosen), unplaced, len(lengths))
        unplaced += [Unplaced(None, why, who) for why, who in mixture.not_drawn(draws)]
    return _join(chosen, per_step, tuple(unplaced), len(lengths), settings)


def _with_tokens(groups: list[np.ndarray], lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The groups without the examples that have no tokens, and those."""
    full = [group[lengths[group] > 0] for group in groups]
    empty = np.sort(np.concatenate([group[lengths[group] == 0] for group in groups]))
    kept = [group for group in full if len(group)]
    if not kept:
        raise _nothing_to_train_on(len(empty))
    return kept, empty


def _drop_incomplete(chosen: list[EpochPacks], per_step: int, settings: PackingSettings) -> list[Unplaced]:
    """Take the units of an incomplete last step off the ends of `chosen`; they may come from several epochs."""
    num_units = sum(epoch.num_units for epoch in chosen)
    if num_units < per_step:
        raise _no_whole_step(num_units, "packs in all", settings)
    left = num_units % per_step
    dropped: list[Unplaced] = []
    for epoch in reversed(range(len(chosen))):
        whole, cut = chosen[epoch], min(left, chosen[epoch].num_units)
        if not cut:
            break
        chosen[epoch] = whole.first(whole.num_units - cut)
        dropped.append(Unplaced(epoch, INCOMPLETE, np.sort(whole.members[len(chosen[epoch].members) :])))
        left -= cut
    return dropped[::-1]


def _epoch_fractions(epochs: float | None) -> Iterator[float]:
    """1.0 for each whole epoch, then what is left; without end for None."""
    left = math.inf if epochs is None else float(epochs)
    while left > 1e-9:
        yield min(left, 1.0)
        left -= 1.0


def _join(
    epochs: list[EpochPacks],
    per_step: int,
    unplaced: tuple[Unplaced, ...],
    num_examples: int,
    settings: PackingSettings,
) -> PackPlan:
    """Chain epochs and cut the chain of units into steps; the last step may have fewer."""
    pack_starts = _chain([epoch.pack_starts for epoch in epochs])
    unit_starts = _chain([epoch.unit_starts for epoch in epochs])
    step_starts = unit_starts[::per_step]
    if step_starts[-1] != unit_starts[-1]:
        step_starts = np.append(step_starts, unit_starts[-1])
    return PackPlan(
        members=np.concatenate([epoch.members for epoch in epochs]),
        pack_starts=pack_starts,
        step_starts=step_starts.copy(),
        epoch_of_pack=np.repeat(np.arange(len(epochs)), [len(epoch.pack_starts) - 1 for epoch in epochs]),
        unplaced=unplaced,
        num_examples=num_examples,
        tokens_per_pack=settings.tokens_per_pack,
        joined=not settings.exact,
    )


def _chain(starts: list[np.ndarray]) -> np.ndarray:
    """Chain start lists: [0, 2, 3] and [0, 1] → [0, 2, 3, 4]."""
    sizes = [np.diff(each) for each in starts]
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


def _check_horizon(epochs: float | None, max_steps: int | None) -> None:
    if epochs is None and max_steps is None:
        raise ValueError("give epochs, max_steps or both")
    if epochs is not None and not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be positive, found {epochs}")
    if max_steps is not None and max_steps <= 0:
        raise ValueError(f"max_steps must be positive, found {max_steps}")


def _check_lengths(
    lengths: np.ndarray, everything: np.ndarray, settings: PackingSettings, name_of: Callable[[int], str]
) -> None:
    if lengths.ndim != 1 or lengths.min(initial=0) < 0:
        raise ValueError("lengths must be one row of non-negative numbers")
    if not (lengths[everything] > 0).any():
        raise _nothing_to_train_on(len(everything))
    too_long = np.flatnonzero(lengths > settings.tokens_per_pack)
    if len(too_long):
        longest = too_long[np.argsort(-lengths[too_long], kind="stable")][:5]
        named = ", ".join(f"{name_of(int(index))} ({lengths[index]:,} tokens)" for index in longest)
        raise DataError(
            f"{len(too_long):,} of {len(lengths):,} examples are longer than a pack of "
            f"{settings.tokens_per_pack:,} tokens; the longest: {named}",
            source="training data",
            hint=f"set packing.tokens_per_pack to {lengths.max()} or more, or lower max_tokens, where overflow says "
            "what becomes of longer examples",
        )


def _nothing_to_train_on(count: int) -> DataError:
    return DataError(
        f"there is nothing to train on: {count} examples, none with a token",
        source="training data",
        hint="look at the ledger of `chatwright inspect`: it says where the rows went",
    )


def _no_whole_step(count: int, unit: str, settings: PackingSettings) -> DataError:
    field = "examples_per_step" if settings.by == "examples" else "packs_per_step"
    return DataError(
        f"there is not one whole step: {count:,} {unit}, and a step has {getattr(settings, field):,}",
        source="training data",
        hint=f"set packing.last_step: keep, or a smaller packing.{field}",
    )
