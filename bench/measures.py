"""What the learning curve and the experiment measure of a model in memory: replies, letters, losses a row.

Every measure returns one number a problem or row, so that a model before and after can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.conversations.schema import Conversation
from chatwright.evals.statistics import paired_difference, ratio, ratio_difference, wilson
from chatwright.inference.chat_session import ChatSession
from chatwright.layouts import SegmentLayout
from chatwright.reports.charts import standalone_svg
from chatwright.reports.document import Chart
from chatwright.tasks.task import Task
from chatwright.templates.base import Template
from chatwright.train.objectives import next_token_nll

Scores = NDArray[np.float64]
"""`[n]`, 1 for a problem that was solved, else 0."""
RowLosses = NDArray[np.float64]
"""`[n, 2]`: of each row the sum of its trained tokens' losses in nats, and their number."""
_TOKENS = 2048


def differences(
    measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]], pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """For each pair of arms and measure: how far the second is above the first, over the same problems.

    Args:
        measured: arm → for each seed its measures by name, `Scores` or `RowLosses`; their mean over seeds counts.
    """
    found = []
    for first, second in pairs:
        if first not in measured or second not in measured:
            continue
        for name in measured[first][0]:
            ours, theirs = (np.mean([each[name] for each in measured[arm]], axis=0) for arm in (first, second))
            if ours.ndim == 1:
                change = paired_difference(ours, theirs)
            else:
                change = ratio_difference((ours[:, 0], ours[:, 1]), (theirs[:, 0], theirs[:, 1]))
            found.append({"first": first, "second": second, "measure": name, **change._asdict()})
    return found


@dataclass(frozen=True, slots=True)
class Replies:
    """`right` and `ended` (by the model itself, within the limit), and the mean length in tokens."""

    right: Scores
    ended: Scores
    mean_tokens: float


def questions(problems: Sequence[Conversation]) -> list[Conversation]:
    """The problems without their reference replies."""
    return [replace(problem, messages=problem.messages[:-1]) for problem in problems]


def grade_replies(session: ChatSession, task: Task, problems: Sequence[Conversation]) -> Replies:
    """The model's own replies, tools in the loop, graded by the task."""
    replies = session.responder.replies(questions(problems), session.settings)
    right = [float(task.grade(problem, reply.message)) for problem, reply in zip(problems, replies, strict=True)]
    ended = [float(reply.finish_reason != "length") for reply in replies]
    return Replies(np.array(right), np.array(ended), float(np.mean([reply.reply_tokens for reply in replies])))


@torch.inference_mode()
def grade_letters(model: Any, template: Template, problems: Sequence[Conversation]) -> Scores:
    """Whether the likeliest of each question's own letters, as the reply's first token, is the right one."""
    training = model.training
    model.eval()
    prompts = [template.render_prompt(question) for question in questions(problems)]
    right = []
    for members in _batches([len(prompt) for prompt in prompts]):
        lengths = [len(prompts[index]) for index in members]
        ids = torch.tensor([token for index in members for token in prompts[index]])
        places = torch.cat([torch.arange(length) for length in lengths])
        hidden, _ = model(ids, places, SegmentLayout.from_lengths(lengths))
        logits = model.output_head().logits(hidden[torch.tensor(np.cumsum(lengths) - 1)]).float()
        for row, index in zip(logits, members, strict=True):
            letters = problems[index].extra["letters"]
            tokens = [template.tokenizer.encode_text(letter) for letter in letters]
            assert all(len(token) == 1 for token in tokens), "a letter of several tokens"
            best = int(row[[token[0] for token in tokens]].argmax())
            right.append(float(letters[best] == problems[index].extra["answer"]))
    model.train(training)
    return np.array(right)


@torch.inference_mode()
def row_losses(model: Any, store: TokenStore) -> RowLosses:
    """Each row's own loss, in the order of the store."""
    training = model.training
    model.eval()
    found = []
    for members in _batches(store.lengths.tolist()):
        batch = collate(store, members)
        outcome = next_token_nll(model, batch)
        sums = np.zeros((len(members), 2))
        each = np.stack([outcome.per_token.double().numpy(), np.ones(len(outcome.per_token))], axis=1)
        np.add.at(sums, batch.segment_of_target.numpy(), each)
        found.append(sums)
    model.train(training)
    return np.concatenate(found)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours, together of about `_TOKENS` tokens."""
    batches: list[list[int]] = [[]]
    room = _TOKENS
    for index, length in enumerate(lengths):
        if batches[-1] and length > room:
            batches.append([])
            room = _TOKENS
        batches[-1].append(index)
        room -= length
    return batches


def share(scores: Scores) -> dict[str, Any]:
    """A share of problems with its Wilson interval, for JSON."""
    low, high = wilson(float(scores.sum()), len(scores))
    return {"right": int(scores.sum()), "of": len(scores), "share": float(scores.mean()), "low": low, "high": high}


def loss(losses: RowLosses) -> dict[str, Any]:
    """Nats a token with the interval over rows."""
    value, low, high = ratio(losses[:, 0], losses[:, 1])
    return {"nats_per_token": value, "low": low, "high": high, "rows": len(losses), "tokens": int(losses[:, 1].sum())}


def share_change(before: Scores, after: Scores) -> dict[str, Any]:
    """The change on the same problems, with the interval of the paired bootstrap."""
    return paired_difference(before, after)._asdict()


def loss_change(before: RowLosses, after: RowLosses) -> dict[str, Any]:
    """The change in nats a token on the same rows, with the interval of the paired bootstrap."""
    return ratio_difference((before[:, 0], before[:, 1]), (after[:, 0], after[:, 1]))._asdict()


def write_chart(path: str | Path, chart: Chart) -> None:
    """The chart as an SVG file of its own."""
    Path(path).write_text(standalone_svg(chart) + "\n", encoding="utf-8")
