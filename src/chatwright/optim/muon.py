"""Muon: momentum whose matrices are made orthogonal, for the hidden matrices of a model.

A matrix U·S·Vᵀ of momentum becomes nearly U·Vᵀ: every direction moves alike, however rarely the gradients point there
(Jordan et al. 2024, kellerjordan.github.io/posts/muon). Newton–Schulz iterations do that with matrix products alone.
Shapes: k matrices, m rows, n columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from chatwright.optim.flat_gradients import FlatGradients
from chatwright.optim.param_groups import ParamGroup
from chatwright.optim.settings import MuonSettings
from chatwright.runtime import Runtime

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·x + b·x³ + c·x⁵ (Jordan): steep at 0; singular values end between 0.7 and 1.2, not at 1."""
_EPSILON = 1e-7
BATCH_ELEMENTS = 1 << 22
"""Matrices of one shape are orthogonalized together up to this size: a fixed rule, so that bits don't follow ranks."""
BATCH_MATRICES = 16


def orthogonalize(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.7 and 1.2.

    Args:
        matrices: `[k, m, n]`; computed in their own dtype (bfloat16 is enough). steps: iterations; 5 is usual.

    Returns:
        `[k, m, n]`; a matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # [k, s, l] with s ≤ l: the products are s × s
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _EPSILON)  # no singular value above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # [k, s, s]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(frozen=True, slots=True)
class _Batch:
    """Matrices of one shape and one group that are orthogonalized together, by one rank.

    Args:
        momentum: `[parameters, *shape]`, the state. dtype: of the iterations.
    """

    group: ParamGroup
    names: tuple[str, ...]
    momentum: torch.Tensor
    dtype: torch.dtype
    owner: int

    @property
    def stretch(self) -> float:
        """The factor on the rate of a tall matrix, √(rows / columns): its output moves as a wide one's does."""
        rows, columns = self.momentum.shape[-2:]
        return float(max(1.0, rows / columns) ** 0.5)


class Muon:
    """Muon's part of an update: the groups that are its own.

    With several ranks each orthogonalizes its share and leaves the result in the gradient buffer, which is summed once
    more (the others hold zeros there): every rank then changes its masters by the same bits that one process would
    have made. Momentum is kept by every rank.

    Args:
        groups: Muon's, which must come last in the gradient buffer.
        masters: parameters at full precision, whose `.grad` are the buffer's views.
    """

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        masters: Mapping[str, torch.Tensor],
        settings: MuonSettings,
        runtime: Runtime,
    ) -> None:
        self.settings, self.runtime = settings, runtime
        self.masters = {name: masters[name] for group in groups for name in group.names}
        self.views: dict[str, torch.Tensor] = {}
        for name, master in self.masters.items():
            assert master.grad is not None, name
            self.views[name] = master.grad
        self.begin = min(view.storage_offset() for view in self.views.values())
        self.batches = _batches(groups, self.masters, runtime.world_size)
        self.step = 0

    @torch.no_grad()
    def apply(self, gradients: FlatGradients, lr_multiplier: float, divisor: float) -> None:
        """Update every master with its gradient ÷ `divisor`; the buffer's part holds the changes afterwards."""
        momentum = self.settings.momentum_after(self.step)
        for batch in self.batches:
            self._orthogonalize(batch, momentum, divisor)
        self.runtime.all_reduce(gradients.flat[self.begin :])
        for batch in self.batches:
            rate = batch.group.learning_rate * lr_multiplier
            for name in batch.names:
                master = self.masters[name]
                if batch.group.weight_decay:
                    master.mul_(1 - rate * batch.group.weight_decay)
                master.add_(self.views[name], alpha=-rate * batch.stretch)
        self.step += 1

    def _orthogonalize(self, batch: _Batch, momentum: float, divisor: float) -> None:
        """Move the momentum; the owner replaces the gradients by orthogonal matrices, the others by zeros."""
        views = [self.views[name] for name in batch.names]
        found = torch.stack(views).div_(divisor)  # [parameters, *shape]
        batch.momentum.lerp_(found, 1 - momentum)
        if batch.owner != self.runtime.rank:
            torch._foreach_zero_(views)
            return
        ahead = found.lerp_(batch.momentum, momentum) if self.settings.nesterov else batch.momentum
        matrices = ahead.to(batch.dtype).flatten(0, -3)  # [k, m, n]: an expert is a matrix
        made = orthogonalize(matrices, self.settings.newton_schulz_steps)
        torch._foreach_copy_(views, list(made.view(found.shape).unbind()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """`momentum.<name>`, live."""
        return {
            f"momentum.{name}": momentum
            for batch in self.batches
            for name, momentum in zip(batch.names, batch.momentum.unbind(), strict=True)
        }


def _batches(groups: Sequence[ParamGroup], masters: Mapping[str, torch.Tensor], ranks: int) -> list[_Batch]:
    """Equal shapes together, up to a fixed size; the costliest batch goes to the least busy rank."""
    alike: dict[tuple[int, torch.Size, torch.dtype], list[str]] = defaultdict(list)
    for index, group in enumerate(groups):
        for name, parameter in zip(group.names, group.parameters, strict=True):
            alike[index, parameter.shape, _iteration_dtype(parameter.dtype)].append(name)
    cuts = []
    for (index, shape, dtype), names in alike.items():
        size = min(BATCH_MATRICES, max(1, BATCH_ELEMENTS // shape.numel()))
        cuts += [(index, shape, dtype, tuple(names[i : i + size])) for i in range(0, len(names), size)]
    busy, batches = [0] * ranks, []
    for index, shape, dtype, together in sorted(cuts, key=lambda cut: -_cost(cut[1], len(cut[3]))):
        owner = busy.index(min(busy))
        busy[owner] += _cost(shape, len(together))
        like = masters[together[0]]
        momentum = torch.zeros(len(together), *shape, dtype=like.dtype, device=like.device)
        batches.append(_Batch(groups[index], together, momentum, dtype, owner))
    return batches


def _cost(shape: torch.Size, count: int) -> int:
    """Multiplications of an iteration, up to a factor."""
    return count * shape.numel() * min(shape[-2:])


def _iteration_dtype(dtype: torch.dtype) -> torch.dtype:
    """The model's compute dtype; float16's range is too small for the iterations."""
    return torch.float32 if dtype == torch.float16 else dtype
