"""The laws of rendering on the recipe's conversations, and of the labels that reach the loss."""

from __future__ import annotations

import numpy as np

from chatwright.batches.packed_batch import PackedBatch
from chatwright.selftest.context import Context
from chatwright.selftest.outcome import LawOutcome, judged
from chatwright.templates.laws import check_laws, play_engine
from chatwright.templates.policy import turn_weights
from chatwright.templates.template import TrainOn

MEASURED = {
    "prompt": "before each trained span stands what the engine holds there",
    "text": "no text becomes a control token",
    "begin and stop": "begin-of-text as declared, every trained reply ends in a trained stop token",
    "parse": "parsing a rendered reply gives the reply",
    "weights": "exactly what the model writes is trained",
}


def mask_laws(context: Context) -> list[LawOutcome]:
    """The five laws of `templates.laws`, each with its number of failed cases."""
    results = check_laws(context.text.template, context.sample.conversations)
    return [judged(f"mask: {r.name}", MEASURED[r.name], len(r.failures), "failed cases", 0, r.detail) for r in results]


def labels_law(context: Context) -> list[LawOutcome]:
    """At the input of the loss: the state before each token that the model writes predicts it, and no other does."""
    members = list(context.sample.members)
    batch = context.step([members]).packs[0]
    failures: list[str] = []
    checked, start = 0, 0
    for member in members:
        ids, _ = context.sample.data.store.example(member)
        wanted = expected_weights(context, member, ids.tolist())
        found = _labels_of(batch, start, len(ids))
        expected = {place - 1: (int(ids[place]), weight) for place, weight in wanted.items() if place > 0}
        checked += len(expected)
        wrong = sorted(place for place in {*found, *expected} if found.get(place) != expected.get(place))
        name = context.sample.data.store.name(member)
        failures += [f"{name}: token {at} predicts {found.get(at)}, not {expected.get(at)}" for at in wrong]
        start += len(ids)
    detail = f"{checked:,} labels" + (f"; {failures[0]}" if failures else "")
    measured = "labels of the packed batch = what the engine would see the model write"
    return [judged("labels", measured, len(failures), "wrong labels", 0, detail)]


def expected_weights(context: Context, member: int, ids: list[int]) -> dict[int, float]:
    """Position → weight of the tokens that an example must train: the engine is played over it, no mask is read."""
    template, policy = context.text.template, context.sample.policies[member]
    conversation = context.sample.by_example[member]
    if conversation.document:
        return dict.fromkeys(range(1, len(ids)), 1.0)
    arranged = template.arranged(conversation)
    weights = turn_weights(arranged.messages, policy, arranged)
    part = context.sample.data.store.key(member).part
    everything = policy is TrainOn.EVERYTHING
    wanted = dict.fromkeys(range(1, len(ids)), 1.0) if everything else {}
    for turn, played in play_engine(template, arranged, ids).items():
        if part in (0, turn) or everything:
            wanted |= dict.fromkeys(played.written, weights[turn])
    return {place: weight for place, weight in wanted.items() if weight > 0}


def _labels_of(batch: PackedBatch, start: int, length: int) -> dict[int, tuple[int, float]]:
    """Place of the predicting state within its example → (target, weight)."""
    index = batch.supervised_index.cpu().numpy()
    mine = np.flatnonzero((index >= start) & (index < start + length))
    targets, weights = batch.targets.cpu().numpy(), batch.weights.cpu().numpy()
    return {int(index[i]) - start: (int(targets[i]), float(weights[i])) for i in mine}
