"""The update rules behind `MasterOptimizer`: torch's fused AdamW, bitsandbytes' in 8 bits, Muon beside AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch

from chatwright.errors import UserError
from chatwright.optim.flat_gradients import FlatGradients
from chatwright.optim.muon import Muon
from chatwright.optim.param_groups import MUON, ParamGroup
from chatwright.optim.settings import MuonSettings, OptimizerSettings
from chatwright.runtime import Runtime

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
DIVIDING_DEVICES = ("cpu", "cuda")
"""Where the fused kernel divides by `grad_scale`; the one for MPS takes it and ignores it."""


class Update(Protocol):
    """One update rule over all masters."""

    def apply(self, gradients: FlatGradients, lr_multiplier: float, divisor: float) -> None:
        """Update every master with its gradient ÷ `divisor`."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state's tensors by `<kind>.<parameter name>`, live (copying into them changes the state)."""

    def set_step(self, step: int, began: Mapping[str, int]) -> None:
        """Continue as after `step` updates; `began`: name → the step at which that parameter's moments began."""


class AdamWUpdate:
    """`torch.optim.AdamW(fused=True)`; the fused kernel also divides the gradient, which saves a pass over it."""

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        masters: Mapping[str, torch.Tensor],
        settings: OptimizerSettings,
        runtime: Runtime,
    ) -> None:
        self.groups, self.masters = tuple(groups), dict(masters)
        device = next(iter(self.masters.values())).device
        self.optimizer = torch.optim.AdamW(
            _torch_groups(groups, masters),
            betas=settings.betas,
            eps=settings.eps,
            fused=device.type in FUSED_DEVICES,
        )
        self.fused = device.type in FUSED_DEVICES
        # the kernel reads its divisor as float32: float64 gradients are divided outside
        self.divides = device.type in DIVIDING_DEVICES and all(
            master.dtype == torch.float32 for master in self.masters.values()
        )
        for master in self.masters.values():
            # float32 as torch makes it; on the device, where the fused kernel reads it
            step = torch.zeros((), dtype=torch.float32, device=device if self.fused else "cpu")
            self.optimizer.state[master] = {
                "step": step,
                "exp_avg": torch.zeros_like(master, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
            }

    def apply(self, gradients: FlatGradients, lr_multiplier: float, divisor: float) -> None:
        """Update every master with its gradient ÷ `divisor`."""
        _set_rates(self.optimizer, self.groups, lr_multiplier)
        if self.divides:
            owner: Any = self.optimizer
            owner.grad_scale = torch.tensor(divisor, dtype=torch.float32, device=gradients.flat.device)
        else:
            gradients.flat.div_(divisor)
        self.optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """`exp_avg.<name>` and `exp_avg_sq.<name>`."""
        state = self.optimizer.state
        return {
            f"{kind}.{name}": state[m][kind] for kind in ("exp_avg", "exp_avg_sq") for name, m in self.masters.items()
        }

    def set_step(self, step: int, began: Mapping[str, int]) -> None:
        """Continue as after `step` updates (see `Update`)."""
        for name, master in self.masters.items():
            self.optimizer.state[master]["step"].fill_(step - began.get(name, 0))


class AdamW8bitUpdate:
    """`bitsandbytes.optim.AdamW8bit`: moments in 8 bits, in blocks of 256 with a scale each.

    Runs on CUDA, and on the CPU as a slow reference (seen: 20 times fused AdamW's time).
    """

    KINDS: ClassVar = {
        "exp_avg": "state1",
        "exp_avg_sq": "state2",
        "exp_avg_scale": "absmax1",
        "exp_avg_sq_scale": "absmax2",
    }

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        masters: Mapping[str, torch.Tensor],
        settings: OptimizerSettings,
        runtime: Runtime,
    ) -> None:
        self.groups, self.masters = tuple(groups), dict(masters)
        if any(master.dtype != torch.float32 for master in self.masters.values()):
            raise UserError("adamw8bit works on float32 masters only", place="optimizer.name", hint="use adamw")
        library = _bitsandbytes()
        self.optimizer = library.optim.AdamW8bit(_torch_groups(groups, masters), betas=settings.betas, eps=settings.eps)
        self.optimizer.check_overrides()
        self.optimizer.initialized = True
        for group_index, group in enumerate(self.optimizer.param_groups):
            for index, master in enumerate(group["params"]):
                self.optimizer.init_state(group, master, group_index, index)

    def apply(self, gradients: FlatGradients, lr_multiplier: float, divisor: float) -> None:
        """Update every master with its gradient ÷ `divisor`."""
        _set_rates(self.optimizer, self.groups, lr_multiplier)
        gradients.flat.div_(divisor)
        self.optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """`exp_avg`, `exp_avg_sq` (uint8; float32 for small tensors) and their block scales, each `.<name>`."""
        found = {}
        for kind, key in self.KINDS.items():
            for name, master in self.masters.items():
                if key in self.optimizer.state[master]:
                    found[f"{kind}.{name}"] = self.optimizer.state[master][key]
        return found

    def set_step(self, step: int, began: Mapping[str, int]) -> None:
        """Continue as after `step` updates (see `Update`)."""
        for name, master in self.masters.items():
            self.optimizer.state[master]["step"] = step - began.get(name, 0)


class MuonUpdate:
    """Muon for its groups, fused AdamW for the rest."""

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        masters: Mapping[str, torch.Tensor],
        settings: OptimizerSettings,
        runtime: Runtime,
    ) -> None:
        hidden = [group for group in groups if group.optimizer == MUON]
        rest = [group for group in groups if group.optimizer != MUON]
        own = {name: masters[name] for group in rest for name in group.names}
        self.muon = Muon(hidden, masters, settings.muon or MuonSettings(), runtime)
        self.adamw = AdamWUpdate(rest, own, settings, runtime) if rest else None

    def apply(self, gradients: FlatGradients, lr_multiplier: float, divisor: float) -> None:
        """Update every master with its gradient ÷ `divisor`; Muon first, since AdamW may divide the whole buffer."""
        self.muon.apply(gradients, lr_multiplier, divisor)
        if self.adamw is not None:
            self.adamw.apply(gradients, lr_multiplier, divisor)

    def tensors(self) -> dict[str, torch.Tensor]:
        """`momentum.<name>` of Muon's, `exp_avg.<name>` and `exp_avg_sq.<name>` of the rest."""
        return {**self.muon.tensors(), **(self.adamw.tensors() if self.adamw is not None else {})}

    def set_step(self, step: int, began: Mapping[str, int]) -> None:
        """Continue as after `step` updates (see `Update`); Muon's momentum needs no correction."""
        self.muon.step = step
        if self.adamw is not None:
            self.adamw.set_step(step, began)


UPDATES: dict[str, type[AdamWUpdate] | type[AdamW8bitUpdate] | type[MuonUpdate]] = {
    "adamw": AdamWUpdate,
    "adamw8bit": AdamW8bitUpdate,
    "muon": MuonUpdate,
}


def _torch_groups(groups: Sequence[ParamGroup], masters: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "params": [masters[name] for name in group.names],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]


def _set_rates(optimizer: Any, groups: Sequence[ParamGroup], lr_multiplier: float) -> None:
    for torch_group, group in zip(optimizer.param_groups, groups, strict=True):
        torch_group["lr"] = group.learning_rate * lr_multiplier


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "adamw8bit needs the package bitsandbytes, which is not installed",
            place="optimizer.name",
            hint="pip install 'chatwright[bnb]', or set optimizer.name=adamw",
        ) from None
    return bitsandbytes
