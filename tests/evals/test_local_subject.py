"""A model in this process as a subject: letters against a naive forward, and nothing depends on the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ModelThatLearnedByHeart, byte_tokenizer

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.task_formats import convert_multiple_choice
from chatwright.errors import UserError
from chatwright.evals.choice import LetterTokens
from chatwright.evals.local import LocalSubject
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.selection import select_tasks
from chatwright.evals.subject import Unanswered
from chatwright.evals.trials import asked
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.layouts import SegmentLayout
from chatwright.models.foreign import load_any
from chatwright.templates.base import Template, TemplateSettings
from chatwright.templates.template import load_template
from chatwright.templates.tokenizer import TextTokenizer
from tiny_model import make_tiny_model

QUIET = Session(show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose weights are large enough to disagree."""
    return make_tiny_model(tmp_path_factory.mktemp("local") / "tiny", initializer_range=0.4)


def subject_of(folder: Path, **limits: int) -> LocalSubject:
    template = load_template(TextTokenizer.load(folder), TemplateSettings(format="chatml"), folder=folder)
    engine = make_engine(load_any(folder, dtype=torch.float32, device="cpu").eval(), template, **limits)
    return LocalSubject("tiny", Responder(engine, template, ToolBox()), "tiny")


def questions(count: int) -> list[Conversation]:
    """Questions of uneven lengths with two to five choices."""
    rows = [
        {
            "question": f"Which of these is number {number}?" + " Think of the river." * (number % 4),
            "choices": [f"a {word} {number}" for word in ("bat", "bird", "hill", "river", "colour")[: 2 + number % 4]],
            "answer": number % 2,
        }
        for number in range(count)
    ]
    return [convert_multiple_choice(row, "memory", place) for place, row in enumerate(rows)]


def choose(subject: LocalSubject, found: list[Conversation]) -> dict[int, Any]:
    letters = [each.extra["letters"] for each in found]
    return dict(subject.choose([asked(each) for each in found], letters))


def test_letters_are_weighed_as_by_a_naive_forward(folder: Path) -> None:
    subject, found = subject_of(folder), questions(12)
    weighed = choose(subject, found)
    for number, conversation in enumerate(found):
        prompt = torch.tensor(subject.template.render_prompt(asked(conversation)))
        layout = SegmentLayout.from_lengths([len(prompt)])
        with torch.no_grad():
            hidden, _ = subject.engine.model(prompt, torch.arange(len(prompt)), layout)
            logits = subject.engine.model.output_head().logits(hidden)[-1].float()
        ids = [subject.template.tokenizer.encode_text(letter) for letter in conversation.extra["letters"]]
        assert all(len(each) == 1 for each in ids)
        expected = [float(torch.log_softmax(logits, dim=-1)[each[0]]) for each in ids]
        assert list(weighed[number]) == pytest.approx(expected, abs=1e-4)


def test_letters_do_not_depend_on_what_is_asked_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = questions(15)
    whole = choose(subject_of(folder), found)
    monkeypatch.setattr("chatwright.evals.local.QUESTIONS_AT_ONCE", 4)
    parts = choose(subject_of(folder, max_rows=2, prefill_tokens=64), found)
    assert sorted(parts) == sorted(whole)
    for number, values in whole.items():
        assert list(parts[number]) == pytest.approx(list(values), abs=1e-4)
        alone = choose(subject_of(folder), [found[number]])[0] if number < 3 else values
        assert list(alone) == pytest.approx(list(values), abs=1e-4)


def short(result: TaskResult) -> list[Any]:
    return [(record.key, record.score, record.details.get("reply")) for record in result.records]


@pytest.mark.parametrize("samples", [1, 3])
def test_replies_do_not_depend_on_batch_limit_or_resumption(folder: Path, tmp_path: Path, samples: int) -> None:
    (task,) = select_tasks("letter_counting")
    settings = EvalSettings(limit=6, samples=samples, max_new_tokens=12)
    whole = evaluate_task(subject_of(folder), task, settings, QUIET)
    assert len({str(each.details["reply"]) for each in whole.records}) > samples, "equal replies tell nothing"
    one_row = evaluate_task(subject_of(folder, max_rows=1), task, settings, QUIET)
    assert short(one_row) == short(whole)
    session = Session(tmp_path, show_progress=False)
    evaluate_task(subject_of(folder), task, settings.model_copy(update={"limit": 2}), session)
    assert short(evaluate_task(subject_of(folder, max_rows=3), task, settings, session)) == short(whole)


def test_samples_of_one_problem_differ(folder: Path) -> None:
    (task,) = select_tasks("letter_counting")
    result = evaluate_task(subject_of(folder), task, EvalSettings(limit=2, samples=4, max_new_tokens=8), QUIET)
    replies = [[str(each.details["reply"]) for each in result.records if each.key.problem == one] for one in (0, 1)]
    assert all(len(set(each)) > 1 for each in replies)


