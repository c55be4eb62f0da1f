"""The law of serving: the engine's log-probabilities of a training example are the trainer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chatwright.conversations.schema import Conversation
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings, chosen_log_probs
from chatwright.models.transformer import CausalLM
from chatwright.selftest.context import Context
from chatwright.selftest.outcome import LawOutcome, bound_for, judged, not_applicable, waived
from chatwright.selftest.teacher import Teacher
from chatwright.templates.laws import play_engine
from chatwright.train.objectives import next_token_nll

LOG_PROBS = "engine's log-probabilities of the trained tokens (prefill, cache, decode) = the trainer's"
FIRST_TOKEN = "first token of a greedy reply = the trainer's most likely one"


@dataclass(frozen=True, slots=True)
class KnownReply:
    """A reply of an example: `number` of the example among the chosen, its `prompt` and what the model `written`."""

    number: int
    prompt: list[int]
    written: tuple[int, ...]


def serving_laws(context: Context) -> list[LawOutcome]:
    """Teacher-forced decoding by the real engine, and its first greedy token, against the packed training forward."""
    model = context.model
    if not isinstance(model, CausalLM):
        reason = "this architecture runs through transformers: it is not generated from by our engine"
        return [waived("serving", LOG_PROBS, reason)]
    members = list(dict.fromkeys(context.sample.members))
    examples = [context.sample.data.store.example(member)[0].tolist() for member in members]
    replies = _known_replies(context, members, examples)
    if not replies:
        reason = "no example holds a reply: plain text is never asked for"
        return [not_applicable("serving", LOG_PROBS, reason), not_applicable("first token", FIRST_TOKEN, reason)]
    return [_log_prob_law(context, model, members, examples, replies), _first_token_law(context, model, replies)]


def _known_replies(context: Context, members: Sequence[int], examples: Sequence[list[int]]) -> list[KnownReply]:
    """The replies whose prompt the example begins with, each prompt once; rendered anew, as serving does."""
    template = context.text.template
    found: dict[tuple[int, ...], KnownReply] = {}
    for number, (member, ids) in enumerate(zip(members, examples, strict=True)):
        conversation = context.sample.by_example[member]
        if conversation.document:
            continue
        arranged = template.arranged(conversation)
        for turn, played in play_engine(template, arranged, ids).items():
            prompt = template.render_prompt(_before(arranged, turn))
            drawn = tuple(played.written[: _drawn(ids, played.written, template.stop_ids)])
            found.setdefault(tuple(prompt), KnownReply(number, prompt, drawn))
    return list(found.values())


def _before(arranged: Conversation, turn: int) -> Conversation:
    return replace(arranged, messages=arranged.messages[:turn])


def _drawn(ids: Sequence[int], written: Sequence[int], stop_ids: Sequence[int]) -> int:
    """How many of the written tokens the engine draws: up to the stop token, trained glue behind it left out."""
    for count, place in enumerate(written, start=1):
        if ids[place] in stop_ids:
            return count
    return len(written)


class _KnownResults:
    """Forces what an example has between the tokens that the model writes: tool results."""

    def __init__(self, teacher: Teacher, replies: Sequence[KnownReply]) -> None:
        self.teacher, self.replies = teacher, replies
        self.at = [len(reply.prompt) for reply in replies]

    def on_token(self, row: int, token_id: int) -> list[int] | None:
        """The known tokens up to the next one that the model writes."""
        reply = self.replies[row]
        start = self.at[row] + 1
        later = [place for place in reply.written if place >= start]
        end = later[0] if later else start
        self.at[row] = end
        return self.teacher.sequences[reply.number][start:end]


def _log_prob_law(
    context: Context, model: CausalLM, members: list[int], examples: list[list[int]], replies: list[KnownReply]
) -> LawOutcome:
    teacher: Any = Teacher(model, examples).eval()
    engine = make_engine(teacher, context.text.template)
    longest = max(len(ids) for ids in examples)
    controller = _KnownResults(teacher, replies)
    engine.generate([reply.prompt for reply in replies], SamplingSettings(max_new_tokens=longest), controller)
    trained = _trained_log_probs(context, members)
    wanted = [(r.number, place) for r in replies for place in r.written if (r.number, place) in trained]
    missing = [at for at in wanted if at not in teacher.seen]
    worst, where = 0.0, ""
    for number, place in wanted:
        if (number, place) in teacher.seen:
            token = torch.tensor([examples[number][place]], device=model.model.embed_tokens.weight.device)
            served = float(chosen_log_probs(teacher.seen[number, place][None], token))
            error = abs(served - trained[number, place])
            if not error <= worst:
                worst, where = error, f"{context.sample.data.store.name(members[number])}, token {place}"
    detail = f"{len(wanted):,} tokens of {len(replies)} replies; worst: {where}"
    if missing or not wanted:
        worst, detail = float("nan"), f"{len(missing)} of {len(wanted)} trained tokens were never generated"
    bound = bound_for(context.dtype, 1e-3, 1e-5)  # log-probabilities are float32 in either
    return judged("serving", LOG_PROBS, worst, "largest difference", bound, detail)


@torch.no_grad()
def _trained_log_probs(context: Context, members: list[int]) -> dict[tuple[int, int], float]:
    """(example, position) → the trainer's log-probability, from the loss of one pack of all examples."""
    batch = context.step([members]).packs[0]
    losses = next_token_nll(context.model, batch).per_token.tolist()
    segments = batch.segment_of_target.tolist()
    found: dict[tuple[int, int], float] = {}
    for number, member in enumerate(members):
        _, weights = context.sample.data.store.example(member)
        places = (np.flatnonzero(weights[1:]) + 1).tolist()
        mine = [loss for loss, segment in zip(losses, segments, strict=True) if segment == number]
        assert len(places) == len(mine), f"example {number} has {len(places)} trained tokens and {len(mine)} losses"
        found |= {(number, place): -loss for place, loss in zip(places, mine, strict=True)}
    return found


@torch.no_grad()
def _first_token_law(context: Context, model: CausalLM, replies: list[KnownReply]) -> LawOutcome:
    engine = make_engine(model, context.text.template)
    made = engine.generate([reply.prompt for reply in replies], SamplingSettings(max_new_tokens=1))
    members = list(dict.fromkeys(context.sample.members))
    batch = context.step([members]).packs[0]
    hidden, _ = model(batch.input_ids, batch.position_ids, batch.layout)
    starts = np.cumsum([0, *(int(context.sample.data.store.lengths[member]) for member in members)]).tolist()
    places = torch.tensor([starts[r.number] + len(r.prompt) - 1 for r in replies], device=hidden.device)
    logits = model.output_head().logits(hidden[places]).float()  # [replies, V]
    drawable = logits[:, : engine.num_tokens].clone()
    drawable[:, list(engine.never_ids)] = -torch.inf
    bound = bound_for(context.dtype, 1e-4, 1e-5) * float(logits.abs().max())
    wrong = [row for row, reply in enumerate(made) if not drawable[row].max() - drawable[row, reply.ids[0]] <= bound]
    detail = f"{len(replies)} prompts" + (f"; first: {made[wrong[0]].ids[0]}" if wrong else "")
    return judged("first token", FIRST_TOKEN, len(wrong), "other tokens (ties within rounding apart)", 0, detail)
