"""A recipe's data as a stream: training starts before the last row is read, and no row is kept behind its window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from chatwright.batches.collate import Collate
from chatwright.batches.loader import FAST_MULTIPLE, StepBatches, made_ahead, on_device, pinned_for, step_batches
from chatwright.batches.token_cache import cache_key
from chatwright.batches.token_store import TokenStore
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.sampled_fingerprint import sampled_fingerprint
from chatwright.errors import ConfigError
from chatwright.inspection.contamination_account import ContaminationAccount
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.preparation.logical_reader import StreamJob, Window
from chatwright.preparation.prepare import Crew
from chatwright.preparation.stream import Counts, Stream, StreamPosition, add_counts, counts_by_entry
from chatwright.preparation.streamed_rows import (
    ROWS_PER_BLOCK,
    ROWS_PER_PART,
    StreamedEntry,
    given_stream,
    stream_entry,
)
from chatwright.preparation.work import EntryInfo, RenderWork
from chatwright.recipes.data import RunData, TextSetup, prepare_heldout, prepare_text, require_data, store_hash
from chatwright.recipes.rendering import code_of, contamination_check, contamination_identity, mask_policy, own_name
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.tasks.registry import make_task

STEPS_AHEAD = 2


class StreamedData:
    """The data of a streamed run, with the faces that training needs of `RunData`.

    Args:
        job: what is streamed. num_steps: the run's steps. heldout: held-out examples.
        identity: sha256 of what decides the steps, by name; the order, the rows (as far as told) and the held-out ones.
    """

    from_cache = False
    collate_heldout: Collate | None = None

    def __init__(
        self, text: TextSetup, job: StreamJob, num_steps: int, heldout: TokenStore, identity: dict[str, str]
    ) -> None:
        self.text, self.job, self.num_steps, self.heldout = text, job, num_steps, heldout
        self.entries = tuple(EntryInfo(each.work.name, each.work.format, 0) for each in job.entries)
        self.position = StreamPosition.beginning(job)
        self._trained: Counts = {}
        self._identity = identity
        self._stream: Stream | None = None

    @property
    def step_weights(self) -> list[float]:
        """All alike: what the steps will weigh isn't known, so the schedule runs over their number."""
        return [1.0] * self.num_steps

    def identity(self) -> dict[str, str]:
        """What must be the same for a run to go on."""
        return self._identity

    def windows(self) -> list[Window]:
        """The readers' next windows: the first look at the data. The steps go on from them."""
        return self._opened().windows()

    def contamination(self, ledger: Ledger) -> ContaminationAccount:
        """What became of the comparison with evaluations in the windows at hand; `ledger`: theirs."""
        check = self.job.check
        if check is None:
            return ContaminationAccount(False)
        found = ContaminationAccount.of(check.empty, ledger, drops=check.settings.on_hit == "drop")
        compared, hit = (sum(counts) for counts in zip(*(each.compared for each in self.windows()), strict=True))
        return replace(found, compared=compared, hit=hit, so_far=True)

    def notes(self) -> dict[str, Counter[str]]:
        """By entry: rows read so far that train as asked, but maybe not as meant, by reason."""
        found: dict[str, Counter[str]] = {entry.name: Counter() for entry in self.entries}
        for reader in self._opened().readers:
            for entry, facts in zip(self.entries, reader.facts, strict=True):
                found[entry.name].update(facts.notes)
        return found

    def steps(self, start: int, runtime: Runtime, pad_to: int | None) -> Iterator[StepBatches]:
        """This rank's batches of every step from `start` on, made ahead in the background.

        Raises:
            DataError: a bad row, or too many dropped. CheckpointError: the rows have changed since the checkpoint.
        """
        if start != self.position.step:
            raise ValueError(f"the stream stands before step {self.position.step}, not {start}")
        if start == self.num_steps:
            return
        stream, self._stream = self._opened(), None

        def make(step: int) -> tuple[StepBatches, StreamPosition, Counts]:
            store, plan, owner = stream.next_step()
            ranks = (runtime.rank, runtime.world_size)
            batches = step_batches(store, plan, 0, *ranks, pad_to=pad_to, pad_multiple=FAST_MULTIPLE)
            counts = counts_by_entry(self.job, owner, store.lengths)
            return pinned_for(replace(batches, step=step), runtime.device), stream.position, counts

        try:
            for batches, position, counts in made_ahead(make, range(start, self.num_steps), STEPS_AHEAD):
                self.position = position
                add_counts(self._trained, counts)
                yield on_device(batches, runtime.device)
        finally:
            stream.close()

    def ledger_after(self, step: int) -> Ledger:
        """The account behind the newest step that was given; `trained` is what was given, step by step."""
        assert step == self.position.step, f"asked for step {step}, given {self.position.step}"
        ledger = self.position.ledger()
        for name, (rows, tokens) in self._trained.items():
            ledger.count(name, Stage.TRAINED, rows, tokens)
        return ledger

    def loader_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps, to go on behind the newest step that was given."""
        assert step == self.position.step, f"asked for step {step}, given {self.position.step}"
        return {"stream": self.position.to_dict(), "trained": {k: list(v) for k, v in self._trained.items()}}

    def go_on(self, counters: Mapping[str, Any]) -> None:
        """Stand where a checkpoint's counters say."""
        self.close()
        self.position = StreamPosition.from_dict(counters["stream"])
        self._trained = {name: (rows, tokens) for name, (rows, tokens) in counters["trained"].items()}

    def close(self) -> None:
        """Stop reading ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _opened(self) -> Stream:
        if self._stream is None:
            self._stream = Stream(self.job, self.position)
        return self._stream


TrainingData = RunData | StreamedData
"""What a run trains on: planned whole, or streamed."""


def build_stream(
    settings: RunSettings,
    sources: Mapping[str, Any] | None = None,
    crew: Crew | None = None,
) -> StreamedData:
    """Find the sources and their formats; nothing else is read yet, but for the held-out data.

    Args:
        settings, sources, crew: see `build_data`. Sources in memory are mixed in equal shares; a function is called for
            an iterator as often as its rows are needed; an iterator must not end before the run does.

    Raises:
        DataError: a source is missing or empty, or its format unknown. ConfigError: the recipe isn't streamed.
    """
    streaming, num_steps = settings.streaming, settings.stream_steps
    if streaming is None or num_steps is None:
        raise ConfigError(["streaming: must be set"], source="recipe")
    require_data(settings, sources)
    text = prepare_text(settings)
    heldout = prepare_heldout(settings, text, crew)
    entries = tuple(_entries(settings, sources))
    folder = str(text.resolved.text_folder)
    template = text.template
    render = RenderWork(folder, template.settings, settings.max_tokens, settings.overflow, settings.train.seed)
    check = (crew or Crew()).together(lambda: contamination_check(settings))
    job = StreamJob(entries, render, template, settings.packing, streaming, check)
    dealt = [streaming.readers, ROWS_PER_BLOCK, ROWS_PER_PART]
    identity = {
        "plan": cache_key(dealt=dealt, packing=settings.packing.model_dump(mode="json"), steps=num_steps),
        "data": _data_identity(settings, text, entries, given=sources is not None),
        "heldout": store_hash(heldout),
    }
    return StreamedData(text, job, num_steps, heldout, identity)


def _entries(settings: RunSettings, sources: Mapping[str, Any] | None) -> Iterator[StreamedEntry]:
    if sources is not None:
        policy = mask_policy(DataSettings(path="memory"), settings)
        for number, (name, rows) in enumerate(sources.items()):
            yield given_stream(rows, name, number, policy)
        return
    names: Counter[str] = Counter()
    for number, entry in enumerate(settings.data):
        name = own_name(entry.source_name, names)
        yield stream_entry(entry, name, number, mask_policy(entry, settings), settings.train.seed)


def _data_identity(settings: RunSettings, text: TextSetup, entries: tuple[StreamedEntry, ...], *, given: bool) -> str:
    """As `data_fingerprint`, but from a look at the sources; rows in memory are known by their first window only."""
    prints = [[each.work.name, each.work.format] for each in entries]
    if not given:
        prints += [[entry.model_dump_json(), *code_of(entry), _look(entry)] for entry in settings.data]
    dropping = settings.contamination is not None and settings.contamination.on_hit == "drop"
    return cache_key(
        data=prints,
        tokenizer=text.tokenizer.identity,
        template=text.template.identity,
        train_on=str(settings.template.train_on),
        stage=settings.stage,
        seed=settings.train.seed,
        max_tokens=settings.max_tokens,
        overflow=str(settings.overflow),
        contamination=contamination_identity(settings.contamination) if dropping else None,
    )


def _look(entry: DataSettings) -> str:
    if entry.task:
        return make_task(entry.task, **entry.task_options).fingerprint(entry.split) or ""
    return sampled_fingerprint(entry.path or "")
