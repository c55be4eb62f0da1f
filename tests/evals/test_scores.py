"""From records to scores, differences, ChatCORE, the table and its marks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from chatwright.evals.records import Key, Record
from chatwright.evals.run import TaskResult, Way
from chatwright.evals.scoreboard import footnotes, make_scoreboard, table_columns, table_rows
from chatwright.evals.scores import chatcore, chatcore_difference, scores_of
from chatwright.evals.selection import CHATCORE
from chatwright.evals.statistics import mean_interval, pass_at_k, ratio, wilson

TOO_LONG = "longer than the context of 9 tokens"


def result(
    scores: Sequence[Sequence[float]],
    subject: str = "m",
    label: str = "sums",
    way: Way = "replies",
    chance: float = 0.0,
) -> TaskResult:
    """The result of replies with these scores, a list a problem."""
    records = [
        Record(Key(problem, sample), "here", problem, "p", score, 0.1)
        for problem, samples in enumerate(scores)
        for sample, score in enumerate(samples)
    ]
    evaluation = label if label.startswith("arc") else label.partition(":")[0]
    return TaskResult(subject, label, "test", way, evaluation, tuple(records), chance, len(scores[0]))


def losses(numbers: Sequence[tuple[float, float] | None], subject: str = "m") -> TaskResult:
    """(nats, tokens) of each conversation; a token is two bytes; None for one that wasn't measured."""
    details: list[Mapping[str, object]] = [
        {"unanswered": TOO_LONG}
        if pair is None
        else {"nats": pair[0], "weight": pair[1], "text_bits": pair[0] / np.log(2), "bytes": 2 * pair[1]}
        for pair in numbers
    ]
    records = [Record(Key(number, 0), "here", number, "p", None, 0.1, told) for number, told in enumerate(details)]
    return TaskResult(subject, "held-out: x", "", "loss", "", tuple(records))


def test_one_reply_a_problem_gives_an_accuracy_with_wilsons_interval() -> None:
    (score,) = scores_of(result([[1.0]] * 30 + [[0.0]] * 70))
    assert (score.metric, score.estimate.value) == ("accuracy", 0.3)
    assert score.estimate.interval == wilson(30, 100)


def test_grades_between_0_and_1_give_a_mean() -> None:
    (score,) = scores_of(result([[0.5], [1.0], [0.0], [0.25]] * 5))
    assert score.metric == "score" and score.estimate.value == pytest.approx(0.4375)
    assert score.estimate.interval == mean_interval([0.5, 1.0, 0.0, 0.25] * 5)


def test_several_replies_give_pass_at_1_and_at_k() -> None:
    rng = np.random.default_rng(0)
    marks = rng.random((20, 12)) < 0.3
    found = scores_of(result(marks.astype(float).tolist()))
    assert [score.metric for score in found] == ["pass@1", "pass@10", "pass@12"]
    for score, k in zip(found, (1, 10, 12), strict=True):
        each = pass_at_k([12] * 20, marks.sum(axis=1), k)
        assert score.estimate.value == pytest.approx(each.mean())
        low, high = wilson(each.sum(), 20) if k == 12 else mean_interval(each)
        assert score.estimate.interval == pytest.approx((low, high))


def test_losses_weigh_by_tokens_and_bits_by_bytes() -> None:
    pairs = [(10.0, 4.0), (30.0, 20.0), (3.0, 3.0)]
    loss, bits = scores_of(losses([*pairs, None]))
    assert (loss.metric, bits.metric) == ("loss", "bits per byte")
    assert loss.estimate == ratio([10, 30, 3], [4, 20, 3]) and loss.unanswered == {
        3: "longer than the context of 9 tokens"
    }
    assert bits.estimate.value == pytest.approx(43 / np.log(2) / 54)


