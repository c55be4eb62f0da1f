"""A trained reward model at work: conversations in, a score for each out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.checkpoints.imports import resolve_model
from chatwright.console import warn
from chatwright.conversations.converters import ROWS_TO_DETECT, are_preferences
from chatwright.conversations.data_settings import BadRow, DataSettings
from chatwright.conversations.files import is_text_file
from chatwright.conversations.preference_types import PairConversation
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import scan_rows
from chatwright.errors import DataError
from chatwright.models.reward_model import RewardModel, load_reward_model
from chatwright.packing.by_length import groups_of_like_length
from chatwright.recipes.rendering import read_entry
from chatwright.recipes.template_record import stored_template_settings
from chatwright.templates.pairs import written_part
from chatwright.templates.template import Template, TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer

_LEAVE_OUT = "or leave it out with --on-bad-row skip"
TOKENS_AT_ONCE = 4096
"""Conversations are scored together up to so many tokens."""


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """A reward model with the template that it was trained with."""

    model: RewardModel
    template: Template

    @staticmethod
    def load(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> RewardScorer:
        """The reward model of that name: a run of ours, a checkpoint, or a folder in Hugging Face's layout.

        Raises:
            ModelError: there is no such model, or it is none that scores. TemplateError: its template can't be used.
        """
        resolved = resolve_model(name)
        model = load_reward_model(resolved.folder, dtype=dtype, device=device).eval()
        chosen = stored_template_settings(resolved.text_folder) or TemplateSettings()
        return RewardScorer(model, load_template(TextTokenizer.load(resolved.text_folder), chosen))

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """One number a conversation, read at the end of its last reply; higher is better.

        Raises:
            DataError: one doesn't end in a reply, or is longer than the model's context.
        """
        scores, faults = self.score_fitting(conversations)
        if faults:
            raise next(iter(faults.values()))
        return scores

    def score_fitting(
        self, conversations: Sequence[Conversation], *, skip: bool = False
    ) -> tuple[list[float], dict[int, DataError]]:
        """The scores as of `score`, and by place what is wrong with those that have none (their score is NaN).

        Args:
            skip: score the rest where some have a fault; without it nothing is scored then.
        """
        rendered = self.template.render_many(conversations, TrainOn.LAST)
        examples = [written_part(each) for each in rendered]
        store = TokenStore.from_examples(examples, self.template.tokenizer.vocab_size)
        found = ((index, self._fault(each, int(store.lengths[index]))) for index, each in enumerate(conversations))
        faults = {index: fault for index, fault in found if fault is not None}
        scores = [math.nan] * len(conversations)
        if faults and not skip:
            return scores, faults
        wanted = [index for index in range(len(scores)) if index not in faults]
        for members in groups_of_like_length(store.lengths, wanted, TOKENS_AT_ONCE):
            for index, score in zip(members, self._pack(store, members), strict=True):
                scores[index] = score
        return scores, faults

    def _fault(self, conversation: Conversation, length: int) -> DataError | None:
        """Why a conversation can't be scored."""
        place: dict[str, Any] = {"source": conversation.source, "row": conversation.row}
        if not conversation.messages or conversation.messages[-1].role != "assistant":
            message = "doesn't end in a reply, so there is nothing to score"
            return DataError(message, **place, hint=f"remove it, {_LEAVE_OUT}")
        if length > self.model.max_positions:
            message = f"has {length:,} tokens, and the model's context is {self.model.max_positions:,}"
            return DataError(message, **place, hint=f"shorten or remove it, {_LEAVE_OUT}")
        return None

    @torch.inference_mode()
    def _pack(self, store: TokenStore, members: Sequence[int]) -> list[float]:
        batch = collate(store, members).to(self.model.score.weight.device)
        hidden, _ = self.model(batch.input_ids, batch.position_ids, batch.layout)
        found: list[float] = self.model.scores(hidden[batch.layout.cu_q[1:].long() - 1]).float().tolist()
        return found


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row of a file with its score; of a pair, the better reply's, and the worse one's in `rejected`."""

    source: str
    row: int
    score: float
    rejected: float | None = None


def score_file(
    scorer: RewardScorer, path: str, stop: int | None = None, on_bad_row: BadRow = "error"
) -> list[ScoredRow]:
    """The scores of the conversations or pairs of a file, folder, glob or data set.

    Args:
        stop: the row after the last to score.
        on_bad_row: `error` or `skip`, for rows that can't be read or scored; what is skipped is told on the console.

    Raises:
        DataError: a row can't be read or scored, none is left, or it is a file of plain text.
    """
    if is_text_file(path) and Path(path).expanduser().is_file():
        hint = "give a file of conversations or of preference pairs, such as .jsonl"
        raise DataError("is plain text, which has no replies to score", source=path, hint=hint)
    head = [raw.value for raw in islice(scan_rows(path), ROWS_TO_DETECT) if not raw.error]
    pairs = are_preferences(head)
    entry = DataSettings(path=path, stop=stop, on_bad_row=on_bad_row, preference="pairs" if pairs else None)
    rows, info = read_entry(entry, seed=0)
    skip = on_bad_row == "skip"
    scores, faults = scorer.score_fitting(rows, skip=skip)
    worse: list[float] = []
    if pairs and (skip or not faults):
        sides = [row.worse for row in rows if isinstance(row, PairConversation)]
        worse, others = scorer.score_fitting(sides, skip=skip)
        faults = others | faults
    if faults and (not skip or len(faults) == len(rows)):
        raise faults[min(faults)]
    if skipped := sum(info.skipped.values()):
        warn(f"{skipped:,} bad rows are left out, such as {info.skip_places[0]}")
    if faults:
        first = faults[min(faults)]
        many = f"{len(faults):,} rows that can't be scored are" if len(faults) > 1 else "1 row that can't be scored is"
        warn(f"{many} left out, such as {first.source} row {first.row} {first.message}")
    return [
        ScoredRow(row.source, row.row, scores[place], worse[place] if pairs else None)
        for place, row in enumerate(rows)
        if place not in faults
    ]
