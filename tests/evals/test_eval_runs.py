"""evals/run.py over scripted subjects: resumed, interrupted and shared out, an evaluation gives the same results."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_subjects import LETTERS, SUMS, ScriptedSubject, Sums

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import ConfigError, UserError
from chatwright.evals.records import Key, Record
from chatwright.evals.run import EvalSettings, Session, TaskResult, evaluate_task
from chatwright.evals.selection import Executor, Selected
from chatwright.preparation.crew import Crew
from chatwright.tasks.task import NoOptions

QUIET = Session(show_progress=False)
TEN = EvalSettings(limit=10)


def at(folder: Path, **changes: bool) -> Session:
    return Session(folder, show_progress=False, **changes)


def facts(result: TaskResult) -> list[Record]:
    """All of the records but for the time they took."""
    return [replace(record, seconds=0.0) for record in result.records]


def lines(folder: Path, name: str = "sums.jsonl") -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_replies_are_graded_and_recorded() -> None:
    result = evaluate_task(ScriptedSubject(skill=0.5), SUMS, EvalSettings(limit=200), QUIET)
    assert [record.key for record in result.records] == [Key(number, 0) for number in range(200)]
    share = sum(record.score or 0.0 for record in result.records) / 200
    assert 0.4 < share < 0.6 and result.way == "replies" and result.chance == 0.0
    one = result.records[3]
    assert one.details["reply"][0]["text"].startswith("It is ") and one.details["finish"] == "stop"


def test_letters_are_chosen_among_the_rows_own() -> None:
    result = evaluate_task(ScriptedSubject(), LETTERS, EvalSettings(limit=40, samples=3), QUIET)
    assert result.way == "letters" and result.samples == 1 and len(result.records) == 40
    assert result.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    for record in result.records:
        found = record.details["logprobs"]
        assert record.details["chosen"] == max(found, key=lambda letter: found[letter])
        assert len(found) == (2 if record.key.problem % 2 == 0 else 4)
        assert record.score == float(record.details["chosen"] == record.details["answer"])


def test_the_reference_reply_is_never_shown_and_the_system_message_is() -> None:
    subject = ScriptedSubject()
    evaluate_task(subject, SUMS, EvalSettings(limit=3, system="Be brief."), QUIET)
    assert all(text.startswith("Be brief.\n") for text in subject.asked)


def test_what_cannot_be_answered_counts_as_wrong_and_says_why() -> None:
    result = evaluate_task(ScriptedSubject(skill=1.0, too_long="+ 4"), SUMS, TEN, QUIET)
    wrong = [record for record in result.records if not record.score]
    assert [record.key.problem for record in wrong] == [4]
    assert wrong[0].details == {"unanswered": "prompt longer than the context"}


def test_each_sample_has_a_seed_of_its_own() -> None:
    subject = ScriptedSubject()
    evaluate_task(subject, SUMS, EvalSettings(limit=5, samples=4), QUIET)
    assert len({each.seed for each in subject.settings}) == 20
    assert {each.temperature for each in subject.settings} == {0.8}
    again = ScriptedSubject()
    evaluate_task(again, SUMS, EvalSettings(limit=5, samples=4, seed=1, temperature=0.3), QUIET)
    assert not {each.seed for each in subject.settings} & {each.seed for each in again.settings}
    assert {each.temperature for each in again.settings} == {0.3}


def test_room_for_a_reply_is_the_tasks_unless_given() -> None:
    subject = ScriptedSubject()
    evaluate_task(subject, SUMS, EvalSettings(limit=1), QUIET)
    evaluate_task(subject, SUMS, EvalSettings(limit=1, max_new_tokens=7), QUIET)
    assert [each.max_new_tokens for each in subject.settings] == [Sums.max_new_tokens, 7]


@pytest.mark.parametrize("selected", [SUMS, LETTERS], ids=lambda each: each.label)
@pytest.mark.parametrize("kills", [(0,), (1,), (7, 3), (2, 2, 2, 2)])
def test_interrupted_and_resumed_is_the_same(tmp_path: Path, selected: Selected, kills: tuple[int, ...]) -> None:
    settings = EvalSettings(limit=12)
    whole = evaluate_task(ScriptedSubject(), selected, settings, at(tmp_path / "whole"))
    asked = 0
    for turn, kill in enumerate(kills):
        subject = ScriptedSubject(stop_after=kill, turn=turn)
        with pytest.raises(KeyboardInterrupt):
            evaluate_task(subject, selected, settings, at(tmp_path / "parts"))
        asked += len(subject.asked)
    last = ScriptedSubject(turn=9)
    result = evaluate_task(last, selected, settings, at(tmp_path / "parts"))
    assert facts(result) == facts(whole)
    assert asked + len(last.asked) == 12, "work was done twice"
    name = f"{selected.label}.jsonl"
    assert lines(tmp_path / "parts", name) == lines(tmp_path / "whole", name)


def test_a_half_written_line_is_done_again(tmp_path: Path) -> None:
    whole = evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    path = tmp_path / "sums.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-9], encoding="utf-8")
    subject = ScriptedSubject()
    assert facts(evaluate_task(subject, SUMS, TEN, at(tmp_path))) == facts(whole)
    assert len(subject.asked) == 1
    path.write_text(text.splitlines()[0][:20], encoding="utf-8")  # killed while the first line was written
    subject = ScriptedSubject()
    assert facts(evaluate_task(subject, SUMS, TEN, at(tmp_path))) == facts(whole)
    assert len(subject.asked) == 10


def test_a_complete_evaluation_asks_nothing(tmp_path: Path) -> None:
    evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    subject = ScriptedSubject()
    evaluate_task(subject, SUMS, TEN, at(tmp_path))
    assert subject.asked == []


def test_a_higher_limit_and_more_samples_go_on_with_what_is_there(tmp_path: Path) -> None:
    drawn = {"temperature": 0.5}
    evaluate_task(ScriptedSubject(), SUMS, EvalSettings(limit=4, **drawn), at(tmp_path))
    subject = ScriptedSubject()
    more = EvalSettings(limit=6, samples=2, **drawn)
    result = evaluate_task(subject, SUMS, more, at(tmp_path))
    assert len(subject.asked) == 8
    assert facts(result) == facts(evaluate_task(ScriptedSubject(), SUMS, more, QUIET))
    fewer = evaluate_task(ScriptedSubject(stop_after=0), SUMS, EvalSettings(limit=3, **drawn), at(tmp_path))
    assert len(fewer.records) == 3
    assert len(lines(tmp_path)) == 13, "a lower limit must not delete results"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed"),
        ({"temperature": 0.5}, "temperature"),
        ({"system": "Hi."}, "system"),
        ({"top_p": 0.9}, "top_p"),
    ],
)
def test_results_of_another_evaluation_are_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    with pytest.raises(UserError, match=named) as caught:
        evaluate_task(ScriptedSubject(), SUMS, TEN.model_copy(update=changes), at(tmp_path))
    assert "--fresh" in str(caught.value) and "--examples" in str(caught.value)
    with pytest.raises(UserError, match=r"scripted 0\.5 there, scripted 0\.9 here"):
        evaluate_task(ScriptedSubject(skill=0.9), SUMS, TEN, at(tmp_path))
    assert len(lines(tmp_path)) == 11


def test_fresh_begins_anew(tmp_path: Path) -> None:
    evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    subject = ScriptedSubject(skill=0.9)
    evaluate_task(subject, SUMS, EvalSettings(limit=2), at(tmp_path, fresh=True))
    assert len(subject.asked) == 2 and len(lines(tmp_path)) == 3


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    class Changed(Sums):
        def drafts(self, split: str, seed: int) -> Iterator[object]:  # type: ignore[override]
            return super().drafts(split, seed + 1)  # type: ignore[arg-type]

    evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    with pytest.raises(UserError, match="data has changed"):
        evaluate_task(ScriptedSubject(), Selected("sums", Changed(NoOptions())), TEN, at(tmp_path))


@pytest.mark.parametrize("damage", ["no json\n", '{"problem": 1}\n', "[]\n"])
def test_damaged_results_are_named(tmp_path: Path, damage: str) -> None:
    evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    path = tmp_path / "sums.jsonl"
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*text[:3], damage, *text[3:]]), encoding="utf-8")
    with pytest.raises(UserError, match="line 4"):
        evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    path.write_text(damage + "".join(text), encoding="utf-8")
    with pytest.raises(UserError, match="doesn't begin as results do"):
        evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))


def test_a_split_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="split"):
        evaluate_task(ScriptedSubject(), SUMS, EvalSettings(split="dev"), QUIET)


class Programs(Sums):
    """Grades by running code."""

    executor: Executor | None = None

    def with_executor(self, executor: Executor) -> Programs:
        """Able to grade."""
        task = Programs(self.options)
        task.executor = executor
        return task

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """As the executor says."""
        assert self.executor is not None
        return self.executor(f"{conversation.extra['answer']}|{reply.text}")


def test_code_is_graded_beside_generation_by_several_threads() -> None:
    threads: set[str] = set()
    first = threading.Event()

    class Watched(ScriptedSubject):
        def replies(self, conversations, settings):  # type: ignore[no-untyped-def]
            for count, each in enumerate(super().replies(conversations, settings)):
                yield each
                if count == 0:
                    assert first.wait(5), "the first reply is graded before the second is asked for"

    def execute(program: str) -> bool:
        threads.add(threading.current_thread().name)
        first.set()
        answer, _, text = program.partition("|")
        return text == f"It is {answer}."

    selected = Selected("programs", Programs(NoOptions())).with_executor(lambda: execute)
    result = evaluate_task(Watched(skill=0.5), selected, TEN, QUIET)
    plain = evaluate_task(ScriptedSubject(skill=0.5), SUMS, TEN, QUIET)
    assert [record.score for record in result.records] == [record.score for record in plain.records]
    assert threads and all(name.startswith("grade") for name in threads)


def test_a_grade_that_cannot_be_made_ends_the_evaluation(tmp_path: Path) -> None:
    def execute(program: str) -> bool:
        raise UserError("no sandbox here")

    selected = Selected("programs", Programs(NoOptions())).with_executor(lambda: execute)
    with pytest.raises(UserError, match="no sandbox here"):
        evaluate_task(ScriptedSubject(), selected, TEN, at(tmp_path))


class Meeting:
    """Threads in place of ranks: each waits for all, and gets the union."""

    def __init__(self, size: int) -> None:
        self.barrier, self.brought = threading.Barrier(size), [set[str]() for _ in range(size)]

    def of(self, rank: int) -> Crew:
        """The crew of one rank."""

        def meet(names: set[str]) -> list[str]:
            self.brought[rank] = names
            self.barrier.wait(10)
            union = sorted(set().union(*self.brought))
            self.barrier.wait(10)
            return union

        return Crew(rank, len(self.brought), meet)


def on_ranks(size: int, folder: Path | None, selected: Selected, settings: EvalSettings) -> list[TaskResult]:
    meeting, results, subjects = Meeting(size), [None] * size, [ScriptedSubject() for _ in range(size)]

    def run(rank: int) -> None:
        session = Session(folder, False, rank, size, meeting.of(rank), show_progress=False)
        results[rank] = evaluate_task(subjects[rank], selected, settings, session)  # type: ignore[call-overload]

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(20)
    shares = [len(subject.asked) for subject in subjects]
    assert max(shares) - min(shares) <= 1 and sum(shares) == len(results[0].records), "every trial once, shared evenly"  # type: ignore[attr-defined]
    return results  # type: ignore[return-value]


@pytest.mark.parametrize("selected", [SUMS, LETTERS], ids=lambda each: each.label)
@pytest.mark.parametrize("size", [2, 3])
def test_shared_among_ranks_is_the_same(tmp_path: Path, selected: Selected, size: int) -> None:
    settings = EvalSettings(limit=8, samples=2, temperature=1.0)
    alone = evaluate_task(ScriptedSubject(), selected, settings, at(tmp_path / "alone"))
    results = on_ranks(size, tmp_path / "ranks", selected, settings)
    assert all(facts(result) == facts(alone) for result in results)
    name = f"{selected.label}.jsonl"
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == [name]
    assert lines(tmp_path / "ranks", name) == lines(tmp_path / "alone", name)


def test_what_killed_ranks_left_is_joined(tmp_path: Path) -> None:
    """A part of a rank that exists no more, half a line at its end."""
    alone = evaluate_task(ScriptedSubject(), SUMS, TEN, at(tmp_path))
    path = tmp_path / "sums.jsonl"
    head, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(head + "".join(rest[:3]), encoding="utf-8")
    part = tmp_path / ".sums.jsonl.rank-5"
    part.write_text(head + "".join(rest[5:9])[:-4], encoding="utf-8")
    subject = ScriptedSubject()
    assert facts(evaluate_task(subject, SUMS, TEN, at(tmp_path))) == facts(alone)
    assert len(subject.asked) == 4 and not part.exists()
