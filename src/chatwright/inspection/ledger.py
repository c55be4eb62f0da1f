"""The ledger: how many rows and tokens each stage let through, and a reason for each that it didn't.

The flow, and the sums that must balance for every source:

    read (rows)            = skipped + converted
    converted + expanded   = filtered + rendered                        from here on rows are examples
    rendered + split       = dropped + kept                             tokens: cut besides
    kept + repeated        = held_out + packed + unplaced               over all epochs
    trained               <= packed                                     equal when the run is finished

`expanded` and `split` are the *additional* examples when one conversation or one long example becomes several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from chatwright.console import table

if TYPE_CHECKING:
    from rich.table import Table


class Stage(StrEnum):
    """Where rows come in, are lost, multiply or go on; in the order of the flow."""

    READ = "read"
    SKIPPED = "skipped"
    CONVERTED = "converted"
    EXPANDED = "expanded"
    FILTERED = "filtered"
    RENDERED = "rendered"
    SPLIT = "split"
    DROPPED = "dropped"
    CUT = "cut"
    KEPT = "kept"
    HELD_OUT = "held_out"
    REPEATED = "repeated"
    PACKED = "packed"
    UNPLACED = "unplaced"
    TRAINED = "trained"


NEEDS_REASON = frozenset({Stage.SKIPPED, Stage.FILTERED, Stage.DROPPED, Stage.CUT, Stage.UNPLACED})
"""Stages where something is lost, which must say why."""


class Balance(NamedTuple):
    """One equation of the flow: what goes in equals what comes out."""

    ins: tuple[Stage, ...]
    outs: tuple[Stage, ...]
    outs_of_tokens: tuple[Stage, ...] | None  # None: tokens aren't known yet


BALANCES = (
    Balance((Stage.READ,), (Stage.SKIPPED, Stage.CONVERTED), None),
    Balance((Stage.CONVERTED, Stage.EXPANDED), (Stage.FILTERED, Stage.RENDERED), None),
    Balance((Stage.RENDERED, Stage.SPLIT), (Stage.DROPPED, Stage.KEPT), (Stage.DROPPED, Stage.CUT, Stage.KEPT)),
    Balance(
        (Stage.KEPT, Stage.REPEATED),
        (Stage.HELD_OUT, Stage.PACKED, Stage.UNPLACED),
        (Stage.HELD_OUT, Stage.PACKED, Stage.UNPLACED),
    ),
)


class LedgerError(AssertionError):
    """The sums don't balance: something was lost without being counted. A bug of ours, never of the user's."""


class Entry(NamedTuple):
    """One line of the ledger."""

    source: str
    stage: Stage
    reason: str | None
    rows: int
    tokens: int


class Sum(NamedTuple):
    """One equation of one source, with its figures.

    Args:
        unit: rows or tokens. left, right: (stage, count), to be added up.
        equal: the sides must be equal; otherwise the left one may be the smaller.
    """

    source: str
    unit: str
    left: tuple[tuple[Stage, int], ...]
    right: tuple[tuple[Stage, int], ...]
    equal: bool = True

    @property
    def holds(self) -> bool:
        """Whether it is so."""
        left, right = (sum(count for _, count in side) for side in (self.left, self.right))
        return left == right if self.equal else left <= right

    def words(self) -> str:
        """Such as `read 10 = skipped 1 + converted 9`."""
        sides = [" + ".join(f"{stage} {count:,}" for stage, count in side) for side in (self.left, self.right)]
        return f"{sides[0]} {('=' if self.equal else '≤') if self.holds else ('≠' if self.equal else '>')} {sides[1]}"


class Ledger:
    """Counts of rows and tokens by source, stage and reason."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Stage, str | None], tuple[int, int]] = {}

    def count(self, source: str, stage: Stage | str, rows: int, tokens: int = 0, reason: str | None = None) -> None:
        """Add to a line; a line of nothing isn't made, but the stages of the flow may be counted as 0.

        Args:
            source: the file or data set.
            stage: a `Stage` or its name.
            rows: rows, from `rendered` on examples; for `cut` the examples that lost tokens.
            tokens: tokens, where they are known.
            reason: why, required where something is lost.

        Raises:
            ValueError: for an unknown stage, or a loss without a reason.
        """
        stage = Stage(stage)
        if stage in NEEDS_REASON:
            if not reason:
                raise ValueError(f"{rows} rows of {source} {stage} without a reason")
            if not rows and not tokens:
                return
        key = (source, stage, reason)
        before = self._counts.get(key, (0, 0))
        self._counts[key] = (before[0] + int(rows), before[1] + int(tokens))

    def entries(self) -> list[Entry]:
        """All lines: by source as first seen, then by stage, then by reason."""
        sources = list(dict.fromkeys(source for source, _, _ in self._counts))
        order = {stage: place for place, stage in enumerate(Stage)}
        keys = sorted(self._counts, key=lambda key: (sources.index(key[0]), order[key[1]], key[2] or ""))
        return [Entry(*key, *self._counts[key]) for key in keys]

    def rows(self, stage: Stage | str, source: str | None = None) -> int:
        """Rows of a stage, over all reasons, of one source or of all."""
        return sum(entry.rows for entry in self._of(Stage(stage), source))

    def tokens(self, stage: Stage | str, source: str | None = None) -> int:
        """Tokens of a stage, over all reasons, of one source or of all."""
        return sum(entry.tokens for entry in self._of(Stage(stage), source))

    def merge(self, other: Ledger) -> None:
        """Add all of another ledger's counts."""
        for entry in other.entries():
            self.count(entry.source, entry.stage, entry.rows, entry.tokens, entry.reason)

    def check(self, *, reached: Stage | str | None = None, finished: bool = False) -> None:
        """Check every balance that the flow has reached, source by source.

        Args:
            reached: the stage that all sources have come to, such as `packed` once the plan is made; by
                default each source is checked up to the last stage it was counted at.
            finished: the run is over, so all that was packed must have been trained.

        Raises:
            LedgerError: naming each sum that doesn't balance and each count below zero, with the whole table.
        """
        sums = self.sums(reached=reached, finished=finished)
        problems = [f"{each.source}: {each.unit}: {each.words()}" for each in sums if not each.holds]
        problems += self.negatives()
        if problems:
            lines = [
                f"{entry.source} {entry.stage} {entry.rows} rows {entry.tokens} tokens" for entry in self.entries()
            ]
            raise LedgerError("\n".join(["the ledger doesn't balance:", *problems, "all counts:", *lines]))

    def sums(self, *, reached: Stage | str | None = None, finished: bool = False) -> list[Sum]:
        """Every equation that the flow has reached, source by source; the arguments are those of `check`."""
        order = list(Stage)
        least = order.index(Stage.TRAINED if finished else Stage(reached or Stage.READ))
        found: list[Sum] = []
        for source in dict.fromkeys(source for source, _, _ in self._counts):
            last = max(order.index(stage) for name, stage, _ in self._counts if name == source)
            found += self._sums(source, order[: max(last, least) + 1], finished)
        return found

    def negatives(self) -> list[str]:
        """Every count below zero, in words: with one, all sums could balance and still be wrong."""
        lines = [(f"{e.source}: {e.stage}{f' ({e.reason})' if e.reason else ''}", e) for e in self.entries()]
        found = [(name, unit, count) for name, e in lines for unit, count in (("rows", e.rows), ("tokens", e.tokens))]
        return [f"{name}: {count:,} {unit}" for name, unit, count in found if count < 0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"entries": [{**entry._asdict(), "stage": str(entry.stage)} for entry in self.entries()]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Ledger:
        """What `to_dict` gave, as a ledger again."""
        ledger = Ledger()
        for entry in data["entries"]:
            ledger.count(entry["source"], entry["stage"], entry["rows"], entry["tokens"], entry["reason"])
        return ledger

    def table(self, title: str = "ledger") -> Table:
        """The ledger to print."""
        lines = [entry for entry in self.entries() if entry.rows or entry.tokens]
        rows: list[tuple[str | int | None, ...]] = []
        for source, entries in groupby(lines, key=lambda entry: entry.source):
            rows.append((source, None, None, None))  # once, as it may be a long path
            rows += [(f"  {each.stage}", each.rows, each.tokens or None, each.reason) for each in entries]
        return table(title, ("source, stage", "rows", "tokens", "reason"), rows)

    def _of(self, stage: Stage, source: str | None) -> Iterator[Entry]:
        for (name, at, reason), (rows, tokens) in self._counts.items():
            if at == stage and source in (None, name):
                yield Entry(name, at, reason, rows, tokens)

    def _sums(self, source: str, reached: list[Stage], finished: bool) -> Iterator[Sum]:
        for ins, outs, outs_of_tokens in BALANCES:
            if not any(stage in reached for stage in outs if stage is not Stage.HELD_OUT):  # drawn before the plan
                return
            for unit, right in (("rows", outs), ("tokens", outs_of_tokens)):
                if right is not None:
                    yield Sum(source, unit, self._side(source, unit, ins), self._side(source, unit, right))
        if Stage.TRAINED in reached:
            for unit in ("rows", "tokens"):
                left, right_side = (self._side(source, unit, (stage,)) for stage in (Stage.TRAINED, Stage.PACKED))
                yield Sum(source, unit, left, right_side, equal=finished)

    def _side(self, source: str, unit: str, stages: Iterable[Stage]) -> tuple[tuple[Stage, int], ...]:
        counted = self.rows if unit == "rows" else self.tokens
        return tuple((stage, counted(stage, source)) for stage in stages)
