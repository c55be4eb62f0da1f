"""What the page shows, as plain records: no model, no template, no torch. `recipes/page_records.py` fills them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from chatwright.inspection.cells import Cell
from chatwright.templates.rendered import ExampleKey


class Histogram(NamedTuple):
    """Counts of values: bar i counts those in `[edges[i], edges[i + 1])`, the last one its upper edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float

    @staticmethod
    def of(values: np.ndarray, edges: Sequence[float]) -> Histogram:
        """Count values; the edges must cover them."""
        counts, _ = np.histogram(values, bins=np.asarray(edges, dtype=np.float64))
        median = float(np.median(values)) if len(values) else 0.0
        return Histogram(tuple(map(float, edges)), tuple(counts.tolist()), median)


def length_edges(longest: int, most: int = 24) -> list[int]:
    """Edges in round numbers from 0 that cover `longest`, with at most `most` bars."""
    width = 1
    while width * most <= longest:
        head = str(width)[0]
        width = width // int(head) * {"1": 2, "2": 5, "5": 10}[head]
    return list(range(0, (longest // width + 2) * width, width))


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """One data entry: rows read, what was kept of it, and the spread of its training examples."""

    name: str
    format: str
    rows: int
    examples: int
    tokens: int
    supervised: int
    lengths: Histogram
    shares: Histogram


class MessageText(NamedTuple):
    """A message as it was read: its parts as (kind, text), and whether the data says to train it."""

    role: str
    parts: tuple[tuple[str, str], ...]
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class ShownExample:
    """One training example with its mask.

    Args:
        key: source, row and part. entry: which data entry it belongs to.
        ids: the shown tokens; `num_tokens` counts all. cells: the shown tokens as text. num_supervised: of all tokens.
        trained_runs: `[start, end)` of every trained stretch, of all tokens.
        messages: the conversation as read. in_run: the run trains on it. notes: what to know, such as why not.
        losses_before, losses_after: loss (nats) of each trained token by its position, where a run exists.
    """

    key: ExampleKey
    entry: int
    ids: tuple[int, ...]
    cells: tuple[Cell, ...]
    num_tokens: int
    num_supervised: int
    trained_runs: tuple[tuple[int, int], ...] = ()
    messages: tuple[MessageText, ...] = ()
    in_run: bool = True
    notes: tuple[str, ...] = ()
    losses_before: dict[int, float] | None = None
    losses_after: dict[int, float] | None = None


class ShownSegment(NamedTuple):
    """An example inside a pack: tokens `[start, start + length)` of the pack, positions 0 … length − 1 to the model."""

    start: int
    length: int
    key: ExampleKey
    supervised: int
    trained_runs: tuple[tuple[int, int], ...]


class ShownPack(NamedTuple):
    """One packing row: its number, step and epoch (from 1), its tokens of the capacity, and its segments."""

    number: int
    step: int
    epoch: int
    tokens: int
    capacity: int
    segments: tuple[ShownSegment, ...]


class PlanFigures(NamedTuple):
    """The whole plan: packs, steps, epochs, capacity of a pack, tokens placed, and how many are wasted."""

    packs: int
    steps: int
    epochs: int
    tokens_per_pack: int
    placed_tokens: int
    empty_tokens: int


class Place(NamedTuple):
    """Where a finding or a match stands."""

    source: str
    row: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class PageFinding:
    """A lint finding: its rule, severity (`error`, `warning` or `info`), what is wrong, rows with it, what to do."""

    rule: str
    severity: str
    says: str
    count: int
    fix: str
    places: tuple[Place, ...] = ()
    excerpt: str = ""


class PageSide(NamedTuple):
    """An excerpt, with the characters `[start, end)` that the other side has too; `cut` where more text stands."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    cut_before: bool = False
    cut_after: bool = False


class PageMatch(NamedTuple):
    """A training row that holds test text, side by side; `overlap` says in words how much of it."""

    place: Place
    train: PageSide
    reference: str
    evaluation: PageSide
    overlap: str


class RunFigures(NamedTuple):
    """The run whose losses are shown: names of the model before and after, and mean losses over the shown examples."""

    before: str
    after: str
    mean_before: float
    mean_after: float
    tokens: int


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything on the page.

    Args:
        title: names the data. model, template: for people; `identity` is the template's sha256.
        examples: the shown ones, of `num_examples` training examples; chosen as `choice` says.
        packs: the shown ones, of `plan.packs`.
        ledger: entries as of `Ledger.to_dict()`.
        findings: None where nothing was linted. matches: None where no contamination was looked for.
        recipe: the settings as YAML. contamination: a line on what rows were compared with.
    """

    title: str
    model: str
    template: str
    identity: str
    sources: tuple[SourceFigures, ...]
    examples: tuple[ShownExample, ...]
    num_examples: int
    choice: str
    packs: tuple[ShownPack, ...]
    plan: PlanFigures
    ledger: tuple[dict[str, Any], ...]
    recipe: str
    findings: tuple[PageFinding, ...] | None = None
    matches: tuple[PageMatch, ...] | None = None
    run: RunFigures | None = None
    contamination: str = ""


def stretches(trained: np.ndarray) -> tuple[tuple[int, int], ...]:
    """`[start, end)` of each run of True in a bool array."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
