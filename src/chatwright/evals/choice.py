"""Multiple choice by the letters' log-probabilities where the reply begins, as training taught the model to answer.

The replies that training would render from the letters are looked at, never tokens that only look like them. They must
differ in exactly one token: that is where the model chooses. What they all begin with (the space that a SentencePiece
template writes, an empty thinking block) is given to the model, which doesn't change which letter is the likeliest.
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
    _known: dict[tuple[str, ...], tuple[list[int], list[int]]] = field(default_factory=dict, repr=False)

    def of(self, conversation: Conversation, letters: Sequence[str]) -> Asked:
        """The prompt up to where the letter stands, and the letters' ids.

        Args:
            conversation: up to where the model is to speak.

        Raises:
            UserError: the letters aren't told apart by one token.
        """
        prompt = self.template.render_prompt(conversation)
        wanted = tuple(letters)
        if wanted not in self._known:  # how a reply begins doesn't depend on the question
            self._known[wanted] = self._compare([self._reply(conversation, prompt, each) for each in wanted], wanted)
        opening, ids = self._known[wanted]
        return Asked([*prompt, *opening], ids)

    def _reply(self, conversation: Conversation, prompt: list[int], letter: str) -> list[int]:
        """The ids that training makes of a letter behind the prompt."""
        whole = replace(conversation, messages=(*conversation.messages, Message.of("assistant", letter)))
        ids: list[int] = self.template.render(whole)[-1].ids.tolist()
        if ids[: len(prompt)] != prompt:
            raise self._unusable("the reply is trained behind another prompt than it is served behind")
        return ids[len(prompt) :]

    def _compare(self, replies: Sequence[list[int]], letters: tuple[str, ...]) -> tuple[list[int], list[int]]:
        """What all replies begin with, and the token of each behind it."""
        for letter, ids in zip(letters, replies, strict=True):
            if len(ids) != len(replies[0]):
                shown = " ".join(repr(self.template.tokenizer.token_text(token)) for token in ids)
                raise self._unusable(f"{letter!r} takes other many tokens than {letters[0]!r}: {shown}")
        places = [place for place, column in enumerate(zip(*replies, strict=True)) if len(set(column)) > 1]
        found = [ids[places[0]] for ids in replies] if len(places) == 1 else []
        if len(set(found)) != len(letters):
            raise self._unusable(f"the letters {', '.join(letters)} are not one token each")
        return replies[0][: places[0]], found

    def _unusable(self, reason: str) -> UserError:
        return UserError(
            f"letters can't be chosen by their log-probability: {reason}",
            place=f"template {self.template.settings.format} (identity {self.template.identity[:12]})",
            hint="let the model write its answer, and read the letter from it: --choice-by text",
        )
