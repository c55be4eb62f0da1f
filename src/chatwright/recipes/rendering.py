"""The data entries of a recipe, read and rendered: every row placed, held out, or listed with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chatwright import __version__
from chatwright.batches.token_cache import cache_key
from chatwright.batches.token_store import TokenStore
from chatwright.console import progress
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import fingerprint, load_conversations
from chatwright.errors import DataError
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import seed_for
from chatwright.tasks.registry import make_task
from chatwright.templates.overflow import fit
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import Template, TrainOn

RENDER_CHUNK = 2000
"""Conversations rendered and encoded together: enough to fill the tokenizer's threads, little enough to hold."""


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What one data entry gave: name, format found, rows read, rows skipped by field, and rows to look at by reason."""

    name: str
    format: str
    num_rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The tokens of all entries; `entry_index` int64 `[n]` tells the entry of each training example."""

    store: TokenStore
    heldout: TokenStore
    entries: tuple[EntryInfo, ...]
    entry_index: np.ndarray
    ledger: Ledger


def read_entry(entry: DataSettings, seed: int, given: Any = None) -> tuple[list[Conversation], EntryInfo]:
    """The conversations of one data entry.

    Args:
        given: rows or conversations in memory, in place of the entry's path.

    Raises:
        DataError: a bad row, or no rows.
    """
    if given is not None:
        rows = given if hasattr(given, "features") else list(given)
        if len(rows) and all(isinstance(row, Conversation) for row in rows):
            return _with_own_rows(rows, entry.source_name), EntryInfo(entry.source_name, "conversations", len(rows))
        loaded = load_conversations(rows, format=entry.format)
        named = [replace(conversation, source=entry.source_name) for conversation in loaded.conversations]
        return named, EntryInfo(entry.source_name, loaded.format, loaded.num_rows, loaded.skip_counts)
    elif entry.task:
        task = make_task(entry.task, **entry.task_options)
        made = task.conversations(entry.split, entry.stop, seed)[entry.start or 0 :]
        return made, EntryInfo(entry.source_name, f"task ({entry.split})", len(made))
    else:
        loaded = load_conversations(
            entry.path or "",
            format=entry.format,
            on_bad_row=entry.on_bad_row,
            start=entry.start,
            stop=entry.stop,
        )
    return loaded.conversations, EntryInfo(entry.source_name, loaded.format, loaded.num_rows, loaded.skip_counts)


def _with_own_rows(conversations: list[Conversation], name: str) -> list[Conversation]:
    """Conversations made in memory, each with a place of its own; those that say where they come from keep it."""
    if len({(c.source, c.row) for c in conversations}) == len(conversations):
        return conversations
    return [replace(conversation, source=name, row=row) for row, conversation in enumerate(conversations)]


def render_entries(settings: RunSettings, template: Template, sources: Mapping[str, Any] | None) -> Rendered:
    """Read and render everything a recipe names.

    Raises:
        DataError: see `chatwright.recipes.data.build_data`.
    """
    named = {name: (DataSettings(path=name), rows) for name, rows in (sources or {}).items()}
    work = list(named.values()) if sources is not None else [(entry, None) for entry in settings.data]
    ledger, seed = Ledger(), settings.train.seed
    infos: list[EntryInfo] = []
    examples: list[RenderedExample] = []
    heldout: list[RenderedExample] = []
    owner: list[int] = []
    read = [read_entry(entry, seed, given) for entry, given in work]
    chosen = _heldout_rows([conversations for conversations, _ in read], settings.heldout.share, seed)
    for number, ((entry, _), (conversations, info)) in enumerate(zip(work, read, strict=True)):
        info = replace(_with_own_name(info, infos), notes=_rows_to_look_at(conversations, template))
        infos.append(info)
        ledger.count(info.name, Stage.READ, info.num_rows)
        for reason, count in info.skipped.items():
            ledger.count(info.name, Stage.SKIPPED, count, reason=f"bad {reason}")
        ledger.count(info.name, Stage.CONVERTED, len(conversations))
        train = [c for c in conversations if (c.source, c.row) not in chosen]
        held = [c for c in conversations if (c.source, c.row) in chosen]
        ledger.count(info.name, Stage.HELD_OUT, len(held))
        made = _render(train, entry, settings, template, ledger, info.name)
        examples += made
        owner += [number] * len(made)
        heldout += _render(held, entry, settings, template, Ledger(), info.name)
    for entry in settings.heldout.data:
        conversations, info = read_entry(entry, seed)
        heldout += _render(conversations, entry, settings, template, Ledger(), info.name)
    return Rendered(
        TokenStore.from_examples(examples),
        TokenStore.from_examples(heldout),
        tuple(infos),
        np.asarray(owner, dtype=np.int64),
        ledger,
    )


def _rows_to_look_at(conversations: Sequence[Conversation], template: Template) -> dict[str, int]:
    """What is trained as asked, but may not be what was meant: reason → rows."""
    inline = template.grammar is not None
    counts = {
        "offer tools, whose definitions this template doesn't show to the model": sum(
            bool(conversation.tools) and inline for conversation in conversations
        ),
        "have an empty reply, which trains the model to say nothing": sum(
            any(m.role == "assistant" and not any(part.text.strip() for part in m.parts) for m in conversation.messages)
            for conversation in conversations
        ),
    }
    return {reason: count for reason, count in counts.items() if count}


