"""How long a run's arithmetic takes on given devices, by the share of their peak that training reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatwright.errors import ConfigError

DEFAULT_MFU = 0.4
"""A usual share for one machine of GPUs (PaLM, Chowdhery et al. 2022, table 3, reports 0.21 to 0.46)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Devices that train.

    Args:
        device_tflops: peak of one device in 10¹² FLOP/s, in the precision that trains: 989 for an H100 SXM, 312 for an
            A100 (bfloat16, dense, as their maker says).
        devices: how many. mfu: model FLOPs utilization, the share of the peak that is reached, 0 to 1.
    """

    device_tflops: float
    devices: int = 1
    mfu: float = DEFAULT_MFU

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.device_tflops < float("inf"):
            problems.append(f"--device-tflops: must be a positive number (found {self.device_tflops:g})")
        if self.devices < 1:
            problems.append(f"--devices: must be at least 1 (found {self.devices})")
        if not 0 < self.mfu <= 1:
            problems.append(f"--mfu: a share of the peak, above 0 and at most 1, such as 0.4 (found {self.mfu:g})")
        if problems:
            raise ConfigError(problems, source="hardware")

    def hours(self, flops: float) -> float:
        """Hours that so many FLOPs take on all devices together."""
        return flops / (self.device_tflops * 1e12 * self.devices * self.mfu) / 3600

    def account(self, flops: float | None) -> dict[str, Any]:
        """The devices and the hours as plain values; hours are None where the FLOPs aren't known."""
        hours = None if flops is None else self.hours(flops)
        return {
            "device_tflops": self.device_tflops,
            "devices": self.devices,
            "mfu": self.mfu,
            "hours": hours,
            "device_hours": None if hours is None else hours * self.devices,
        }

    def told(self, flops: float | None) -> str:
        """The same in words."""
        on = f"on {self.devices} × {self.device_tflops:g} TFLOP/s at {self.mfu:.0%} of that"
        if flops is None:
            return f"unknown {on}, since the compute is"
        hours = self.hours(flops)
        together = f" ({hours * self.devices:,.4g} device-hours)" if self.devices > 1 else ""
        return f"{_duration(hours)} {on}{together}"


def named_hardware(device_tflops: float | None, devices: int | None, mfu: float | None) -> Hardware | None:
    """The devices that a command's options name; None where they name none.

    Raises:
        ConfigError: how many or how well used is said, but not how fast; or a figure is impossible.
    """
    if device_tflops is None:
        given = [name for name, value in (("--devices", devices), ("--mfu", mfu)) if value is not None]
        if given:
            hint = "give --device-tflops too, the peak of one device, such as 989 for an H100"
            raise ConfigError([f"{' and '.join(given)}: no hours without the devices' speed; {hint}"], source="plan")
        return None
    return Hardware(device_tflops, 1 if devices is None else devices, DEFAULT_MFU if mfu is None else mfu)


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:,.3g} minutes"
    return f"{hours:,.3g} hours" if hours < 100 else f"{hours:,.0f} hours ({hours / 24:,.1f} days)"