def test_differences_are_over_the_conversations_that_both_have_measured() -> None:
    first = scores_of(losses([(10.0, 4.0), (8.0, 4.0), None]))[0]
    second = scores_of(losses([(10.0, 4.0), None, (1.0, 4.0)]))[0]
    assert second.minus(first).value == 0.0
    assert scores_of(losses([(12.0, 4.0), (9.0, 4.0), None]))[0].minus(first).value == pytest.approx(3 / 8)


def core(accuracies: Mapping[str, float], count: int = 100, subject: str = "m") -> list[TaskResult]:
    """A result of every ChatCORE task, right on the first so many problems."""
    return [
        result([[float(number < round(accuracies[label] * count))] for number in range(count)], subject, label)
        for label in CHATCORE
    ]


ACCURACIES = {
    "arc:ARC-Easy": 0.55,
    "arc:ARC-Challenge": 0.4,
    "mmlu": 0.34,
    "gsm8k": 0.07,
    "humaneval": 0.0,
    "spelling_bee": 0.98,
}


def test_chatcore_is_the_mean_centred_accuracy_of_six_tasks() -> None:
    by_label = {each.label: scores_of(each)[0] for each in core(ACCURACIES)}
    found = chatcore(by_label)
    assert found is not None
    # (0.30 / 0.75 + 0.15 / 0.75 + 0.09 / 0.75 + 0.07 + 0 + 0.98) / 6, as nanochat's chat_eval computes it
    assert found.value == pytest.approx((0.4 + 0.2 + 0.12 + 0.07 + 0.0 + 0.98) / 6)
    assert found.low < found.value < found.high < found.value + 0.1
    assert chatcore({label: score for label, score in by_label.items() if label != "mmlu"}) is None


def test_chatcore_differences_are_paired() -> None:
    better = {label: min(1.0, each + 0.1) for label, each in ACCURACIES.items()}
    first = {each.label: scores_of(each)[0] for each in core(ACCURACIES)}
    second = {each.label: scores_of(each)[0] for each in core(better)}
    found = chatcore_difference(first, second)
    expected = np.mean([(better[x] - ACCURACIES[x]) / (1 - base) for x, base in CHATCORE.items()])
    assert found.value == pytest.approx(expected) and found.significant
    assert not chatcore_difference(first, first).significant


def test_the_table_marks_differences_that_are_no_chance() -> None:
    first = result([[0.0]] * 60 + [[1.0]] * 40, "base")
    same = result([[0.0]] * 58 + [[1.0]] * 42, "same")
    better = result([[0.0]] * 30 + [[1.0]] * 70, "better")
    board = make_scoreboard([[first], [same], [better]])
    assert table_columns(board)[-3:] == ("base", "same", "better")
    (row,) = table_rows(board)
    assert row[:3] == ("sums", "accuracy, n = 100", "40.0 [30.9, 49.8]")
    assert row[3].startswith("42.0 [") and "\n+2.0 [" in row[3] and "*" not in row[3]
    assert row[4].endswith("] *") and "\n+30.0 [" in row[4]
    assert any("base" in note and "*" in note for note in footnotes(board))
    assert table_columns(make_scoreboard([[result([[1.0]], "runs/a")], [result([[1.0]], "runs/b/")]]))[-2:] == (
        "a",
        "b",
    )
    assert table_columns(make_scoreboard([[result([[1.0]], "x/a")], [result([[1.0]], "y/a")]]))[-2:] == ("x/a", "y/a")
    alone = make_scoreboard([[first]])
    assert not any("*" in note for note in footnotes(alone))


def test_the_table_shows_chance_and_another_split() -> None:
    one = result([[1.0], [0.0]], label="mmlu:anatomy", way="letters", chance=0.25)
    row = table_rows(make_scoreboard([[TaskResult("m", "mmlu", "dev", "letters", "mmlu", one.records, 0.25)]]))[0]
    assert row[:2] == ("mmlu (dev)", "accuracy, n = 2\nchance 25%")


