"""Updates of float32 masters: gradients in one flat buffer, divided once, clipped, applied, copied to compute weights.

The masters are the model: a checkpoint's `model.safetensors` is `master_state()`, and the low-precision
parameters that compute are derived from it after every step. Parameters that are float32 (or float64)
are their own masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from chatwright.errors import CheckpointError
from chatwright.optim.flat_gradients import FlatGradients
from chatwright.optim.loss_scale import LossScale
from chatwright.optim.param_groups import ParamGroup, build_groups
from chatwright.optim.settings import OptimizerSettings
from chatwright.optim.updates import UPDATES
from chatwright.optim.warm_start import WarmStart, take_over
from chatwright.runtime import Runtime

_BEGAN = "began."


class MasterOptimizer:
    """Owns masters, moments and the gradient buffer of all trainable parameters.

    Every backward adds to the buffer by itself; `step` uses it up. With several ranks, all-reduce
    `flat_gradient` (one sum) before `step`.

    Args:
        named_params: such as `model.named_parameters()`; frozen ones are ignored.
        settings: rates, decay, clipping, rules.
        masters: full-precision values of low-precision parameters, taken over without a copy; by default the
            parameters' own values.
        width: the model's hidden size, where `settings.reference_width` asks for it.
        runtime: the ranks, among which Muon shares its work; by default this process is alone.

    Attributes:
        groups: the parameter groups. gradients: the flat buffer.
        step_count: updates made so far, those of the parent included after a warm start.
        skipped_last_step: float16 only: the last gradient overflowed.

    Raises:
        ConfigError: nothing is trainable, or a rule matches nothing.
    """

    def __init__(
        self,
        named_params: Iterable[tuple[str, nn.Parameter]],
        settings: OptimizerSettings,
        masters: Mapping[str, torch.Tensor] | None = None,
        *,
        width: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.settings = settings
        self.groups: list[ParamGroup] = build_groups(named_params, settings, width)
        self.parameters = {
            name: parameter
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }
        self.gradients = FlatGradients(list(self.parameters.values()))
        self.masters: dict[str, torch.Tensor] = {}
        for (name, parameter), view in zip(self.parameters.items(), self.gradients.views, strict=True):
            own = parameter.dtype == self.gradients.dtype
            given = None if masters is None else masters[name].to(self.gradients.dtype)
            master = parameter if own else parameter.detach().to(self.gradients.dtype) if given is None else given
            master.grad = view
            self.masters[name] = master
        alone = Runtime(self.gradients.flat.device)
        self.update = UPDATES[settings.name](self.groups, self.masters, settings, runtime or alone)
        self.scaler = LossScale(any(p.dtype == torch.float16 for p in self.parameters.values()))
        self.step_count = 0
        self.began: dict[str, int] = {}  # parameters whose moments began later than the count of steps
        self.skipped_last_step = False

    @property
    def flat_gradient(self) -> torch.Tensor:
        """The gradient sum of all parameters, `[total]`: the one tensor to all-reduce."""
        return self.gradients.settle()

    @property
    def learning_rate(self) -> float:
        """The learning rate before schedule, rules and width."""
        return self.settings.learning_rate * self.settings.rate_factor

    @property
    def loss_scale(self) -> float:
        """What the loss must be multiplied by before the backward: 1 except in float16."""
        return self.scaler.scale

    def step(self, lr_multiplier: float, divide_by: float) -> float:
        """Divide, clip, update, copy to the compute weights, empty the buffer.

        Args:
            lr_multiplier: the schedule's factor on every group's learning rate.
            divide_by: the step's global weight; the only division of the gradient anywhere.

        Returns:
            The norm of the divided gradient before clipping. If it is not finite no parameter is touched; in
            float16 the loss scale is halved and `skipped_last_step` is set.

        Raises:
            ValueError: `divide_by` is not a positive number.
        """
        if not (divide_by > 0 and math.isfinite(divide_by)):
            raise ValueError(f"divide_by must be the step's positive weight, found {divide_by}")
        self.gradients.require_connected()
        divisor = divide_by * self.scaler.scale
        norm = self.gradients.norm() / divisor
        finite = math.isfinite(norm)
        self.skipped_last_step = self.scaler.enabled and not finite
        if finite:
            limit = self.settings.max_grad_norm
            if limit is not None and norm > limit:
                divisor *= norm / limit
            self.update.apply(self.gradients, lr_multiplier, divisor)
            self.step_count += 1
            self._copy_to_compute()
        self.scaler.after_step(finite)
        self.gradients.zero()
        return norm

    @torch.no_grad()
    def _copy_to_compute(self) -> None:
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                parameter.copy_(master)

    def master_state(self) -> dict[str, torch.Tensor]:
        """Every trainable parameter at full precision, by name (detached, not copied)."""
        return {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_masters(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over trainable parameters at full precision; compute weights follow. Other names are ignored.

        Raises:
            CheckpointError: a parameter is missing or has another shape.
        """
        _copy_all(self.masters, tensors, "")
        self._copy_to_compute()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Moments by parameter name (`exp_avg.<name>`, `momentum.<name>` …), `step`, and float16's loss scale."""
        state = {"step": torch.tensor(self.step_count, dtype=torch.int64), **self.update.tensors()}
        state |= {_BEGAN + name: torch.tensor(step, dtype=torch.int64) for name, step in self.began.items()}
        if self.scaler.enabled:
            state["loss_scale"] = torch.tensor([self.scaler.scale, self.scaler.good_steps], dtype=torch.float64)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue exactly where `state_dict` was taken (masters come by `load_masters`).

        Raises:
            CheckpointError: an entry is missing, has another shape, or belongs to no trainable parameter.
        """
        expected = self.update.tensors()
        began = {name.removeprefix(_BEGAN): int(step) for name, step in state.items() if name.startswith(_BEGAN)}
        given = {name for name in state if not name.startswith(_BEGAN)}
        unknown = sorted(given - set(expected) - {"step", "loss_scale"})
        if unknown:
            raise CheckpointError(
                f"the optimizer state holds {unknown[0]!r}, which is not trained here ({len(unknown)} such)",
                hint="resume with the optimizer, adapter and rules that the run began with",
            )
        if "step" not in state:
            raise CheckpointError("the optimizer state has no 'step'", hint="resume from another checkpoint")
        _copy_all(expected, state, "optimizer state ")
        self._count_from(state, began)

    @torch.no_grad()
    def warm_start(self, state: Mapping[str, torch.Tensor]) -> WarmStart:
        """Begin with what another run's `state_dict` holds for the same parameters (see `optim.warm_start`).

        Raises:
            CheckpointError: it holds nothing for any parameter here.
        """
        found = take_over(self.update.tensors(), state)
        before = {name: int(state[_BEGAN + name]) for name in found.taken if _BEGAN + name in state}
        self._count_from(state, before | dict.fromkeys(found.late, found.step))
        return found

    def _count_from(self, state: Mapping[str, torch.Tensor], began: dict[str, int]) -> None:
        self.step_count, self.began = int(state["step"]), began
        self.update.set_step(self.step_count, began)
        if self.scaler.enabled and "loss_scale" in state:
            scale, good_steps = state["loss_scale"].tolist()
            self.scaler.scale, self.scaler.good_steps = scale, int(good_steps)


def _copy_all(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor], kind: str) -> None:
    for name, target in targets.items():
        source = sources.get(name)
        if source is None:
            raise CheckpointError(f"{kind}{name!r} is missing", hint="resume with the recipe that the run began with")
        if source.shape != target.shape:
            raise CheckpointError(
                f"{kind}{name!r} has shape {list(source.shape)}, expected {list(target.shape)}",
                hint="resume with the model and recipe that the run began with",
            )
    for name, target in targets.items():
        target.copy_(sources[name])
