"""float16's dynamic loss scale (Micikevicius et al. 2018, arXiv:1710.03740; constants of torch.amp.GradScaler)."""

from __future__ import annotations

FIRST_SCALE = 2.0**8
"""Lower than for mean losses (2¹⁶): ours are sums, so gradients are larger by the number of tokens."""
GROWTH_STEPS = 2000
SMALLEST_SCALE = 2.0**-14


class LossScale:
    """Doubles after 2,000 good steps, halves after an overflow; always 1 when not enabled.

    Attributes:
        scale: multiply the loss by it before the backward. good_steps: finite steps since it last changed.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = FIRST_SCALE if enabled else 1.0
        self.good_steps = 0

    @property
    def exhausted(self) -> bool:
        """Whether it can't get smaller: a gradient that is not finite now is no overflow."""
        return self.enabled and self.scale <= SMALLEST_SCALE

    def after_step(self, finite: bool) -> None:
        """Adjust the scale to whether the step's gradient was finite."""
        if not self.enabled:
            return
        if not finite:
            self.scale, self.good_steps = max(SMALLEST_SCALE, self.scale / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0