def _with_own_name(info: EntryInfo, before: Sequence[EntryInfo]) -> EntryInfo:
    """Two entries may read one file: the ledger keeps them apart by number."""
    same = sum(other.name.split(" #")[0] == info.name for other in before)
    return info if not same else replace(info, name=f"{info.name} #{same + 1}")


def _heldout_rows(read: Sequence[Sequence[Conversation]], share: float, seed: int) -> set[tuple[str, int]]:
    """The held-out rows of each entry: those with the lowest counter-based draws, at least one on either side.

    A row that several entries read is held out of all of them or of none: the first that reads it decides.
    """
    chosen: set[tuple[str, int]] = set()
    seen: set[tuple[str, int]] = set()
    for conversations in read if share else ():
        fresh = {(c.source, c.row) for c in conversations} - seen
        count = min(max(1, round(share * len(fresh))), len(fresh) - 1)
        drawn = sorted(fresh, key=lambda place: (seed_for(seed, "heldout", *place), place))
        chosen.update(drawn[: max(count, 0)])
        seen |= fresh
    return chosen


def _tokens(examples: Sequence[RenderedExample]) -> int:
    return sum(len(example.ids) for example in examples)


def _render(
    conversations: Sequence[Conversation],
    entry: DataSettings,
    settings: RunSettings,
    template: Template,
    ledger: Ledger,
    name: str,
) -> list[RenderedExample]:
    """Render, leave out what trains nothing, and bring over-long examples to length; all counted."""
    policy = mask_policy(entry, settings)
    rendered: list[RenderedExample] = []
    for group in _render_in_chunks(conversations, template, policy, name):
        rendered += group
    ledger.count(name, Stage.EXPANDED, len(rendered) - len(conversations))
    ledger.count(name, Stage.RENDERED, len(rendered), _tokens(rendered))
    kept = _trainable(rendered, entry, template, ledger, name)
    fitted = fit(kept, settings.max_tokens, settings.overflow, template, conversations, policy)
    for drop in fitted.drops:
        ledger.count(name, Stage.DROPPED, 1, drop.tokens, drop.reason)
    for cut in fitted.cuts:
        ledger.count(name, Stage.CUT, 1, cut.tokens, cut.reason)
    lost = sum(record.tokens for record in (*fitted.drops, *fitted.cuts))
    repeated = _tokens(fitted.kept) + lost - _tokens(kept)  # a system prompt stands in every part of a split example
    assert repeated == 0 or fitted.num_added, "fitting changed examples without saying so"
    ledger.count(name, Stage.SPLIT, fitted.num_added, repeated)
    ledger.count(name, Stage.KEPT, len(fitted.kept), _tokens(fitted.kept))
    return list(fitted.kept)


def mask_policy(entry: DataSettings, settings: RunSettings) -> TrainOn:
    """The mask policy of a data entry: its own, every token in mid-training, else the template's."""
    if entry.train_on is not None:
        return TrainOn(entry.train_on)
    return TrainOn.EVERYTHING if settings.stage == "mid" else settings.template.train_on


def _render_in_chunks(
    conversations: Sequence[Conversation], template: Template, policy: TrainOn, name: str
) -> Iterator[list[RenderedExample]]:
    if len(conversations) <= RENDER_CHUNK:
        yield from template.render_many(conversations, policy)
        return
    with progress(len(conversations), f"rendering {name}") as bar:
        for first in range(0, len(conversations), RENDER_CHUNK):
            chunk = conversations[first : first + RENDER_CHUNK]
            yield from template.render_many(chunk, policy)
            bar.advance(len(chunk))


def _trainable(
    examples: Sequence[RenderedExample], entry: DataSettings, template: Template, ledger: Ledger, name: str
) -> list[RenderedExample]:
    """The examples with at least one supervised token.

    Raises:
        DataError: one has none, and the entry doesn't skip bad rows.
    """
    kept = []
    for example in examples:
        if example.num_supervised:
            kept.append(example)
        elif entry.on_bad_row == "skip":
            ledger.count(name, Stage.DROPPED, 1, len(example.ids), "nothing to train")
        else:
            raise DataError(
                "has no token to train on (no assistant reply that the mask policy trains)",
                source=example.key.source,
                row=example.key.row,
                hint="repair or remove the row, set on_bad_row: skip, or choose another template.train_on",
            )
    return kept


def data_fingerprint(settings: RunSettings, template: Template) -> str | None:
    """What the token cache is keyed by; None where the data can't be fingerprinted without reading it all (hub)."""
    prints = []
    for entry in (*settings.data, *settings.heldout.data):
        if entry.path and entry.path.startswith(HUB_PREFIX):
            return None
        prints.append([entry.model_dump(mode="json"), fingerprint(entry.path) if entry.path else None])
    return cache_key(
        program=__version__,
        data=prints,
        tokenizer=template.tokenizer.identity,
        template=template.identity,
        train_on=str(settings.template.train_on),
        stage=settings.stage,
        share=settings.heldout.share,
        seed=settings.train.seed,
        max_tokens=settings.max_tokens,
        overflow=str(settings.overflow),
    )
