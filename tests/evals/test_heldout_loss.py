"""Loss and bits per byte of evals/heldout.py: against a naive forward, and whatever is measured together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatwright.batches.collate import collate
from chatwright.batches.token_store import TokenStore
from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import UserError
from chatwright.evals.heldout import HeldoutSet, LossMeter
from chatwright.evals.run import Session, evaluate_heldout
from chatwright.evals.scores import scores_of
from chatwright.evals.trials import Trial
from chatwright.models.foreign import load_any
from chatwright.templates.base import Template, TemplateSettings, TrainOn
from chatwright.templates.template import load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.train.objectives import next_token_nll
from chatwright.train.step import StepModule
from chatwright.train.validation import heldout_sums
from training_runs import conversations

QUIET = Session(show_progress=False)


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> LossMeter:
    """A tiny model with ChatML and added tool marks."""
    from tiny_model import make_tiny_model

    folder = make_tiny_model(tmp_path_factory.mktemp("heldout") / "tiny")
    template = load_template(TextTokenizer.load(folder), TemplateSettings(format="chatml"), folder=folder)
    return LossMeter(load_any(folder, dtype=torch.float32, device="cpu").eval(), template)


def rows(count: int) -> list[Conversation]:
    """Conversations of uneven lengths."""
    return [convert(row, "messages", "memory", place) for place, row in enumerate(conversations(count))]


def heldout(found: list[Conversation], policy: TrainOn | None = None) -> HeldoutSet:
    return HeldoutSet("rows", tuple(found), (policy,) * len(found))


class OneSubject:
    """What `evaluate_heldout` needs of a subject."""

    name = "tiny"

    def __init__(self, meter: LossMeter) -> None:
        self.losses = meter

    def identity(self) -> str:
        """Not asked for."""
        return "tiny"

    def replies(self, *_: Any) -> Any:
        """Never called."""
        raise AssertionError

    choose = replies


@torch.no_grad()
def naive(meter: LossMeter, conversation: Conversation, policy: TrainOn | None = None) -> dict[str, float]:
    """The same sums from the whole logits of each example alone, and from the text itself."""
    nats = weight = bits = 0.0
    for example in meter.template.render(conversation, policy):
        store = TokenStore.from_examples([example])
        batch = collate(store, [0])
        hidden, _ = meter.model(batch.input_ids, batch.position_ids, batch.layout)
        probabilities = torch.log_softmax(meter.model.output_head().logits(hidden).double(), dim=-1)
        for place in range(1, len(example.ids)):
            if example.weights[place] > 0:
                each = -float(probabilities[place - 1, example.ids[place]])
                nats, weight = nats + example.weights[place] * each, weight + float(example.weights[place])
                if int(example.ids[place]) not in meter.template.tokenizer.control_names:
                    bits += each / math.log(2)
    return {"nats": nats, "weight": weight, "text_bits": bits}


def test_sums_are_those_of_a_naive_forward(meter: LossMeter) -> None:
    found = rows(9)
    result = evaluate_heldout(OneSubject(meter), heldout(found), QUIET)
    for record, conversation in zip(result.records, found, strict=True):
        expected = naive(meter, conversation)
        assert {name: record.details[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        replies = [message for message in conversation.messages if message.role == "assistant"]
        assert record.details["bytes"] == sum(len(message.text.encode()) for message in replies)
        assert record.score is None


def test_the_loss_is_the_trainers(meter: LossMeter) -> None:
    found = rows(20)
    loss, bits = scores_of(evaluate_heldout(OneSubject(meter), heldout(found), QUIET))
    store = TokenStore.from_examples([example for each in found for example in meter.template.render(each)])
    packs = [collate(store, range(start, start + 5)) for start in range(0, 20, 5)]
    sizes = torch.from_numpy(meter.template.tokenizer.token_bytes)
    sums = heldout_sums(StepModule(meter.model, next_token_nll), packs, sizes)
    assert loss.estimate.value == pytest.approx(sums.loss, rel=1e-5)
    assert bits.estimate.value == pytest.approx(sums.bits_per_byte, rel=1e-5)
    assert loss.estimate.low < loss.estimate.value < loss.estimate.high


def test_what_is_measured_together_does_not_matter(meter: LossMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(30)
    whole = {number: outcome.details for number, outcome in run(meter, found)}
    monkeypatch.setattr("chatwright.evals.heldout.TOKENS_AT_ONCE", 100)
    monkeypatch.setattr("chatwright.evals.heldout.CONVERSATIONS_AT_ONCE", 7)
    parts = {number: outcome.details for number, outcome in run(meter, found)}
    assert sorted(parts) == sorted(whole) == list(range(30))
    for number, told in whole.items():
        assert parts[number] == pytest.approx(told, rel=1e-5)


def run(meter: LossMeter, found: list[Conversation]) -> list[Any]:
    trials = [Trial(number, 0, each) for number, each in enumerate(found)]
    return list(meter.measure(trials, heldout(found)))


def test_bytes_are_those_of_the_text_whatever_the_script(meter: LossMeter) -> None:
    text = "naïve 数学 ☕ and \n two lines"
    conversation = Conversation((Message.of("user", "Say it."), Message.of("assistant", text)))
    ((_, outcome),) = run(meter, [conversation])
    assert outcome.details["bytes"] == len(text.encode())


def test_weights_and_policies_are_trainings_own(meter: LossMeter) -> None:
    messages = (
        Message.of("user", "Say it."),
        Message.of("assistant", "A bird can fly.", weight=0.5),
        Message.of("user", "And?"),
        Message.of("assistant", "Two and three make five.", train=False),
    )
    one = Conversation(messages)
    for policy in (None, TrainOn.EVERYTHING, TrainOn.LAST):
        found = heldout([one], policy)
        if policy is TrainOn.LAST:  # the last reply is forbidden: there is nothing left
            with pytest.raises(UserError, match="nothing supervised"):
                evaluate_heldout(OneSubject(meter), found, QUIET)
            continue
        (record,) = evaluate_heldout(OneSubject(meter), found, QUIET).records
        expected = naive(meter, one, policy)
        assert {name: record.details[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_is_left_out_and_told(meter: LossMeter) -> None:
    long = Conversation((Message.of("user", "Why?"), Message.of("assistant", "because " * 300)))
    result = evaluate_heldout(OneSubject(meter), heldout([*rows(3), long]), QUIET)
    loss = scores_of(result)[0]
    assert list(loss.unanswered) == [3] and len(loss.amounts) == 3
    assert result.records[3].details == {"unanswered": "longer than the context of 256 tokens"}
    with pytest.raises(UserError, match="longer than the context"):
        evaluate_heldout(OneSubject(meter), heldout([long]), QUIET)
    with pytest.raises(UserError, match="no held-out conversations"):
        evaluate_heldout(OneSubject(meter), heldout([]), QUIET)


def test_what_the_template_cannot_render_is_left_out_and_told(meter: LossMeter) -> None:
    """A base model has no words for a tool call that its fine-tune makes."""
    calls = Message("assistant", (Part("tool_call", "1+1", "calculator"), Part("tool_result", "2"), Part("text", "2")))
    called = Conversation((Message.of("user", "1+1?"), calls))
    result = evaluate_heldout(OneSubject(meter), heldout([*rows(2), called, *rows(1)]), QUIET)
    assert ["unanswered" in record.details for record in result.records] == [False, False, True, False]
    assert "no tool grammar" in result.records[2].details["unanswered"]


def test_documents_are_measured_in_pieces(meter: LossMeter) -> None:
    text = "The river is behind the hill. " * 60
    document = Conversation((Message("user", (Part("text", text),)),), document=True)
    ((_, outcome),) = run(meter, [document])
    example = meter.template.render(document)[0]
    assert len(example.ids) > 2 * meter.model.max_positions
    pieces = math.ceil(len(example.ids) / meter.model.max_positions)
    assert outcome.details["tokens"] == len(example.ids) - pieces  # nothing predicts the first token of a piece


def test_results_go_on_where_they_stopped(meter: LossMeter, tmp_path: Path) -> None:
    found = heldout(rows(12))
    whole = evaluate_heldout(OneSubject(meter), found, Session(tmp_path / "whole", show_progress=False))
    first = evaluate_heldout(OneSubject(meter), found, Session(tmp_path / "parts", show_progress=False), limit=5)
    assert len(first.records) == 5
    again = evaluate_heldout(OneSubject(meter), found, Session(tmp_path / "parts", show_progress=False))
    assert np.allclose([each.details["nats"] for each in again.records], [e.details["nats"] for e in whole.records])
    (path,) = (tmp_path / "parts").iterdir()
    assert json.loads(path.read_text().splitlines()[0])["key"]["by"] == "loss"


def test_a_template_that_gives_several_examples_a_row_counts_them_all(meter: LossMeter) -> None:
    """Reasoning templates drop old thinking, so that each turn is an example of its own."""
    two = rows(1)[0]
    examples = meter.template.render(two)

    class PerTurn:
        """Stands for such a template: every example twice."""

        tokenizer = meter.template.tokenizer

        def render_many(self, found: Any, policy: Any) -> Any:
            """The same example twice."""
            return [[*examples, *examples] for _ in found]

    doubled = LossMeter(meter.model, PerTurn())  # type: ignore[arg-type]
    ((_, once),), ((_, twice),) = run(meter, [two]), run(doubled, [two])
    assert twice.details["nats"] == pytest.approx(2 * once.details["nats"], rel=1e-6)
    assert twice.details["bytes"] == 2 * once.details["bytes"]
    assert isinstance(meter.template, Template)
