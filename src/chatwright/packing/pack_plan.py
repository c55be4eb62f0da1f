"""What a packing plan is: which examples share a pack, which packs share a step. Numpy only.

A plan knows example numbers and lengths; it refuses to know tokens, texts, ranks and devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from chatwright.settings import Settings


class PackingSettings(Settings):
    """How examples are put together into packs (micro-batches) and steps (optimizer updates)."""

    by: Literal["tokens", "examples", "constant_length"] = Field(
        "tokens",
        description="tokens: full packs, packs_per_step of them a step; examples: examples_per_step a step; "
        "constant_length: one stream cut every tokens_per_pack tokens, whose conversations see each other (a baseline)",
    )
    tokens_per_pack: int = Field(2048, gt=0, description="most tokens in one pack, and so in one micro-batch")
    packs_per_step: int = Field(1, gt=0, description="packs a step over all ranks; not used by `examples`")
    examples_per_step: int = Field(8, gt=0, description="conversations a step over all ranks; used by `examples`")
    window: int = Field(1000, gt=0, description="examples packed together; used by `tokens`")
    last_step: Literal["keep", "drop"] = Field(
        "keep",
        description="drop leaves out an incomplete step: the run's last by `tokens`, each epoch's last by `examples`",
    )
    shuffle: bool = Field(True, description="False keeps the order of the data, for comparisons with other systems")

    @property
    def exact(self) -> bool:
        """Whether a pack's gradient is the sum of its conversations', none of which sees another."""
        return self.by != "constant_length"


class EpochPacks(NamedTuple):
    """One epoch as a planner makes it. A unit is what a step can't split: a pack, or a step's examples.

    Example: packs {4, 1} and {0}, each a unit: members [4, 1, 0], pack_starts [0, 2, 3], unit_starts [0, 1, 2].

    Args:
        members: int64 `[M]`, example numbers, pack after pack.
        pack_starts: int64 `[P+1]`, where each pack begins in `members`.
        unit_starts: int64 `[U+1]`, where each unit begins among the packs.
    """

    members: np.ndarray
    pack_starts: np.ndarray
    unit_starts: np.ndarray

    @property
    def num_units(self) -> int:
        """U, the number of units."""
        return len(self.unit_starts) - 1

    def first(self, units: int) -> EpochPacks:
        """The first `units` units."""
        unit_starts = self.unit_starts[: units + 1]
        pack_starts = self.pack_starts[: unit_starts[-1] + 1]
        return EpochPacks(self.members[: pack_starts[-1]], pack_starts, unit_starts)


class Unplaced(NamedTuple):
    """Examples that are in no pack, and why.

    Args:
        epoch: the epoch that drew them, counted from 0; None where no epoch of the run did.
        reason: one phrase for the ledger.
        examples: int64 `[n]`, example numbers; one that was drawn twice may be there twice.
    """

    epoch: int | None
    reason: str
    examples: np.ndarray


class PackWaste(NamedTuple):
    """How full the packs are.

    Args:
        num_packs: P. num_examples: M, over all epochs.
        placed_tokens: tokens in packs. capacity_tokens: P · tokens_per_pack.
        thinnest: tokens in the emptiest pack.
    """

    num_packs: int
    num_examples: int
    placed_tokens: int
    capacity_tokens: int
    thinnest: int

    @property
    def fraction(self) -> float:
        """The part of the capacity that stays empty, 0 to 1."""
        return 1.0 - self.placed_tokens / self.capacity_tokens if self.capacity_tokens else 0.0


def count_draws(placed: Iterable[np.ndarray], unplaced: Iterable[Unplaced], num_examples: int) -> np.ndarray:
    """int64 `[num_examples]`, how often each was drawn: `placed` (arrays of members), or listed for an epoch."""
    counts = np.zeros(num_examples, dtype=np.int64)
    for examples in chain(placed, (each.examples for each in unplaced if each.epoch is not None)):
        counts += np.bincount(examples, minlength=num_examples)
    return counts


@dataclass(frozen=True, slots=True)
class PackPlan:
    """A whole run's packs and steps: P packs in S steps.

    Example: members [4, 1, 0], pack_starts [0, 2, 3], step_starts [0, 2]: one step of the packs {4, 1} and {0}.

    Args:
        members: int64 `[M]`, example numbers, pack after pack, all epochs.
        pack_starts: int64 `[P+1]`, where each pack begins in `members`.
        step_starts: int64 `[S+1]`, where each step begins among the packs.
        epoch_of_pack: int64 `[P]`, counted from 0.
        unplaced: what is in no pack, with reasons, an entry an epoch (or source) and reason.
        num_examples: how many examples the plan was made for.
        tokens_per_pack: the capacity no pack exceeds.
        joined: a pack is one segment, in which its members see each other; never exact.
    """

    members: np.ndarray
    pack_starts: np.ndarray
    step_starts: np.ndarray
    epoch_of_pack: np.ndarray
    unplaced: tuple[Unplaced, ...]
    num_examples: int
    tokens_per_pack: int
    joined: bool = False

    @property
    def num_steps(self) -> int:
        """S, the number of steps."""
        return len(self.step_starts) - 1

    @property
    def num_packs(self) -> int:
        """P, the number of packs."""
        return len(self.pack_starts) - 1

    @property
    def num_epochs(self) -> int:
        """Epochs begun: those that have a pack, or lost all of theirs with an incomplete step."""
        lost = (each.epoch for each in self.unplaced if each.epoch is not None)
        return 1 + max((int(self.epoch_of_pack[-1]) if len(self.epoch_of_pack) else -1), *lost, -1)

    @property
    def placed(self) -> np.ndarray:
        """int64 `[num_examples]`, in how many packs each example is."""
        return np.bincount(self.members, minlength=self.num_examples)

    @property
    def draws(self) -> np.ndarray:
        """int64 `[num_examples]`, how often the begun epochs drew each example, whether it was placed or not."""
        return count_draws([self.members], self.unplaced, self.num_examples)

    @property
    def usable(self) -> np.ndarray:
        """bool `[num_examples]`: those that the plan could draw from, drawn or not."""
        found = self.draws > 0
        for each in self.unplaced:
            found[each.examples] = True
        return found

    def pack(self, index: int) -> np.ndarray:
        """int64 `[n]`, the examples of one pack."""
        return self.members[self.pack_starts[index] : self.pack_starts[index + 1]]

    def packs_of_step(self, step: int) -> list[np.ndarray]:
        """The packs of a step, each int64 `[n]` of example numbers."""
        self._check_step(step)
        return [self.pack(index) for index in range(self.step_starts[step], self.step_starts[step + 1])]

    def examples_of_step(self, step: int) -> np.ndarray:
        """int64 `[n]`, all examples of a step, over all its packs."""
        self._check_step(step)
        first, last = self.pack_starts[self.step_starts[step : step + 2]]
        return self.members[first:last]

    def step_sums(self, values: np.ndarray) -> np.ndarray:
        """Sum a per-example value (such as tokens or supervised tokens, `[num_examples]`) over each step: `[S]`."""
        self._check_values(values)
        ends = np.concatenate([[0], np.cumsum(values[self.members])])
        return np.diff(ends[self.pack_starts[self.step_starts]])

    def progress(self, values: np.ndarray) -> np.ndarray:
        """float64 `[S+1]`: the fraction of all `values` that is done before each step, 0 first and 1 last.

        With supervised tokens as values this is the horizon that a learning-rate schedule runs over.
        """
        done = np.concatenate([[0.0], np.cumsum(self.step_sums(values), dtype=np.float64)])
        return done / done[-1] if done[-1] > 0 else np.linspace(0.0, 1.0, len(done))

    def waste(self, lengths: np.ndarray) -> PackWaste:
        """How full the packs are, for examples of these lengths (int `[num_examples]`, tokens)."""
        self._check_values(lengths)
        tokens = np.diff(np.concatenate([[0], np.cumsum(lengths[self.members])])[self.pack_starts])
        return PackWaste(
            num_packs=self.num_packs,
            num_examples=len(self.members),
            placed_tokens=int(tokens.sum()),
            capacity_tokens=self.num_packs * self.tokens_per_pack,
            thinnest=int(tokens.min(initial=self.tokens_per_pack)),
        )

    def fingerprint(self) -> str:
        """sha256 of the plan: equal fingerprints mean that a step number names the same examples."""
        digest = hashlib.sha256()
        for array in (self.members, self.pack_starts, self.step_starts):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        if self.joined:
            digest.update(b"joined")
        return digest.hexdigest()

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of a plan with {self.num_steps} steps")

    def _check_values(self, values: np.ndarray) -> None:
        if len(values) != self.num_examples:
            raise ValueError(f"{len(values)} values for a plan of {self.num_examples} examples")
