"""Mix sources: which examples each epoch draws, from weights, repeats and a curriculum. Numpy only.

A mixture knows example numbers, their sources and rows; it refuses to know tokens, packs and texts.

The rows of a source stand in an endless chain: pass after pass over all of them, each pass in an order of its own
that follows from (seed, source, pass). An epoch takes the next stretch of every chain. So each epoch can be made
without the ones before it, and no row comes again before all others of its source have come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from chatwright.errors import DataError
from chatwright.packing.shuffling import permutation
from chatwright.settings import Settings

MOST_ROWS_AN_EPOCH = 50_000_000
"""Weights that ask for a longer epoch than this are refused: a small source would be repeated for ever."""


class MixtureSettings(Settings):
    """How the sources of `data:` are mixed; their `epochs` and `weight` stand with each source."""

    order: Literal["shuffled", "sequence"] = Field(
        "shuffled", description="shuffled: all sources together; sequence: one after another (a curriculum)"
    )
    until: Literal["first", "all"] = Field(
        "all",
        description="with weights, an epoch ends when the `first` source is used up, or when `all` were seen whole",
    )


class SourceShare(NamedTuple):
    """How much of a source the mixture takes.

    Args:
        name: the user's name for it.
        epochs: how often an epoch of the mixture goes through it; without effect where weights are given.
        weight: its share *in rows*, beside the other weights: 2 and 1 are two rows of the first to one of the second.
    """

    name: str
    epochs: int = 1
    weight: float | None = None


class _Source(NamedTuple):
    """One source's examples (int64 `[k]`, ascending), the row of each (`[k]`, 0 … num_rows − 1) and the rows it has."""

    examples: np.ndarray
    row_of: np.ndarray
    num_rows: int


class Mixture:
    """Draws the examples of each epoch: a pure function of the arguments and the epoch's number.

    Example: two sources of 2 and 6 rows with equal weights. `until: first` draws 2 + 2 rows an epoch, and three
    epochs see all of the second; `until: all` draws 6 + 6, the first source three times over.

    Args:
        owner: int `[n]`, each example's place in `shares`.
        shares: the sources; all have a weight or none has.
        settings: order, and with weights the length of an epoch.
        seed: fixes the order of every pass.
        rows: int `[n]`, equal for examples made from one row of a source, which are drawn together; None: all differ.
        examples: int `[m]`, the example numbers to draw from; None: all n.

    Raises:
        DataError: a source with a weight has no rows, or the weights make an epoch of more than 50 million rows.
        ValueError: some sources have a weight and others none.
    """

    def __init__(
        self,
        owner: np.ndarray,
        shares: Sequence[SourceShare],
        settings: MixtureSettings,
        *,
        seed: int,
        rows: np.ndarray | None = None,
        examples: np.ndarray | None = None,
    ) -> None:
        everything = np.arange(len(owner), dtype=np.int64)
        self.examples = everything if examples is None else np.sort(np.asarray(examples, dtype=np.int64))
        self.shares, self.settings, self.seed = tuple(shares), settings, seed
        owners = np.asarray(owner)[self.examples]
        self._sources = [_source(self.examples[owners == place], rows) for place in range(len(self.shares))]
        self._quotas = _quotas([source.num_rows for source in self._sources], self.shares, settings)

    def epoch_groups(self, epoch: int) -> list[np.ndarray]:
        """The example numbers that an epoch draws, int64 each, in the order of the data within a pass.

        One array to be shuffled together, or with `order: sequence` one a source, to be used one after another.
        A source that is seen k times in an epoch is there k times.

        Raises:
            ValueError: for a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch {epoch} must not be negative")
        drawn = [self._drawn(place, epoch) for place in range(len(self.shares))]
        groups = drawn if self.settings.order == "sequence" else [np.concatenate(drawn)] if drawn else []
        return [group for group in groups if len(group)]

    def not_drawn(self, draws: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """What a run never drew, a source at a time, with the reason.

        Args:
            draws: int `[n]`, how often the run drew each example.
        """
        for source, quota in zip(self._sources, self._quotas, strict=True):
            left = source.examples[draws[source.examples] == 0]
            if len(left):
                yield f"not drawn: the mixture's weights give this source {round(quota):,} rows an epoch", left

    def _drawn(self, place: int, epoch: int) -> np.ndarray:
        """The epoch's stretch of a source's chain. Rounding the ends keeps every total within half a row."""
        start, stop = (math.floor(count * self._quotas[place] + Fraction(1, 2)) for count in (epoch, epoch + 1))
        size = max(self._sources[place].num_rows, 1)
        passes = range(start // size, -(-stop // size))
        stretches = [(each, max(start - each * size, 0), min(stop - each * size, size)) for each in passes]
        parts = [self._of_pass(place, *stretch) for stretch in stretches]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _of_pass(self, place: int, number: int, first: int, last: int) -> np.ndarray:
        """The examples of places first … last − 1 of one pass over a source's rows."""
        source = self._sources[place]
        if last - first == source.num_rows:
            return source.examples
        chosen = np.zeros(source.num_rows, dtype=bool)
        chosen[permutation(source.num_rows, self.seed, number, "rows", part=place)[first:last]] = True
        return source.examples[chosen[source.row_of]]


def _source(examples: np.ndarray, rows: np.ndarray | None) -> _Source:
    if rows is None:
        return _Source(examples, np.arange(len(examples)), len(examples))
    found, row_of = np.unique(np.asarray(rows)[examples], return_inverse=True)
    return _Source(examples, row_of.reshape(-1), len(found))


def _quotas(num_rows: list[int], shares: Sequence[SourceShare], settings: MixtureSettings) -> list[Fraction]:
    """Rows that an epoch draws of each source, exact: weights are taken as the decimals they were written as."""
    if all(share.weight is None for share in shares):
        return [Fraction(count * share.epochs) for count, share in zip(num_rows, shares, strict=True)]
    weights = [Fraction(str(share.weight)) for share in shares if share.weight is not None]
    if len(weights) < len(shares):
        raise ValueError("give every source a weight, or none")
    absent = [share.name for share, count in zip(shares, num_rows, strict=True) if not count]
    if absent:
        raise DataError(
            f"has a weight in the mixture, but no row to train on: {', '.join(absent)}",
            source="data",
            hint="remove the entry, or look at the ledger of `chatwright inspect`: it says where its rows went",
        )
    # rows = scale · weight; at this scale a source is used up exactly once
    scales = [Fraction(count) / weight for count, weight in zip(num_rows, weights, strict=True)]
    scale = min(scales) if settings.until == "first" else max(scales)
    total = scale * sum(weights)
    if total > MOST_ROWS_AN_EPOCH:
        largest = shares[scales.index(scale)].name
        raise DataError(
            f"the weights make an epoch of {round(total):,} rows until all of {largest} is seen, "
            f"of {sum(num_rows):,} rows that there are",
            source="data",
            hint=f"give {largest} a larger weight, or set mixture.until: first",
        )
    return [scale * weight for weight in weights]
