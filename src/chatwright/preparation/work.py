"""What is to be done, as plain values that travel to other processes: how to render, an entry, a shard of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.row_ranges import RowRange
from chatwright.settings import Settings
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import Template, TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer


class PreparationSettings(Settings):
    """How data is prepared; the tokens don't depend on it.

    Args:
        workers: processes that render; 0 for as many as there are cores. Small data is rendered without any.
        rows_per_shard: rows that one process renders at a time, and most that are done again after an interruption.
        store: a folder that all machines reach, such as `s3://bucket/tokens`: tokens are fetched from it before they
            are made, and put there after.
        ray: large data is rendered by a Ray cluster: its address, `auto` for the one this machine belongs to, or
            `local` for a new one on this machine.
    """

    workers: int = Field(0, ge=0)
    rows_per_shard: int = Field(10_000, ge=1)
    store: str | None = None
    ray: str | None = None


class StreamingSettings(Settings):
    """Rows are read while the run trains, for data without an end, or too large to prepare first.

    Args:
        readers: logical readers, which share the rows; the steps depend on their number, never on that of the ranks.
        max_tokens: the run's length in tokens, every pack counted as full; in place of `train.max_steps`.
        max_dropped_share: the run stops when more than this share of an entry's examples is too long or trains nothing.
    """

    readers: int = Field(4, ge=1, le=1024)
    max_tokens: int | None = Field(None, gt=0)
    max_dropped_share: float = Field(0.05, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class RenderWork:
    """How conversations become tokens.

    Args:
        folder: where the tokenizer's files are. template: the template's settings.
        max_tokens: longest example; `overflow` says what happens to longer ones.
        seed: of the run, for row transforms and draws.
        compared: rows get keys of what they say, which tell held-out rows from trained ones.
    """

    folder: str
    template: TemplateSettings
    max_tokens: int
    overflow: Overflow
    seed: int
    compared: bool = False

    def load_template(self) -> Template:
        """The template, from the tokenizer's folder."""
        return load_template(TextTokenizer.load(self.folder), self.template)


@dataclass(frozen=True, slots=True)
class EntryWork:
    """One data entry of a recipe, ready to be read.

    Args:
        entry: its settings. name: what the ledger calls it, no two alike.
        format: a name of `CONVERTERS` (of `PREFERENCE_CONVERTERS` where the entry takes a side), `text`, `task` or
            `conversations`; never `auto`.
        train_on: the mask policy.
        heldout: all of it is held out.
        streamed: it is read while the run trains, so one row with nothing to train doesn't stop it.
    """

    entry: DataSettings
    name: str
    format: str
    train_on: TrainOn
    heldout: bool = False
    streamed: bool = False

    @property
    def format_shown(self) -> str:
        """The format, for people."""
        taken = {"chosen": "chosen replies", "pairs": "pairs"}
        return f"{self.format}, {taken[self.entry.preference]}" if self.entry.preference else self.format


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of an entry's rows: what one worker makes into one named folder of tokens.

    Args:
        rows_per_piece: where only reading tells how many rows there are, so many at a time are made and written, each
            to a folder of its own inside; 0 for a shard that is made whole.
    """

    name: str
    work: EntryWork
    rows: RowRange
    rows_per_piece: int = 0


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What one data entry gave.

    Args:
        name: what the ledger calls it. format: the format found.
        num_rows: rows read.
        skipped: bad rows by field. skip_places: a few of them as `file row 3: what was wrong`.
        notes: rows to look at by reason. changed: rows that each transform changed.
        num_examples: rendered. num_too_long: of them longer than `max_tokens` and left out whole; `longest` are a few
            of these as (tokens, source, row), the longest first. Not counted where such examples are cut or split.
    """

    name: str
    format: str
    num_rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    skip_places: tuple[str, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    num_examples: int = 0
    num_too_long: int = 0
    longest: tuple[tuple[int, str, int], ...] = ()

    @staticmethod
    def from_dict(data: dict[str, Any]) -> EntryInfo:
        """What `dataclasses.asdict` gave, read back from JSON."""
        longest = tuple((tokens, source, row) for tokens, source, row in data["longest"])
        return EntryInfo(**{**data, "skip_places": tuple(data["skip_places"]), "longest": longest})
