"""Multiple choice by the letters' log-probabilities where the reply begins, as training taught the model to answer.

A letter must be one token there: the reply that training would render from it is looked at, never a token that only
looks like it. What a template writes between the generation prompt and a reply's text (an empty thinking block) is
given to the model, as it was in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import UserError
from chatwright.evals.subject import Subject, Unanswered
from chatwright.evals.trials import Outcome, Trial, asked
from chatwright.templates.base import Template


def choose_letters(
    subject: Subject, trials: Sequence[Trial], system: str | None = None
) -> Iterator[tuple[int, Outcome]]:
    """The likeliest of each question's own letters, with the trial's number; the first of equals.

    Raises:
        UserError: as `Subject.choose` does.
    """
    letters = [tuple(trial.conversation.extra["letters"]) for trial in trials]
    questions = [asked(trial.conversation, system) for trial in trials]
    for number, found in subject.choose(questions, letters):
        answer = trials[number].conversation.extra["answer"]
        if isinstance(found, Unanswered):
            yield number, Outcome(0.0, {"answer": answer, "unanswered": found.reason})
            continue
        chosen = letters[number][max(range(len(found)), key=lambda place: found[place])]
        told = {letter: _rounded(value) for letter, value in zip(letters[number], found, strict=True)}
        yield number, Outcome(float(chosen == answer), {"answer": answer, "chosen": chosen, "logprobs": told})


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


class Asked(NamedTuple):
    """A question as the engine gets it: the ids before the letter, and the id of each letter."""

    prompt: list[int]
    letter_ids: list[int]


@dataclass
class LetterTokens:
    """Finds a question's prompt and its letters' ids under a template."""

    template: Template
    _known: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict, repr=False)

    def of(self, conversation: Conversation, letters: Sequence[str]) -> Asked:
        """The prompt up to the letter, and the letters' ids.

        Args:
            conversation: up to where the model is to speak.

        Raises:
            UserError: a letter isn't one token there, or two of them begin in different ways.
        """
        found = [self._token(conversation, letter) for letter in letters]
        openings = {opening for opening, _ in found}
        if len(openings) != 1:
            raise _unusable(letters[0], self.template, "the template begins the reply in another way for each letter")
        return Asked([*self.template.render_prompt(conversation), *openings.pop()], [token for _, token in found])

    def _token(self, conversation: Conversation, letter: str) -> tuple[tuple[int, ...], int]:
        """What stands between the generation prompt and the letter, and the letter's id; the same in any question."""
        if letter not in self._known:
            self._known[letter] = self._rendered(conversation, letter)
        return self._known[letter]

    def _rendered(self, conversation: Conversation, letter: str) -> tuple[tuple[int, ...], int]:
        prompt = self.template.render_prompt(conversation)
        whole = replace(conversation, messages=(*conversation.messages, Message.of("assistant", letter)))
        example = self.template.render(whole)[-1]
        place = len(conversation.messages)
        spans = [span for span in example.spans if span.message == place and span.part >= 0]
        ids = example.ids.tolist()
        if len(spans) != 1 or ids[: len(prompt)] != prompt or spans[0].start < len(prompt):
            raise _unusable(letter, self.template, "training shows it another prompt than serving")
        start, end = spans[0].start, spans[0].end
        if end - start != 1:
            pieces = " ".join(repr(self.template.tokenizer.token_text(token)) for token in ids[start:end])
            raise _unusable(letter, self.template, f"it is {end - start} tokens there: {pieces}")
        return tuple(ids[len(prompt) : start]), ids[start]


def _unusable(letter: str, template: Template, reason: str) -> UserError:
    return UserError(
        f"the letter {letter!r} can't be chosen by one token as the reply's first: {reason}",
        place=f"template {template.settings.format} (identity {template.identity[:12]})",
        hint="let the model write its answer, and read the letter from it: --choice-by text",
    )
