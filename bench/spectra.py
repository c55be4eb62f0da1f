"""Spectra of weight matrices, of their change and of their gradients: how few directions hold most of the energy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.objectives import next_token_nll

SHARES = (1, 4, 16, 64)
EVERY_LAYER = 3
"""Matrices of every third layer are looked at."""


def spectrum(matrix: torch.Tensor) -> np.ndarray:
    """The squared singular values, largest first, float64; from the smaller Gram matrix."""
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).numpy()


def told(matrices: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Of many matrices: mean share of energy in the first r with the lowest and highest, and the effective rank."""
    shares, ranks = [], []
    for matrix in matrices.values():
        energy = spectrum(matrix)
        part = energy / energy.sum()
        shares.append([part[:r].sum() for r in SHARES])
        ranks.append(float(np.exp(-(part * np.log(part.clip(min=1e-300))).sum())))
    table = np.array(shares)
    return {
        "share": dict(zip(map(str, SHARES), table.mean(axis=0).round(4).tolist(), strict=True)),
        "lowest": dict(zip(map(str, SHARES), table.min(axis=0).round(4).tolist(), strict=True)),
        "highest": dict(zip(map(str, SHARES), table.max(axis=0).round(4).tolist(), strict=True)),
        "effective_rank": round(float(np.mean(ranks)), 1),
        "effective_rank_each": {name: round(rank, 1) for name, rank in zip(matrices, ranks, strict=True)},
    }


class Gradients(Hook):
    """The spectrum of the gradient on held-out rows at some steps, with the weights as they are then."""

    def __init__(self, model: Any, names: Sequence[str], stores: Mapping[str, TokenStore], tokens: int) -> None:
        self.model, self.names, self.tokens = model, list(names), tokens
        self.stores = stores
        self.steps: tuple[int, ...] = ()
        self.found: dict[str, dict[str, Any]] = {name: {} for name in stores}
        self.seconds = 0.0

    def on_start(self, first_step: int, num_steps: int) -> None:
        """Before training."""
        self.steps = (num_steps // 2, num_steps)
        self._look(0)

    def on_step(self, record: StepRecord) -> None:
        """In the middle and at the end."""
        if record.step in self.steps:
            self._look(record.step)

    def _look(self, step: int) -> None:
        began = time.perf_counter()
        chosen = [self.model.get_submodule(name).weight for name in self.names]
        for kind, store in self.stores.items():
            fitting = int(np.searchsorted(np.cumsum(store.lengths), self.tokens, side="right"))
            loss = next_token_nll(self.model, collate(store, np.arange(max(1, fitting)))).total
            # not through `backward`, which would add to the optimizer's own buffer
            grads = torch.autograd.grad(loss, chosen)
            self.found[kind][str(step)] = told(dict(zip(self.names, grads, strict=True)))
        self.seconds += time.perf_counter() - began


def spectra_of(
    names: Sequence[str], before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Of the weights, of their change, and of noise of the same shapes."""
    generator = torch.Generator().manual_seed(0)
    keys = [f"{name}.weight" for name in names]
    return {
        "weights": told({key: before[key] for key in keys}),
        "change": told({key: after[key] - before[key] for key in keys}),
        "noise": told({key: torch.randn(before[key].shape, generator=generator) for key in keys}),
        "relative_change": round(
            float(np.mean([float((after[k] - before[k]).norm() / before[k].norm()) for k in keys])), 5
        ),
    }
