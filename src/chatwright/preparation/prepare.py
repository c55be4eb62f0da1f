"""All data entries of a recipe → tokens: in this process, or cut into shards for workers and ranks.

However the work is shared, the same rows give the same bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from chatwright.console import ProgressLine, duration, note
from chatwright.conversations.converters import ROWS_TO_DETECT, detect_format
from chatwright.conversations.data_settings import TEXT, DataSettings
from chatwright.conversations.documents import document_conversation
from chatwright.conversations.files import RawRow
from chatwright.conversations.preference_types import PairConversation, PreferencePair, pair_conversation
from chatwright.conversations.preferences import detect_preference_format
from chatwright.conversations.schema import Conversation, Document
from chatwright.conversations.sources import memory_rows, require_fields
from chatwright.errors import DataError, UserError
from chatwright.preparation.assemble import Load, Rendered, assemble
from chatwright.preparation.cache import aside_of, install, only_one, read_rendered, sweep, write_account
from chatwright.preparation.crew import Crew
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.ray_shards import make_shards_with_ray
from chatwright.preparation.rows import RowFacts, named_rows, prepare_rows
from chatwright.preparation.shards import has_shard, made_shards, make_shard, read_shard, shard_rows, split_entry
from chatwright.preparation.work import EntryWork, PreparationSettings, RenderWork, Shard
from chatwright.preparation.worker import Start
from chatwright.preparation.workers import make_shards, num_cores
from chatwright.tasks.registry import make_task
from chatwright.templates.base import Template, TrainOn

SLOW_SECONDS = 5.0
"""Preparation that takes longer than this says how fast it was."""
_STOP = "stop"


class _Stopped(Exception):
    """Another process of this machine has found a mistake."""


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """An entry with its rows: those at hand (`rows`, made or given in memory), or the shards they are cut into."""

    work: EntryWork
    rows: Callable[[], Iterable[RawRow]] | None = None
    shards: tuple[Shard, ...] = ()

    def read(self) -> Iterable[RawRow]:
        """All raw rows of the entry, in order."""
        if self.rows is not None:
            return self.rows()
        return (row for shard in self.shards for row in shard_rows(shard))

    def is_large(self) -> bool:
        """Whether it has more rows than one shard; where only reading tells that, so many are read."""
        return len(self.shards) > 1 or any(
            next(islice(shard_rows(shard), shard.rows_per_piece, None), None) is not None
            for shard in self.shards
            if shard.rows_per_piece
        )


def plan_entry(
    entry: DataSettings,
    name: str,
    number: int,
    train_on: TrainOn,
    rows_per_shard: int,
    seed: int,
    *,
    heldout: bool = False,
) -> PlannedEntry:
    """Find an entry's rows and their format.

    Args:
        name: what the ledger calls it. number: its place, part of its shards' names.
        seed: of the run, for tasks that generate.

    Raises:
        DataError: there is no such source, it has no rows, or rows of no known format. ConfigError: no such task.
    """
    if entry.task:
        task = make_task(entry.task, **entry.task_options)
        made = task.conversations(entry.split, entry.stop, seed)[entry.start or 0 :: entry.step]
        work = EntryWork(entry, name, f"task ({entry.split})", train_on, heldout)
        return PlannedEntry(work, partial(named_rows, made, name))
    draft = EntryWork(entry, name, entry.format, train_on, heldout)
    shards = split_entry(draft, number, rows_per_shard)
    head = list(islice((row for shard in shards for row in shard_rows(shard)), ROWS_TO_DETECT))
    if not head:
        chosen = entry.start or entry.stop is not None
        where = f" in [{entry.start or 0}, {'end' if entry.stop is None else entry.stop})" if chosen else ""
        raise DataError(f"there are no rows{where}", source=entry.path or "", hint="give a source that has rows")
    work = EntryWork(entry, name, entry_format(entry, head), train_on, heldout)
    return PlannedEntry(work, shards=tuple(replace(shard, work=work) for shard in shards))


def entry_format(entry: DataSettings, head: Sequence[RawRow]) -> str:
    """The entry's format; where it is detected, from its first rows (at least one) that can be read.

    Raises:
        DataError: none can be read, or they are of no known format, or have none of a renamed field.
    """
    if entry.is_text:
        return TEXT
    require_fields(entry.path or "", entry.hub_mode, entry.renames)
    if entry.format != "auto":
        return entry.format
    if entry.on_bad_row == "error":
        for row in head:
            if row.error:
                raise row.error
    readable = [row.value for row in head if not row.error]
    if not readable:
        raise head[0].error or DataError("no row can be read", source=entry.path or "")
    return (detect_preference_format if entry.preference else detect_format)(readable, entry.path or "")


def given_entry(rows: Any, name: str, train_on: TrainOn, *, pairs: bool = False) -> PlannedEntry:
    """An entry of rows in memory: lists, iterators, `datasets.Dataset`s, `Conversation`s, `Document`s or pairs.

    Args:
        pairs: they are preference pairs: rows of a preference format, or `PreferencePair`s.

    Raises:
        DataError: there are no rows, or rows of no known format.
    """
    entry = DataSettings(path=name, preference="pairs" if pairs else None)
    held = rows if hasattr(rows, "features") else list(map(_as_conversation, rows))
    if pairs and any(isinstance(row, Conversation) and not isinstance(row, PairConversation) for row in held):
        raise DataError("conversations are no pairs", source=name, hint="give rows with two replies each")
    if len(held) and all(isinstance(row, Conversation) for row in held):
        return PlannedEntry(EntryWork(entry, name, "conversations", train_on), partial(named_rows, held, name))
    raw = [row._replace(source=name) for row in memory_rows(held)]
    if not raw:
        raise DataError("there are no rows", source=name, hint="give a source that has rows")
    format = (detect_preference_format if pairs else detect_format)([row.value for row in raw], name)
    return PlannedEntry(EntryWork(entry, name, format, train_on), lambda: raw)


def _as_conversation(row: Any) -> Any:
    if isinstance(row, PreferencePair):
        return pair_conversation(row)
    return document_conversation(row) if isinstance(row, Document) else row


def prepare(
    entries: Sequence[PlannedEntry],
    render: RenderWork,
    template: Template,
    settings: PreparationSettings,
    share: float,
    *,
    folder: Path | None = None,
    key: str = "",
    check: ContaminationCheck | None = None,
    crew: Crew | None = None,
) -> Rendered:
    """Make the tokens of all entries.

    Args:
        template: what `render.load_template()` gives.
        share: the part of the rows to hold out.
        folder: where they are kept under `key`, memory-mapped; None keeps them in memory. The shards of large data
            stand beside it until all are made, so that an interrupted preparation goes on where it was.
        crew: this process and the others that prepare the same; those of a machine share its shards.

    Raises:
        DataError: a bad row, one with nothing to train, or over-long ones. UserError: another process found one.
    """
    crew = crew or Crew()
    render = replace(render, compared=share > 0 or any(entry.work.heldout for entry in entries))
    job = _Job(entries, render, template, share, check)
    if folder is not None and not crew.alone:
        return _by_crew(job, settings, folder, key, crew)
    if folder is None or not any(entry.is_large() for entry in entries):
        return _kept(job, job.in_memory(), folder, key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        with only_one(folder):
            return read_rendered(folder, key) or _sharded(job, settings, folder, key)
    except OSError as error:
        note(f"the tokens can't be cached in {folder.parent}: {error.strerror or error}")
        return assemble(job.in_memory(), render, share, None, key)


def _by_crew(job: _Job, settings: PreparationSettings, folder: Path, key: str, crew: Crew) -> Rendered:
    """Each process makes its shards, the first of a machine puts them together, all open the result.

    A machine that has the tokens already only meets the others.
    """
    began = time.monotonic()
    store = folder.with_name(f"{folder.name}.crew-shards")
    here = crew.machine_has(read_rendered(folder, key) is not None)
    try:
        crew.together(lambda: (store / _STOP).unlink(missing_ok=True) if crew.is_first else None)
        crew.together(lambda: None if here else _make_share(job, settings, store, crew))
        crew.together(lambda: None if here or crew.rank else _keep(job, job.from_shards(store), folder, key))
        rendered = crew.together(
            lambda: read_rendered(folder, key) or assemble(job.from_shards(store), job.render, job.share, None, key)
        )
    except (UserError, OSError) as error:
        rendered = _after_trouble(error, job, folder, key, crew)
    if crew.is_first:
        shutil.rmtree(store, ignore_errors=True)
    if crew.is_main:
        _tell_rate(rendered, time.monotonic() - began, settings, crew)
    return rendered


def _after_trouble(error: UserError | OSError, job: _Job, folder: Path, key: str, crew: Crew) -> Rendered:
    """Another run on this machine may have made the same tokens, and removed our shards; a full disk costs time only.

    Raises:
        UserError: the mistake that was found.
    """
    cached = read_rendered(folder, key)
    if crew.all_of(cached is not None) and cached is not None:
        return cached
    if isinstance(error, UserError):
        raise error
    if crew.is_first:
        note(f"the tokens can't be cached in {folder.parent}: {error.strerror or error}")
    return crew.together(lambda: assemble(job.in_memory(), job.render, job.share, None, key))


@dataclass(frozen=True, slots=True)
class _Job:
    """What is prepared, however it is shared."""

    entries: Sequence[PlannedEntry]
    render: RenderWork
    template: Template
    share: float
    check: ContaminationCheck | None

    def in_memory(self) -> list[tuple[EntryWork, Sequence[Load]]]:
        """Every entry, made here and held in memory."""
        with _progress() as advance:
            return [(entry.work, [self._whole(entry, advance)]) for entry in self.entries]

    def from_shards(self, store: Path) -> list[tuple[EntryWork, Sequence[Load]]]:
        """Every entry from its shards; those without are made here."""
        parts: list[tuple[EntryWork, Sequence[Load]]] = []
        for entry in self.entries:
            loads: list[Load] = [partial(read_shard, store, shard) for shard in made_shards(store, entry.shards)]
            parts.append((entry.work, loads or [self._whole(entry, lambda rows: None)]))
        return parts

    def _whole(self, entry: PlannedEntry, done: Callable[[int], None]) -> Load:
        prepared = prepare_rows(entry.read(), entry.work, self.render, self.template, self.check, done)
        return lambda: prepared


def _kept(job: _Job, parts: Sequence[tuple[EntryWork, Sequence[Load]]], folder: Path | None, key: str) -> Rendered:
    """Put the parts together and keep them in `folder`; where that can't be written, in memory.

    A cache that can't be written costs time on the next start, never this run.
    """
    if folder is not None:
        _keep(job, parts, folder, key)
        if kept := read_rendered(folder, key):
            return kept
    return assemble(parts, job.render, job.share, None, key)


def _keep(job: _Job, parts: Sequence[tuple[EntryWork, Sequence[Load]]], folder: Path, key: str) -> None:
    """Put the parts together in `folder`; says so where that can't be written."""
    aside = aside_of(folder)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        write_account(assemble(parts, job.render, job.share, aside, key), aside)
        install(aside, folder)
    except OSError as error:
        note(f"the tokens can't be cached in {folder.parent}: {error.strerror or error}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sharded(job: _Job, settings: PreparationSettings, folder: Path, key: str) -> Rendered:
    """Make the shards, and put them together."""
    began = time.monotonic()
    store = folder.with_name(f"{folder.name}.shards")
    had = {path.name for path in store.iterdir()} if store.is_dir() else set()
    try:
        _make_share(job, settings, store, Crew())
    except OSError:
        _remove_new(store, had)
        raise
    rendered = _kept(job, job.from_shards(store), folder, key)
    shutil.rmtree(store, ignore_errors=True)
    _tell_rate(rendered, time.monotonic() - began, settings, Crew())
    return rendered


def _remove_new(store: Path, had: set[str]) -> None:
    """Remove what this run has written to a full disk; shards of an earlier one stay, which may go on elsewhere."""
    for path in store.iterdir() if store.is_dir() else ():
        if path.name not in had:
            shutil.rmtree(path, ignore_errors=True)
    if not had:
        shutil.rmtree(store, ignore_errors=True)


def _make_share(job: _Job, settings: PreparationSettings, store: Path, crew: Crew) -> None:
    """Make this process's share of the machine's shards; ends early when another process has found a mistake.

    Raises:
        UserError: a mistake in the data.
    """
    store.mkdir(parents=True, exist_ok=True)
    shards = [shard for entry in job.entries for shard in entry.shards]
    mine = shards[crew.rank :: crew.size]
    if settings.ray:  # a cluster is asked by one process of a machine
        mine = shards if crew.is_first else []
    mine = [shard for shard in mine if not has_shard(store, shard)]
    try:
        _make(mine, Start(job.render, store, job.check), job.template, settings, crew)
    except _Stopped:
        return  # that process tells of it when all meet
    except UserError:
        if crew.size > 1:
            (store / _STOP).touch()
        raise


def _workers(settings: PreparationSettings, crew: Crew) -> int:
    return max(1, (settings.workers or num_cores()) // crew.size)


def _make(shards: Sequence[Shard], start: Start, template: Template, settings: PreparationSettings, crew: Crew) -> None:
    """Make shards here, with workers or in a Ray cluster, with a progress bar in rows."""
    workers = _workers(settings, crew)
    with _progress(shown=crew.is_main) as advance:

        def done(facts: RowFacts) -> None:
            advance(facts.num_rows)
            if crew.size > 1 and (start.folder / _STOP).exists():
                raise _Stopped

        if settings.ray:
            make_shards_with_ray(shards, start, settings.ray, settings.workers, done)
            return
        if min(workers, len(shards)) > 1:
            make_shards(shards, start, workers, done)
            return
        for shard in shards:
            make_shard(shard, start.render, template, start.check, start.folder, done)


@contextmanager
def _progress(shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Count rows; a bar shows them (if `shown`) once the work turns out to take long."""
    line = ProgressLine("preparing data", "rows")
    done, began, started = 0, time.monotonic(), False

    def advance(rows: int) -> None:
        nonlocal done, started
        done += rows
        if shown and not started and time.monotonic() - began > SLOW_SECONDS:
            started = True
            line.start(done=done)
        if started:
            line.update(done)

    try:
        yield advance
    finally:
        line.stop()


def _tell_rate(rendered: Rendered, seconds: float, settings: PreparationSettings, crew: Crew) -> None:
    if seconds < SLOW_SECONDS:
        return
    made_by = f"Ray ({settings.ray})" if settings.ray else f"{_workers(settings, crew) * crew.size} workers"
    rows = sum(entry.num_rows for entry in rendered.entries)
    tokens = rendered.store.num_tokens + rendered.heldout.num_tokens
    note(
        f"prepared {rows:,} rows, {tokens:,} tokens in {duration(seconds)}: {rows / seconds:,.0f} rows/s, "
        f"{tokens / seconds:,.0f} tokens/s with {made_by}"
    )
