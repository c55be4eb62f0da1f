"""The few short examples of the recipe's own data that the laws are checked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from chatwright.batches.token_store import TokenStore
from chatwright.conversations.preference_types import PairConversation
from chatwright.conversations.schema import Conversation
from chatwright.errors import DataError
from chatwright.inspection.plan_counts import count_plan
from chatwright.packing.pack_plan import PackPlan
from chatwright.packing.plan import PackingSettings, plan_packs
from chatwright.recipes.data import RunData, TextSetup
from chatwright.recipes.pair_settings import PAIR_STAGES
from chatwright.recipes.preferences import as_pairs
from chatwright.recipes.rendering import mask_policy, read_entry, render_entries
from chatwright.recipes.run_settings import HeldoutSettings, RunSettings
from chatwright.templates.overflow import Overflow
from chatwright.templates.pairs import pair_sides
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import TrainOn

RESUME_STEPS = 6
"""Steps of the short run that is interrupted in its middle."""


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How much is looked at: rows read of each data entry, examples computed on, and their length in tokens."""

    rows: int = 8
    examples: int = 6
    tokens: int = 128


FULL = SampleSize(rows=200, examples=16, tokens=512)


@dataclass(frozen=True, slots=True)
class Sample:
    """Some first rows of every data entry.

    Args:
        conversations: all rows read. by_example: the conversation of each example of `data.store`.
        policies: the mask policy of each example.
        data: the short examples, with the plan of a run of `RESUME_STEPS` steps.
        members: the examples to compute on: at least two (a lone example twice), short ones of every entry first.
        pairs: of a recipe of preference pairs the pairs themselves, whose two sides are the examples of `data`;
            `pair_members` are those to compute on.
    """

    conversations: tuple[Conversation, ...]
    by_example: tuple[Conversation, ...]
    policies: tuple[TrainOn, ...]
    data: RunData
    members: tuple[int, ...]
    pairs: RunData | None = None
    pair_members: tuple[int, ...] = ()

    @property
    def run_data(self) -> RunData:
        """What a run trains on."""
        return self.pairs or self.data

    @property
    def lengths(self) -> list[int]:
        """Tokens of each member."""
        return [int(self.data.store.lengths[index]) for index in self.members]


def take_sample(settings: RunSettings, text: TextSetup, size: SampleSize) -> Sample:
    """Read, render and choose.

    Raises:
        DataError: the recipe has no data, a bad row, or no row that fits `max_tokens`.
    """
    if not settings.data:
        raise DataError("the recipe has no data to check the laws on", source="recipe", hint="set data")
    entries = tuple(
        entry.model_copy(update={"stop": _stop(entry.start, entry.stop, size.rows), "epochs": 1})
        for entry in settings.data
    )
    changes = {"data": entries, "heldout": HeldoutSettings(), "overflow": Overflow.DROP}
    small = settings.model_copy(update=changes)
    lengths = render_entries(small, text.template, None).store.lengths
    if not len(lengths):
        message = f"none of the first {size.rows} rows of each data entry fits max_tokens ({settings.max_tokens})"
        raise DataError(message, source="recipe", hint="raise max_tokens, or run with --full to look at more rows")
    longest = max(size.tokens, int(np.sort(lengths)[: 2 if len(lengths) > 1 else 1][-1]))
    small = small.model_copy(update={"max_tokens": min(longest, settings.max_tokens)})
    rows = [read_entry(entry, settings.train.seed)[0] for entry in entries]
    data = _run_data(small, text)
    at = {(number, c.source, c.row): c for number, entry_rows in enumerate(rows) for c in entry_rows}
    owners = data.entry_index.tolist()
    found = [at[owner, key.source, key.row] for owner, key in zip(owners, data.store.keys, strict=True)]
    if settings.stage in PAIR_STAGES:
        return _pair_sample(data, found, size)
    return Sample(
        conversations=tuple(conversation for entry_rows in rows for conversation in entry_rows),
        by_example=tuple(found),
        policies=tuple(mask_policy(entries[owner], settings) for owner in owners),
        data=data,
        members=_choose(data, size.examples),
    )


def _pair_sample(data: RunData, found: Sequence[Conversation], size: SampleSize) -> Sample:
    """The sample of pairs, with their sides as the examples of laws about conversations."""
    store = data.store
    sides: list[RenderedExample] = []
    spoken: list[Conversation] = []
    for index, row in enumerate(found):
        assert isinstance(row, PairConversation)
        lengths = (int(store.prompt_lengths[index]), int(store.chosen_lengths[index]))
        sides += pair_sides(RenderedExample(*store.example(index), (), store.key(index), *lengths))
        spoken += [row, row.worse]
    rendered = TokenStore.from_examples(sides, data.text.tokenizer.vocab_size)
    apart = replace(data, store=rendered, entry_index=np.repeat(data.entry_index, 2))
    return Sample(
        conversations=tuple(spoken),
        by_example=tuple(spoken),
        policies=(TrainOn.LAST,) * len(spoken),
        data=apart,
        members=_choose(apart, size.examples),
        pairs=as_pairs(data),
        pair_members=_choose(data, size.examples),
    )


def _stop(start: int | None, stop: int | None, rows: int) -> int:
    last = (start or 0) + rows
    return last if stop is None else min(stop, last)


def _run_data(settings: RunSettings, text: TextSetup) -> RunData:
    """The sample as the data of a run, rendered and counted as every run's; the token cache stays as it is."""
    rendered = render_entries(settings, text.template, None)
    store, seed = rendered.store, settings.train.seed
    packing = PackingSettings(by="tokens", tokens_per_pack=settings.max_tokens, packs_per_step=1)
    plan = plan_packs(store.lengths, packing, seed=seed, max_steps=RESUME_STEPS, name_of=store.name)
    names = [entry.name for entry in rendered.entries]
    count_plan(rendered.ledger, plan, store.lengths, names, rendered.entry_index)
    rendered.ledger.check()
    return RunData(
        text, store, plan, rendered.heldout, rendered.entries, rendered.entry_index, rendered.ledger, from_cache=False
    )


def _choose(data: RunData, count: int) -> tuple[int, ...]:
    """Examples of all entries in turn, the shortest of each first."""
    by_length = np.argsort(data.store.lengths, kind="stable")
    queues = [[int(i) for i in by_length if data.entry_index[i] == number] for number in range(len(data.entries))]
    turns = max(len(queue) for queue in queues)
    chosen = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)][:count]
    return tuple(chosen if len(chosen) > 1 else chosen * 2)


def one_step_plan(groups: Sequence[Sequence[int]], data: RunData) -> PackPlan:
    """A plan of one step whose packs are these groups of examples."""
    sizes = [len(group) for group in groups]
    return PackPlan(
        members=np.array([index for group in groups for index in group], dtype=np.int64),
        pack_starts=np.cumsum([0, *sizes]).astype(np.int64),
        step_starts=np.array([0, len(groups)], dtype=np.int64),
        epoch_of_pack=np.zeros(len(groups), dtype=np.int64),
        unplaced=(),
        num_examples=len(data.store),
        tokens_per_pack=int(data.store.lengths.sum()) * 2,
    )
