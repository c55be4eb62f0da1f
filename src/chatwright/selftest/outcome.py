"""What a law's check says: the figure that was measured, in which norm, against which bound, or why it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch


class Status(StrEnum):
    """How a law fared."""

    HOLDS = "holds"
    BROKEN = "broken"
    WAIVED = "waived"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class LawOutcome:
    """One row of the selftest.

    Args:
        name: the law. measured: what was compared with what.
        figure: the result, in `norm`; the law holds where it is at most `bound`. None where nothing was measured.
        status: see `Status`. detail: where it is worst, what failed first, or the reason of a waiver.
    """

    name: str
    measured: str
    figure: float | None
    norm: str
    bound: float | None
    status: Status
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is not finite becomes text."""
        row = asdict(self)
        row["status"] = str(self.status)
        if self.figure is not None and not _is_finite(self.figure):
            row["figure"] = str(self.figure)
        return row


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def judged(name: str, measured: str, figure: float, norm: str, bound: float, detail: str = "") -> LawOutcome:
    """An outcome that holds where `figure` ≤ `bound` (and is a number)."""
    status = Status.HOLDS if figure <= bound else Status.BROKEN
    return LawOutcome(name, measured, float(figure), norm, bound, status, detail)


def waived(name: str, measured: str, reason: str) -> LawOutcome:
    """A law that can't be checked here; the reason is printed."""
    return LawOutcome(name, measured, None, "", None, Status.WAIVED, reason)


def not_applicable(name: str, measured: str, reason: str) -> LawOutcome:
    """A law about something that the recipe doesn't have."""
    return LawOutcome(name, measured, None, "", None, Status.NOT_APPLICABLE, reason)


def stopped(name: str, reason: str) -> LawOutcome:
    """A law that is broken because the program itself refused to go on."""
    return LawOutcome(name, "stopped by an error", None, "", None, Status.BROKEN, reason)


def bound_for(dtype: torch.dtype, single: float, double: float) -> float:
    """The bound in the dtype that is computed in: `double` for float64, else `single`."""
    return double if dtype == torch.float64 else single


NEGLIGIBLE = 1e-6
"""A tensor's norm counts as at least this share of all tensors' norm: below it, only rounding is left."""


def worst_relative(
    names: Sequence[str], expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> tuple[float, str]:
    """The largest ‖found − expected‖₂ ÷ ‖expected‖₂ of any tensor, and that tensor's name."""
    norms = [_norm(tensor) for tensor in expected]
    floor = NEGLIGIBLE * sum(norm**2 for norm in norms) ** 0.5
    worst, where = 0.0, ""
    for name, norm, one, other in zip(names, norms, expected, found, strict=True):
        difference = _norm(other.to(one.dtype) - one)
        if difference != difference:
            return difference, name
        size = max(norm, floor)
        error = difference / size if size else (float("inf") if difference else 0.0)
        if error >= worst:
            worst, where = error, name
    return worst, where


def _norm(tensor: torch.Tensor) -> float:
    exact = tensor.dtype if tensor.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=exact))