def test_what_leaves_no_room_is_unanswered_and_the_rest_goes_on(folder: Path) -> None:
    subject = subject_of(folder)
    long = Conversation((Message.of("user", "Why? " * 300),))
    brief = Conversation((Message.of("user", "Why?"),))
    settings = [SamplingSettings(max_new_tokens=4)] * 3
    found = dict(subject.replies([long, brief, long], settings))
    assert isinstance(found[0], Unanswered) and isinstance(found[2], Unanswered)
    assert "context of 256 tokens" in found[0].reason
    assert found[1].reply_tokens > 0  # type: ignore[union-attr]
    weighed = dict(subject.choose([brief, long], ["AB", "AB"]))
    assert isinstance(weighed[1], Unanswered) and len(weighed[0]) == 2  # type: ignore[arg-type]


def test_tools_are_in_the_loop(tmp_path: Path) -> None:
    """A model that learned the reference replies by heart is right only if the calculator's results come in."""
    tokenizer = byte_tokenizer(tmp_path)
    template = load_template(tokenizer, TemplateSettings(format="nanochat"))
    (task,) = select_tasks("spelling_bee:size=5")
    problems = task.problems("test", None, 0)
    examples = [example for problem in problems for example in template.render(problem)]
    model: Any = ModelThatLearnedByHeart(examples, template.tokenizer.vocab_size)
    with_tools = LocalSubject("by heart", Responder(make_engine(model, template), template, ToolBox()), "heart")
    result = evaluate_task(with_tools, task, EvalSettings(max_new_tokens=2000), QUIET)
    assert [record.score for record in result.records] == [1.0] * 5
    kinds = [part["kind"] for part in result.records[0].details["reply"]]
    assert kinds == ["text", "tool_call", "tool_result", "text"]
    without = LocalSubject("by heart", Responder(make_engine(model, template), template, None), "heart")
    result = evaluate_task(without, task, EvalSettings(max_new_tokens=2000), QUIET)
    assert {record.details["finish"] for record in result.records} == {"tool_calls"}


def test_a_letter_can_be_read_from_what_the_model_writes(tmp_path: Path) -> None:
    template = load_template(byte_tokenizer(tmp_path), TemplateSettings(format="nanochat"))
    found = questions(4)
    wrong = [replace(each, messages=(each.messages[0], Message.of("assistant", "(A) it is."))) for each in found]
    examples = [example for each in wrong for example in template.render(each)]
    model: Any = ModelThatLearnedByHeart(examples, template.tokenizer.vocab_size)
    responder = Responder(make_engine(model, template), template, ToolBox())
    by_text = LocalSubject("by heart", responder, "heart", choice_by="text")
    for number, weighed in choose(by_text, found).items():
        first, *others = weighed
        assert first == 0.0 and max(others) < 0, number
    assert by_text.identity() != LocalSubject("by heart", responder, "heart").identity()
    unseen = Conversation((Message.of("user", "Never seen."),))
    assert isinstance(dict(by_text.choose([unseen], ["AB"]))[0], Unanswered)


def template_of(tmp_path: Path) -> Template:
    return load_template(byte_tokenizer(tmp_path), TemplateSettings(format="chatml"))


def test_letters_of_several_tokens_are_refused_by_name(tmp_path: Path) -> None:
    """Of a byte tokenizer's two Chinese letters both bytes differ; of ① and ② only the last one does."""
    tokens = LetterTokens(template_of(tmp_path))
    question = Conversation((Message.of("user", "Which?"),))
    with pytest.raises(UserError, match="甲, 乙 are not one token each") as caught:
        tokens.of(question, "甲乙")
    assert "--choice-by text" in str(caught.value)
    with pytest.raises(UserError, match="takes other many tokens"):
        tokens.of(question, ["A", "乙"])
    prompt, ids = tokens.of(question, "①②")
    plain = template_of(tmp_path / "again").render_prompt(question)
    assert prompt[: len(plain)] == plain and len(prompt) == len(plain) + 2 and len(set(ids)) == 2


def test_the_place_of_the_letter_is_where_training_puts_it(tmp_path: Path) -> None:
    template = template_of(tmp_path)
    question = questions(1)[0]
    prompt, ids = LetterTokens(template).of(asked(question), question.extra["letters"])
    example = template.render(question)[0]
    place = next(place for place, weight in enumerate(example.weights) if weight > 0)
    assert prompt == example.ids[:place].tolist()
    assert ids[question.extra["letters"].index(question.extra["answer"])] == int(example.ids[place])
