"""From a recipe to tokens: conversations, template, token store, packing plan and ledger. No weights are touched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chatwright.batches.collate import Collate
from chatwright.batches.loader import FAST_MULTIPLE, StepBatches, StepLoader
from chatwright.batches.token_store import TokenStore
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.conversations.filters import prepare_filters
from chatwright.errors import ConfigError, DataError
from chatwright.inspection.ledger import Ledger
from chatwright.inspection.ledger import Stage as LedgerStage
from chatwright.inspection.plan_counts import count_plan, count_trained
from chatwright.packing.mixture import Mixture, SourceShare
from chatwright.packing.plan import PackPlan, plan_packs
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.crew import Crew
from chatwright.preparation.work import EntryInfo
from chatwright.recipes.joined_packs import cut_into_pieces
from chatwright.recipes.new_model import new_model_folder
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.template_record import stored_template_settings
from chatwright.recipes.tokens import find_tokens
from chatwright.runtime import Runtime
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from chatwright.recipes.streaming import TrainingData


@dataclass(frozen=True, slots=True)
class TextSetup:
    """The model's folder with the tokenizer and template that everything else uses."""

    resolved: ResolvedModel
    template: Template

    @property
    def tokenizer(self) -> TextTokenizer:
        """The template's tokenizer, with any token that it added."""
        return self.template.tokenizer

    @property
    def learned_ids(self) -> frozenset[int]:
        """Control tokens that an earlier training by Chatwright has mapped to tool roles and taught the model."""
        stored = stored_template_settings(self.resolved.text_folder)
        if stored is None:
            return frozenset()
        return frozenset(load_template(TextTokenizer.load(self.resolved.text_folder), stored).trained_token_ids)


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything a trainer or a plan needs to know of the data.

    Args:
        text: model folder, tokenizer and template.
        store: training examples. plan: their packs and steps.
        heldout: held-out examples, never trained on; empty for none.
        entries: what each data entry gave. entry_index: int64 `[n]`, the entry of each training example.
        ledger: counted, named reasons for all that was left out.
        from_cache: the tokens were read from the cache, not rendered anew.
        contamination: what `ContaminationReport.to_dict` gives, where the recipe compares rows with evaluations.
        heldout_entries: what each entry of held-out data of its own gave.
        collate, collate_heldout: how training and held-out examples become a batch; None: by `batches.collate`.
    """

    text: TextSetup
    store: TokenStore
    plan: PackPlan
    heldout: TokenStore
    entries: tuple[EntryInfo, ...]
    entry_index: np.ndarray
    ledger: Ledger
    from_cache: bool
    contamination: dict[str, Any] | None = None
    heldout_entries: tuple[EntryInfo, ...] = ()
    collate: Collate | None = None
    collate_heldout: Collate | None = None

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.num_steps

    @property
    def step_weights(self) -> list[float]:
        """The supervised weight of every step, which the learning-rate schedule runs over."""
        weights: list[float] = self.plan.step_sums(self.store.weight_sums).tolist()
        return weights

    def identity(self) -> dict[str, str]:
        """sha256 of what a run trains on: the plan's order, the tokens with their weights, and the held-out ones."""
        return {"plan": self.plan.fingerprint(), "data": store_hash(self.store), "heldout": store_hash(self.heldout)}

    def steps(self, start: int, runtime: Runtime, pad_to: int | None) -> Iterable[StepBatches]:
        """This rank's batches of every step from `start` on."""
        ranks = (runtime.rank, runtime.world_size)
        options: dict[str, Any] = {"start_step": start, "pad_to": pad_to, "pad_multiple": FAST_MULTIPLE}
        options["collate_with"] = self.collate
        return StepLoader(self.store, self.plan, *ranks, runtime.device, **options)

    def ledger_after(self, step: int) -> Ledger:
        """The ledger with what the first `step` steps trained."""
        ledger = Ledger.from_dict(self.ledger.to_dict())
        done = self.plan.members[: self.plan.pack_starts[self.plan.step_starts[step]]]
        count_trained(ledger, done, self.store.lengths, [e.name for e in self.entries], self.entry_index)
        return ledger

    def loader_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps to go on behind a step: nothing, since a step's number says all."""
        return {}

    def go_on(self, counters: Mapping[str, Any]) -> None:
        """Stand where a checkpoint's counters say: the step's number says it."""


def store_hash(store: TokenStore) -> str:
    """sha256 of a store's tokens and weights."""
    digest = hashlib.sha256()
    for array in (store.offsets, store.ids, store.run_lengths, store.run_weights, store.run_offsets):
        digest.update(np.ascontiguousarray(array).data)
    if store.chosen_lengths.any():  # pairs; the identity of all other data stays what it was
        for array in (store.prompt_lengths, store.chosen_lengths):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def prepare_text(settings: RunSettings) -> TextSetup:
    """Find the model and load its tokenizer and template (no weights).

    A model that Chatwright trained keeps the template it was trained with, unless the recipe sets another.

    Raises:
        ModelError: there is no such model. TemplateError: its template can't be used as asked.
    """
    resolved = new_model_folder(settings.new_model) if settings.new_model else resolve_model(settings.model_name)
    stored = stored_template_settings(resolved.text_folder)
    chosen = stored if stored is not None and settings.template == TemplateSettings() else settings.template
    tokenizer = TextTokenizer.load(resolved.text_folder)
    return TextSetup(resolved, load_template(tokenizer, chosen))


