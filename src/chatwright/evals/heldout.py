"""Loss and bits per byte on held-out conversations: of each, what the model must produce, as training weighs it.

Two figures, from the same sums:
- loss: Σ weight · nats / Σ weight over all supervised tokens, the ends of turns included; what training minimizes and
  reports as `heldout_loss`. It depends on the tokenizer.
- bits per byte: Σ nats / ln 2 over the supervised tokens that stand for text, divided by the UTF-8 bytes of that text.
  Control tokens (ends of turns, tool marks) count on neither side, weights don't either: nanochat's definition
  (loss_eval.py), by which models with different tokenizers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.conversations.schema import Conversation
from chatwright.errors import TemplateError
from chatwright.evals.trials import Outcome, Trial
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM
from chatwright.packing.by_length import groups_of_like_length
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.plain_text import split_document
from chatwright.templates.rendered import RenderedExample

TOKENS_AT_ONCE = 4096
"""Tokens of one forward, but for a single conversation that is longer."""
CONVERSATIONS_AT_ONCE = 64
"""Rendered together; their examples are laid into forwards by length."""


@dataclass(frozen=True, slots=True)
class HeldoutSet:
    """Conversations that weren't trained on.

    Args:
        name: what tables call them.
        conversations: with their replies.
        train_on: the mask policy of each; None takes the template's.
    """

    name: str
    conversations: tuple[Conversation, ...]
    train_on: tuple[TrainOn | None, ...]


@dataclass(frozen=True, slots=True)
class LossMeter:
    """Measures the loss of one model under its own template.

    Args:
        model: in evaluation mode; its device and dtype are used as they are.
    """

    model: CausalLM | ForeignLM
    template: Template

    def measure(self, trials: Sequence[Trial], heldout: HeldoutSet) -> Iterator[tuple[int, Outcome]]:
        """The sums of each conversation, with its number; without them, why it can't be measured."""
        for start in range(0, len(trials), CONVERSATIONS_AT_ONCE):
            group = trials[start : start + CONVERSATIONS_AT_ONCE]
            policies = [heldout.train_on[trial.problem] for trial in group]
            examples = self._rendered([trial.conversation for trial in group], policies)
            for place, outcome in self._outcomes(examples):
                yield start + place, outcome

    def _rendered(
        self, conversations: Sequence[Conversation], policies: Sequence[TrainOn | None]
    ) -> list[list[RenderedExample] | str]:
        """The examples of each, documents longer than the context in pieces; or why there are none."""
        made: dict[int, list[RenderedExample] | str] = {}
        order = sorted(range(len(conversations)), key=lambda place: str(policies[place]))
        for policy, places in groupby(order, key=lambda place: policies[place]):
            alike = list(places)
            try:
                made |= dict(zip(alike, self._render([conversations[place] for place in alike], policy), strict=True))
            except TemplateError:  # one that can't be rendered doesn't take the others with it
                made |= {place: self._render_one(conversations[place], policy) for place in alike}
        return [made[place] for place in range(len(conversations))]

    def _render_one(self, conversation: Conversation, policy: TrainOn | None) -> list[RenderedExample] | str:
        try:
            return self._render([conversation], policy)[0]
        except TemplateError as error:
            return error.message

    def _render(self, conversations: Sequence[Conversation], policy: TrainOn | None) -> list[list[RenderedExample]]:
        rendered = self.template.render_many(conversations, policy)
        most = self.model.max_positions
        return [
            [piece for example in group for piece in split_document(example, most)] if each.document else group
            for each, group in zip(conversations, rendered, strict=True)
        ]

    def _outcomes(self, rendered: Sequence[list[RenderedExample] | str]) -> Iterator[tuple[int, Outcome]]:
        owners: list[int] = []
        examples: list[RenderedExample] = []
        for place, group in enumerate(rendered):
            reason = group if isinstance(group, str) else self._unfit(group)
            if reason is not None or isinstance(group, str):
                yield place, Outcome(None, {"unanswered": reason})
                continue
            kept = [example for example in group if example.num_supervised]
            owners += [place] * len(kept)
            examples += kept
        sums = self._sums(TokenStore.from_examples(examples)) if examples else np.zeros((0, len(Sums.names)))
        for place in dict.fromkeys(owners):
            total = sums[[owner == place for owner in owners]].sum(axis=0)
            yield place, Outcome(None, Sums.told(total))

    def _unfit(self, group: Sequence[RenderedExample]) -> str | None:
        most = self.model.max_positions
        if any(len(example.ids) > most for example in group):
            return f"longer than the context of {most:,} tokens"
        if not any(example.num_supervised for example in group):
            return "nothing supervised"
        return None

    @torch.inference_mode()
    def _sums(self, store: TokenStore) -> np.ndarray:
        """float64 `[n, 5]`: the sums of each example, columns as in `Sums.names`."""
        sums = np.zeros((len(store), len(Sums.names)))
        device = next(self.model.parameters()).device
        for members in groups_of_like_length(store.lengths, range(len(store)), TOKENS_AT_ONCE):
            batch = collate(store, members).to(device)
            hidden, _ = self.model(batch.input_ids, batch.position_ids, batch.layout)
            supervised = hidden[batch.supervised_index]
            loss = weighted_nll(supervised, self.model.output_head(), batch.targets, batch.weights)
            of_token = Sums.of_tokens(
                loss.per_token.double().cpu().numpy(),
                batch.weights.double().cpu().numpy(),
                self.template.tokenizer.token_bytes[batch.targets.cpu().numpy()],
            )
            np.add.at(sums, np.asarray(members)[batch.segment_of_target.cpu().numpy()], of_token)
        return sums


class Sums:
    """What is added up over tokens: nats and weight for the loss, bits and bytes of text for bits per byte."""

    names = ("nats", "weight", "tokens", "text_bits", "bytes")

    @staticmethod
    def of_tokens(nats: np.ndarray, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """float64 `[N, 5]`, a row a token.

        Args:
            nats, weights: float64 `[N]`. sizes: int64 `[N]`, bytes of text, 0 for control tokens.
        """
        columns = (nats * weights, weights, np.ones(len(nats)), np.where(sizes > 0, nats, 0.0) / math.log(2), sizes)
        return np.stack(columns, axis=1).astype(np.float64)

    @staticmethod
    def told(total: np.ndarray) -> dict[str, float]:
        """The sums by name."""
        nats, weight, tokens, bits, size = total.tolist()
        counts = {"weight": round(weight, 6), "tokens": int(tokens), "bytes": int(size)}
        return {"nats": round(nats, 6), "text_bits": round(bits, 6), **counts}
