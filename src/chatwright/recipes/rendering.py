"""The data entries of a recipe, read and rendered: every row placed, held out, or listed with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatwright import __version__
from chatwright.batches.token_cache import cache_key
from chatwright.checkpoints.imports import cache_folder
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.documents import text_fingerprint
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import fingerprint
from chatwright.inspection.contamination import ContaminationSettings
from chatwright.inspection.evaluation_texts import Evaluations, collect_evaluations
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.crew import Crew
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.prepare import PlannedEntry, given_entry, plan_entry, prepare
from chatwright.preparation.rows import RowReader
from chatwright.preparation.work import EntryInfo, RenderWork
from chatwright.recipes.pair_settings import PAIR_STAGES
from chatwright.recipes.run_settings import RunSettings
from chatwright.tasks.registry import make_task
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import Template, TrainOn


def mask_policy(entry: DataSettings, settings: RunSettings) -> TrainOn:
    """The mask policy of a data entry: its own, every token before SFT and of plain text, else the template's."""
    if entry.train_on is not None:
        return TrainOn(entry.train_on)
    return TrainOn.EVERYTHING if settings.stage in ("pretrain", "mid") or entry.is_text else settings.template.train_on


def plan_entries(settings: RunSettings, sources: Mapping[str, Any] | None = None) -> list[PlannedEntry]:
    """The data entries of a recipe with their rows, those of the held-out data behind them.

    Args:
        sources: rows in memory by name, in place of the recipe's `data`.

    Raises:
        DataError: a source is missing or empty, or its format unknown.
    """
    seed, rows = settings.train.seed, settings.preparation.rows_per_shard
    names: Counter[str] = Counter()
    planned: list[PlannedEntry] = []
    if sources is None:
        for number, entry in enumerate(settings.data):
            name = own_name(entry.source_name, names)
            planned.append(plan_entry(entry, name, number, mask_policy(entry, settings), rows, seed))
    else:
        policy = mask_policy(DataSettings(path="memory"), settings)
        pairs = settings.stage in PAIR_STAGES
        planned = [given_entry(rows, name, policy, pairs=pairs) for name, rows in sources.items()]
    for number, entry in enumerate(settings.heldout.data, len(planned)):
        policy = mask_policy(entry, settings)
        name = own_name(f"{entry.source_name} (held out)", names)
        planned.append(plan_entry(entry, name, number, policy, rows, seed, heldout=True))
    return planned


def own_name(name: str, seen: Counter[str]) -> str:
    """Two entries may read one file: the ledger keeps them apart by number."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name} #{seen[name]}"


def read_entry(entry: DataSettings, seed: int) -> tuple[list[Conversation], EntryInfo]:
    """The conversations of one data entry as they are trained on: converted, transformed and filtered.

    Raises:
        DataError: a bad row, or no rows.
    """
    planned = plan_entry(entry, entry.source_name, 0, TrainOn.ASSISTANT, rows_per_shard=1 << 40, seed=seed)
    reader = RowReader(planned.work, seed)
    conversations = list(reader.read(planned.read()))
    return conversations, reader.facts.info(planned.work)


def render_entries(
    settings: RunSettings,
    template: Template,
    sources: Mapping[str, Any] | None,
    *,
    text_folder: Path | None = None,
    folder: Path | None = None,
    key: str = "",
    crew: Crew | None = None,
) -> Rendered:
    """Read and render everything a recipe names.

    Examples over `max_tokens` are left out and told in the entries where the recipe says `overflow: error`, too: who
    trains on the rest must refuse them first (`require_fitting`).

    Args:
        text_folder: the tokenizer's files, for worker processes; with `folder` only.
        folder, key, crew: see `prepare`.

    Raises:
        DataError: see `chatwright.recipes.data.build_data`.
    """
    overflow = Overflow.DROP if settings.overflow is Overflow.ERROR else settings.overflow
    work = RenderWork(str(text_folder or ""), template.settings, settings.max_tokens, overflow, settings.train.seed)
    crew = crew or Crew()
    check = crew.together(lambda: contamination_check(settings))
    return prepare(
        crew.together(lambda: plan_entries(settings, sources)),
        work,
        template,
        settings.preparation,
        settings.heldout.share,
        folder=folder,
        key=key,
        check=check,
        crew=crew,
    )


@lru_cache(maxsize=1)
def _evaluations(names: tuple[str, ...] | None) -> Evaluations:
    return collect_evaluations(names)


def contamination_check(settings: RunSettings) -> ContaminationCheck | None:
    """What the rows are compared with, its index built if need be; None where the recipe doesn't ask for it.

    Raises:
        UserError: an evaluation that is asked for by name can't be had.
    """
    chosen = settings.contamination
    if chosen is None:
        return None
    return ContaminationCheck.prepare(_evaluations(chosen.evaluations), chosen, cache_folder())


def data_fingerprint(settings: RunSettings, template: Template) -> str | None:
    """What the token cache is keyed by; None where the data can't be fingerprinted without reading it all."""
    data, heldout = (fingerprints(entries) for entries in (settings.data, settings.heldout.data))
    if data is None or heldout is None:
        return None
    return cache_key(
        program=__version__,
        data=data,
        heldout=heldout,
        tokenizer=template.tokenizer.identity,
        template=template.identity,
        train_on=str(settings.template.train_on),
        stage=settings.stage,
        share=settings.heldout.share,
        seed=settings.train.seed,
        max_tokens=settings.max_tokens,
        overflow=_overflow_identity(settings.overflow),
        contamination=contamination_identity(settings.contamination),
    )


def _overflow_identity(overflow: Overflow) -> str:
    """`error` and `drop` give the same tokens, and the same record of what was too long."""
    return "error or drop" if overflow in (Overflow.ERROR, Overflow.DROP) else str(overflow)


def fingerprints(entries: Sequence[DataSettings]) -> list[Any] | None:
    """What decides the rows of entries; None where one can't be fingerprinted."""
    found = [
        [entry.model_dump(mode="json", exclude={"epochs", "weight"}), code_of(entry), _entry_fingerprint(entry)]
        for entry in entries
    ]
    return None if any(contents is None for *_, contents in found) else found


def code_of(entry: DataSettings) -> list[str]:
    """What code an entry's transforms and filters depend on beside ours: hashes and versions, in their order."""
    return [each.identity() for each in (*entry.transforms, *entry.filters)]


def contamination_identity(settings: ContaminationSettings | None) -> list[Any] | None:
    """What decides the marks of rows: the settings, and the evaluations' texts."""
    return None if settings is None else [settings.model_dump(mode="json"), _evaluations(settings.evaluations).identity]


def _entry_fingerprint(entry: DataSettings) -> str | None:
    """What the entry's files hold; empty where its task makes its rows itself."""
    if entry.task:
        return make_task(entry.task, **entry.task_options).fingerprint(entry.split)
    return (text_fingerprint if entry.is_text else fingerprint)(entry.path or "")
