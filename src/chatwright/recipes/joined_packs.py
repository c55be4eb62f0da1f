"""Constant-length packing of a recipe's rows: the stream of pieces that the plan is made of, counted in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chatwright.batches.token_store import TokenStore
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.packing.constant_length import cut_stream
from chatwright.packing.mixture import Mixture
from chatwright.packing.pack_plan import PackingSettings

NOT_EXACT = (
    "packing.by: constant_length joins conversations that then see each other, and cuts them wherever a pack ends: the "
    "gradient is not that of the conversations one by one (exact: false); packing.by: tokens keeps them apart"
)

NOTHING_TRAINED = "in a block without a trained token"


class PieceStore(NamedTuple):
    """The stream's pieces in order, and each one's data entry (int64 `[P]`)."""

    store: TokenStore
    entry_index: np.ndarray


def cut_into_pieces(
    store: TokenStore,
    entry_index: np.ndarray,
    mixture: Mixture,
    packing: PackingSettings,
    seed: int,
    ledger: Ledger,
    names: Sequence[str],
) -> PieceStore:
    """The first epoch's examples as one stream, cut every `tokens_per_pack` tokens; later epochs take the same blocks.

    In the ledger a cut adds a row (`split`, and to what is `kept`) and no token; a row that an epoch sees again is
    `repeated`. A block of given tokens only, such as the middle of a long question, would be a step without a loss: it
    is left out and counted.

    Args:
        entry_index: int `[n]`, the data entry of each example. names: of the entries.
    """
    pieces = cut_stream(store.lengths, mixture.epoch_groups(0), packing, seed)
    cut = store.cut(pieces.examples, pieces.starts, pieces.stops)
    owner = entry_index[pieces.examples]
    for place, name in enumerate(names):
        mine = owner == place
        further = int((mine & ~pieces.repeats & (pieces.starts > 0)).sum())
        again = mine & pieces.repeats
        if further:
            ledger.count(name, Stage.SPLIT, further)
            ledger.count(name, Stage.KEPT, further)
        if again.any():
            ledger.count(name, Stage.REPEATED, int(again.sum()), int(cut.lengths[again].sum()))
    blocks = pieces.blocks
    empty = np.bincount(blocks, weights=cut.weight_sums)[blocks] == 0
    for place in np.unique(owner[empty]).tolist():
        mine = empty & (owner == place)
        ledger.count(names[place], Stage.UNPLACED, int(mine.sum()), int(cut.lengths[mine].sum()), NOTHING_TRAINED)
    kept = np.flatnonzero(~empty)
    return PieceStore(cut.take(kept), owner[kept])
