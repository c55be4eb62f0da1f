"""A run that begins with the optimizer state of its parent: moments and momentum by name.

What is taken, and how steps count:
- a tensor of the same name, shape and dtype is taken whole;
- one that has more rows here (a vocabulary that grew) is taken and ends in rows of zeros;
- a parameter that lacks any of its tensors there begins at zero with all of them;
- Adam's correction for moments that began at zero goes on from the parent's count of steps, and counts from nothing
  for those that begin at zero; so does the rise of Muon's momentum, which is over where the parent's was;
- the schedule is the run's own: its count of steps has nothing to do with this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from chatwright.errors import CheckpointError

_COUNTERS = ("step", "loss_scale")
_LATE = "began."


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a warm start found, by parameter name.

    Args:
        step: updates that the parent had made.
        taken: with all their tensors. grown: those of them that got rows of zeros.
        late: begin at zero, since the parent has nothing that fits. unused: the parent's that aren't trained here.
    """

    step: int
    taken: tuple[str, ...]
    grown: tuple[str, ...]
    late: tuple[str, ...]
    unused: tuple[str, ...]

    def in_words(self) -> str:
        """One line that names what did not fit."""
        parts = [f"{len(self.taken)} parameters go on from the parent's state of step {self.step:,}"]
        kinds = {"got new rows": self.grown, "begin at zero": self.late, "of the parent aren't trained": self.unused}
        parts += [f"{len(names)} {what} ({_some(names)})" for what, names in kinds.items() if names]
        return "; ".join(parts)


def take_over(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> WarmStart:
    """Copy what fits from the parent's state into the fresh state of a new run (all zeros).

    Args:
        targets: `<kind>.<parameter>` → tensor, changed in place. sources: the parent's, with its counters.

    Raises:
        CheckpointError: there is no count of steps, or nothing fits.
    """
    if "step" not in sources:
        raise CheckpointError("the parent's optimizer state has no 'step'", hint="set optimizer.warm_start=false")
    kinds: dict[str, list[str]] = {}
    for key in targets:
        kinds.setdefault(_parameter(key), []).append(key)
    taken, grown, late = [], [], []
    for name, keys in kinds.items():
        if not all(key in sources and _fits(targets[key], sources[key]) for key in keys):
            late.append(name)
            continue
        taken.append(name)
        if any(targets[key].shape != sources[key].shape for key in keys):
            grown.append(name)
        for key in keys:
            rows = targets[key] if name not in grown else targets[key][: len(sources[key])]
            rows.copy_(sources[key])
    if not taken:
        raise CheckpointError(
            "the parent's optimizer state fits no parameter that is trained here",
            hint="use the optimizer that the parent was trained with, or set optimizer.warm_start=false",
        )
    theirs = {_parameter(key) for key in sources if key not in _COUNTERS and not key.startswith(_LATE)}
    unused = sorted(theirs - set(kinds))
    return WarmStart(int(sources["step"]), tuple(taken), tuple(grown), tuple(late), tuple(unused))


def _parameter(key: str) -> str:
    return key.partition(".")[2]


def _fits(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Equal, or the target has more rows; blocks of 8-bit moments lie flat and can't grow."""
    if target.dtype != source.dtype or target.ndim != source.ndim:
        return False
    if target.shape == source.shape:
        return True
    whole_rows = target.is_floating_point() and target.ndim == 2 and target.shape[1:] == source.shape[1:]
    return whole_rows and len(target) > len(source)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