def build_data(
    settings: RunSettings, sources: Mapping[str, Any] | None = None, crew: Crew | None = None
) -> TrainingData:
    """What a recipe trains on, by its stage."""
    from chatwright.recipes.stages import stage_of

    return stage_of(settings).build_data(settings, sources, crew)


def build_rows(
    settings: RunSettings, sources: Mapping[str, Any] | None = None, crew: Crew | None = None
) -> TrainingData:
    """Rows that are read, rendered and planned whole (`build_planned`), or a stream of them (`build_stream`)."""
    from chatwright.recipes.streaming import build_stream

    return (
        build_planned(settings, sources, crew) if settings.streaming is None else build_stream(settings, sources, crew)
    )


def require_data(settings: RunSettings, sources: Mapping[str, Any] | None) -> None:
    """Refuse a recipe without data, or with a filter that can't be had.

    Raises:
        DataError: there is none. UserError: a filter's function, language or library is missing.
    """
    if not (settings.data if sources is None else sources):
        raise DataError("there is no data to train on", source="data", hint="set data: [{path: FILE}]")
    for number, entry in enumerate(settings.data if sources is None else ()):
        prepare_filters(entry.filters, f"data.{number}.filters")


def build_planned(settings: RunSettings, sources: Mapping[str, Any] | None = None, crew: Crew | None = None) -> RunData:
    """Read, render, check lengths, and plan.

    Args:
        settings: the recipe.
        sources: rows in memory by name (lists, iterators, `datasets.Dataset`, or `Conversation`s), in
            place of the recipe's `data`.
        crew: the ranks of a run, which share the preparation of the data; all of them must call this.

    Raises:
        DataError: a bad row, a row with nothing to train, over-long rows, or no rows at all.
        UserError: another process of the crew has found one.
        ConfigError: the recipe is streamed, and has no plan of the whole data.
    """
    if settings.streaming is not None:
        problem = "streaming: this needs all rows at once, and a stream has none; add --set streaming=false"
        raise ConfigError([problem], source="recipe")
    require_data(settings, sources)
    crew = crew or Crew()
    text = crew.together(lambda: prepare_text(settings))
    rendered, from_cache = _rendered(settings, text, sources, crew)
    store, ledger = rendered.store, rendered.ledger
    if not len(store):
        why = "; ".join(f"{e.rows:,} {e.stage}: {e.reason}" for e in ledger.entries() if e.reason)
        raise DataError(
            f"no row is left to train on{f' ({why})' if why else ''}",
            source=", ".join(entry.name for entry in rendered.entries),
            hint=_empty_hint(settings, ledger),
        )
    names = [entry.name for entry in rendered.entries]
    owner = rendered.entry_index
    mixture: Mixture | None = build_mixture(settings, rendered, given=sources is not None)
    if not settings.packing.exact and mixture is not None:
        parts = (store, owner, mixture, settings.packing, settings.train.seed, ledger, names)
        (store, owner), mixture = cut_into_pieces(*parts), None
    plan = plan_packs(
        store.lengths,
        settings.packing,
        seed=settings.train.seed,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        name_of=store.name,
        mixture=mixture,
    )
    count_plan(ledger, plan, store.lengths, names, owner)
    ledger.check()
    return RunData(
        text,
        store,
        plan,
        rendered.heldout,
        rendered.entries,
        owner,
        ledger,
        from_cache,
        rendered.contamination,
        rendered.heldout_entries,
    )


def _empty_hint(settings: RunSettings, ledger: Ledger) -> str:
    """The next step where every row was lost."""
    limit = f"{settings.max_tokens} tokens"
    if any(entry.stage is LedgerStage.DROPPED and limit in (entry.reason or "") for entry in ledger.entries()):
        cut = ", or set overflow: truncate, which cuts long rows" if settings.overflow is Overflow.DROP else ""
        return f"raise max_tokens{cut}"
    return "chatwright inspect RECIPE shows the rows; change the filters or the data"


def prepare_heldout(settings: RunSettings, text: TextSetup, crew: Crew | None) -> TokenStore:
    """The held-out data of its own that a recipe names, prepared without the rest."""
    if not settings.heldout.data:
        return TokenStore.from_examples([])
    return _rendered(settings.model_copy(update={"data": ()}), text, None, crew)[0].heldout


def build_mixture(settings: RunSettings, rendered: Rendered, *, given: bool = False) -> Mixture:
    """The mixture of the recipe's data entries; of sources in memory (`given`), each is seen once an epoch."""
    entries = (None,) * len(rendered.entries) if given else settings.data
    shares = [
        SourceShare(info.name) if entry is None else SourceShare(info.name, entry.epochs, entry.weight)
        for info, entry in zip(rendered.entries, entries, strict=True)
    ]
    store = rendered.store
    rows = store.source_index.astype(np.int64) << 40 | store.rows  # files of one entry number their rows alike
    return Mixture(rendered.entry_index, shares, settings.mixture, seed=settings.train.seed, rows=rows)


def _rendered(
    settings: RunSettings, text: TextSetup, sources: Mapping[str, Any] | None, crew: Crew | None
) -> tuple[Rendered, bool]:
    """The rendered examples, and whether they were there already."""
    tokens = find_tokens(settings, text.template, text.resolved.text_folder, sources, crew)
    return tokens.rendered, tokens.origin != "made"
