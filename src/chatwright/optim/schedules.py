"""Learning-rate schedules as pure functions of progress: the fraction of the plan's supervised tokens.

Progress counts tokens, not rows or micro-batches, so packing and splitting can't move the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from chatwright.optim.settings import ScheduleSettings


def lr_multiplier(
    settings: ScheduleSettings,
    progress: float,
    *,
    progress_after: float | None = None,
    warmup: float | None = None,
) -> float:
    """The factor on the learning rate for one step.

    Args:
        settings: the schedule.
        progress: what was done before this step, in [0, 1].
        progress_after: what will be done after it; warmup counts it, so that the first step moves. Default: `progress`.
        warmup: end of the warmup as progress; default `settings.warmup_fraction` (`multipliers` turns steps into it).
    """
    after = progress if progress_after is None else progress_after
    end = settings.warmup_fraction if warmup is None else warmup
    if progress < end:
        return _shape(settings, 0.0) * min(1.0, after / end)
    at = progress if settings.counted_from == "start" else after
    return _shape(settings, min(1.0, max(0.0, (at - end) / (1.0 - end))) if end < 1.0 else 1.0)


def _shape(settings: ScheduleSettings, x: float) -> float:
    """The multiplier at x in [0, 1] of what follows the warmup."""
    return SHAPES[settings.name](x, settings)


def _wsd(x: float, settings: ScheduleSettings) -> float:
    left = (1.0 - x) / settings.decay_fraction
    return settings.min_ratio + (1.0 - settings.min_ratio) * min(1.0, left)


SHAPES: dict[str, Callable[[float, ScheduleSettings], float]] = {
    "constant": lambda x, s: 1.0,
    "linear": lambda x, s: s.min_ratio + (1.0 - s.min_ratio) * (1.0 - x),
    "cosine": lambda x, s: s.min_ratio + (1.0 - s.min_ratio) * 0.5 * (1.0 + math.cos(math.pi * x)),
    "wsd": _wsd,
    "minimind_cosine": lambda x, s: 0.1 + 0.45 * (1.0 + math.cos(math.pi * x)),
    "minimind_notebook_cosine": lambda x, s: 0.1 + 0.5 * (1.0 + math.cos(math.pi * x)),
}


def multipliers(settings: ScheduleSettings, step_weights: Sequence[float]) -> list[float]:
    """The multiplier of every planned step.

    Example: five equal steps of `minimind_notebook_cosine` with `counted_from="end"` and a learning rate of 5e-4
    give 0.00050225, 0.00037725, 0.00022275, 0.00009775, 0.00005.

    Args:
        settings: the schedule.
        step_weights: supervised tokens (or summed weight) of each step.

    Raises:
        ValueError: if the weights don't add up to more than 0.
    """
    if not step_weights:
        return []
    total = math.fsum(step_weights)
    if not total > 0:
        raise ValueError(f"the plan's steps weigh {total} in all; there is nothing to train on")
    ends = [min(1.0, done / total) for done in accumulate(step_weights)]
    starts = [0.0, *ends[:-1]]
    warmup = settings.warmup_fraction
    if settings.warmup_steps is not None:
        warmup = ends[min(settings.warmup_steps, len(ends)) - 1]
    return [
        lr_multiplier(settings, start, progress_after=end, warmup=warmup)
        for start, end in zip(starts, ends, strict=True)
    ]