def test_what_training_has_met_is_marked() -> None:
    results = [core(ACCURACIES, 20, name) for name in ("clean", "met", "unknown")]
    marks = [dict.fromkeys(CHATCORE, 0), {**dict.fromkeys(CHATCORE, 0), "gsm8k": 1200}, {}]
    board = make_scoreboard(results, marks)
    rows = {row[0]: row for row in table_rows(board)}
    assert "†" in rows["gsm8k"][3] and "†" in rows["ChatCORE"][3]
    assert "†" not in "".join([*rows["gsm8k"][2::2], *rows["mmlu"][2:], rows["ChatCORE"][2]])
    assert [note for note in footnotes(board) if "†" in note] == [
        "† met has met items of gsm8k in training: 1,200 training rows"
    ]
    told = {row["task"]: row["scores"] for row in board.to_dict()["rows"]}
    assert [score["contaminated_rows"] for score in told["gsm8k"]] == [0, 1200, None]
    assert [score["contaminated_rows"] for score in told["ChatCORE"]] == [0, 1200, None]


def test_marks_are_of_the_test_split_alone() -> None:
    one = result([[1.0], [0.0]], label="gsm8k")
    trained = TaskResult("m", "gsm8k", "train", "replies", "gsm8k", one.records)
    assert make_scoreboard([[trained]], [{"gsm8k": 5}]).rows[0].cells[0].contaminated is None


def test_what_got_no_reply_is_told() -> None:
    records = [*result([[1.0]] * 3).records, Record(Key(3, 0), "x", 3, "p", 0.0, 0.1, {"unanswered": "too long"})]
    one = TaskResult("m", "sums", "test", "replies", "sums", tuple(records))
    board = make_scoreboard([[one, losses([(1.0, 1.0), None])]])
    assert board.rows[0].cells[0].estimate.value == 0.75
    assert "sums: 1 problem without a reply of m, counted as wrong: too long" in footnotes(board)
    assert "held-out: x: 1 problem without a reply of m, left out: longer than the context of 9 tokens" in footnotes(
        board
    )
    assert [row.problems for row in board.rows] == [4, 2, 2]


def test_the_summary_is_json_with_both_ends_of_every_interval() -> None:
    first, second = result([[0.0]] * 20 + [[1.0]] * 20, "a"), result([[0.0]] * 10 + [[1.0]] * 30, "b")
    told = json.loads(json.dumps(make_scoreboard([[first], [second]]).to_dict()))
    assert told["models"] == ["a", "b"]
    scores = told["rows"][0]["scores"]
    assert scores[0]["value"] == 0.5 and scores[0]["low"] < 0.5 < scores[0]["high"] and "difference" not in scores[0]
    assert scores[1]["difference"]["to"] == "a" and scores[1]["difference"]["value"] == 0.25
    assert scores[1]["difference"]["significant"] is True and scores[1]["difference"]["changed"] == 10


def test_a_graded_task_is_called_the_same_for_all_subjects() -> None:
    """One subject happens to have only 0 and 1; the other doesn't: one row, no error."""
    graded = result([[0.5, 1.0], [0.0, 1.0]], subject="a")
    whole = result([[1.0, 1.0], [0.0, 1.0]], subject="b")
    board = make_scoreboard([[whole], [graded]])
    assert [row.metric for row in board.rows] == ["score"]


def test_lone_surrogates_of_a_server_can_be_written_and_read() -> None:
    record = Record(Key(0, 0), "here", 0, "p", 1.0, 0.1, {"reply": "half \ud83d of it, 世"})
    line = record.to_line()
    assert "世" in line.encode("utf-8").decode() and Record.from_line(line).details == record.details


def test_replies_without_room_left_are_counted() -> None:
    records = [Record(Key(n, 0), "here", n, "p", 0.0, 0.1, {"finish": "length" if n < 2 else "stop"}) for n in range(5)]
    board = make_scoreboard([[TaskResult("m", "sums", "test", "replies", "sums", tuple(records), 0.0, 1)]])
    assert any("sums: 2 replies of m cut off" in note for note in footnotes(board))
