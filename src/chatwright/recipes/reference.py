"""Log-probabilities of every pair under the model that a run begins with: made once, and kept on the disk.

They are made by the weights that the first step computes with, so that training begins exactly at its reference. A
fresh adapter changes nothing yet, and one that the model came with is part of the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from chatwright.batches.pairs import PairBatch, collate_pairs
from chatwright.batches.token_cache import cache_key
from chatwright.checkpoints.imports import cache_folder
from chatwright.checkpoints.lineage import weights_hash
from chatwright.console import ProgressLine, note
from chatwright.packing.plan import plan_packs
from chatwright.recipes.data import RunData, store_hash
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime, compute_dtype
from chatwright.train.pair_objectives import side_log_probs

FOLDER = "reference"
"""Below the cache folder."""


def reference_log_probs(settings: RunSettings, data: RunData, model: ModelSetup, runtime: Runtime) -> torch.Tensor:
    """float64 `[pairs, 2]`: of the trained pairs, then of the held-out ones, the better and the worse reply's.

    The ranks share the work; each value is computed in a pack that doesn't depend on their number.
    """
    count = len(data.store) + len(data.heldout)
    key = _key(settings, data, model, runtime) if runtime.is_main else ""
    path = cache_folder() / FOLDER / f"{key[:32]}.npy"
    found = _read(path, count) if runtime.is_main else None
    found = runtime.broadcast_object(found)
    if found is None:
        found = compute_reference(settings, data, model, runtime)
        if runtime.is_main:
            _write(found, path)
    return torch.from_numpy(found)


@torch.no_grad()
def compute_reference(settings: RunSettings, data: RunData, model: ModelSetup, runtime: Runtime) -> np.ndarray:
    """The same, computed now: float64 `[pairs, 2]`."""
    dtype = compute_dtype(settings.train.dtype, runtime.device)
    same = next(model.model.parameters()).dtype == dtype
    policy = model.model if same else copy.deepcopy(model.model).to(dtype)
    training = policy.training
    policy.eval()
    table = torch.zeros(len(data.store) + len(data.heldout), 2, dtype=torch.float64)
    line = ProgressLine("reference", "packs")
    try:
        packs = list(_packs(settings, data))
        if runtime.is_main:
            line.start(total=len(packs))
        for number in range(runtime.rank, len(packs), runtime.world_size):
            is_heldout, members = packs[number]
            store = data.heldout if is_heldout else data.store
            batch = collate_pairs(store, members, first=len(data.store) if is_heldout else 0).to(runtime.device)
            assert isinstance(batch, PairBatch)
            table[batch.pairs.cpu()] = side_log_probs(policy, batch).sums.cpu().double()
            if runtime.is_main:
                line.update(number + 1)
    finally:
        line.stop()
        policy.train(training)
    if runtime.world_size > 1:
        table = runtime.all_reduce(table.to(runtime.messenger)).cpu()
    return table.numpy()


def _packs(settings: RunSettings, data: RunData) -> Iterator[tuple[bool, np.ndarray]]:
    """(held out, pairs) of every pack, each pair once."""
    packing = settings.packing.model_copy(update={"by": "tokens", "shuffle": False})
    for is_heldout, store in ((False, data.store), (True, data.heldout)):
        if len(store):
            plan = plan_packs(store.lengths, packing, seed=0, epochs=1, name_of=store.name)
            yield from ((is_heldout, plan.pack(number)) for number in range(plan.num_packs))


def _key(settings: RunSettings, data: RunData, model: ModelSetup, runtime: Runtime) -> str:
    """What decides the values: weights and their quantization, tokens, template, how they are packed and computed."""
    resolved, adapter = data.text.resolved, settings.adapter
    return cache_key(
        model=weights_hash(resolved.folder, resolved.adapter),
        base=[adapter.base, adapter.double_quantization] if adapter is not None else ["full", False],
        fresh_rows=[*model.fresh_rows, settings.train.seed] if model.fresh_rows else [],
        data=[store_hash(data.store), store_hash(data.heldout)],
        template=data.text.template.identity,
        packing=settings.packing.tokens_per_pack,
        computed=[str(compute_dtype(settings.train.dtype, runtime.device)), runtime.device.type],
    )


def _read(path: Path, count: int) -> np.ndarray | None:
    """The kept values; None where there are none, or none that fit."""
    try:
        found = np.load(path)
    except (OSError, ValueError):
        return None
    return found if found.shape == (count, 2) and found.dtype == np.float64 else None


def _write(found: np.ndarray, path: Path) -> None:
    """Keep the values; where that fails they are made again the next time."""
    aside = path.with_suffix(".writing.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(aside, found)
        aside.replace(path)
    except OSError as error:
        note(f"the reference can't be kept in {path.parent}: {error.strerror or error}")
