"""The report: counts, rows and hits, the same however the rows were cut into parts, and to look at."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from chatwright.conversations.schema import Conversation, Message
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings
from chatwright.inspection.contamination_account import ContaminationAccount
from chatwright.inspection.contamination_report import ContaminationReport, drop_reason
from chatwright.inspection.evaluation_texts import EvalText, Evaluations
from chatwright.inspection.ledger import Ledger

TEXTS = (
    "The wide river carried the small grey boats past the old mill while the miller counted his sacks.",
    "Seven tired gardeners planted ninety tulips in three long rows behind the castle before the rain came down.",
)
ITEMS = tuple(EvalText(f"task{n}", "test", f"file{n}", n, text, "question") for n, text in enumerate(TEXTS))
SHORT = EvalText("task1", "test", "file1", 9, "Why?", "question")
SETTINGS = ContaminationSettings(shown=3)
INDEX = ContaminationIndex.build(ITEMS, SETTINGS)


def row(text: str, number: int, source: str = "a.jsonl") -> Conversation:
    return Conversation((Message.of("user", text),), source=source, row=number)


ROWS = [
    *(row(TEXTS[0][: 98 - number], number) for number in range(6)),
    row("Nothing of the kind.", 6),
    row(TEXTS[0] + TEXTS[1], 7, "b.jsonl"),
    row(TEXTS[1].replace("tired", "old").replace("long", "short"), 8, "b.jsonl"),
]


def report(*parts: list[Conversation]) -> ContaminationReport:
    whole = ContaminationReport.of(
        Evaluations((*ITEMS, SHORT), {"task0": 1, "task1": 2}, {"gsm8k": "its data isn't here"}), SETTINGS
    )
    for part in parts:
        found = ContaminationReport(shown=SETTINGS.shown)
        found.add(INDEX, part, INDEX.matches(part))
        whole.merge(found)
    return whole


def test_counts_rows_and_items() -> None:
    found = report(ROWS)
    assert (found.num_checked, found.num_contaminated) == (9, 8)
    assert found.counts == {
        ("a.jsonl", "task0", "ngram"): 6,
        ("b.jsonl", "task0", "ngram"): 1,
        ("b.jsonl", "task1", "ngram"): 1,
        ("b.jsonl", "task1", "near_duplicate"): 1,
    }
    assert found.rows["b.jsonl", 7] == ("task0", "task1")
    assert ("a.jsonl", 6) not in found.rows
    assert found.items == {"task0": {("file0", 0)}, "task1": {("file1", 1)}}


def test_only_the_most_telling_hits_are_kept() -> None:
    hits = report(ROWS).hits["task0", "ngram"]
    assert len(hits) == SETTINGS.shown
    assert (hits[0].share, hits[0].source, hits[0].row) == (1.0, "a.jsonl", 0)
    assert [hit.share for hit in hits] == sorted((hit.share for hit in hits), reverse=True)


def test_the_same_however_rows_are_cut_into_parts() -> None:
    whole = json.dumps(report(ROWS).to_dict())
    for cut in range(1, len(ROWS)):
        assert json.dumps(report(ROWS[cut:], ROWS[:cut]).to_dict()) == whole
    assert json.dumps(report(*([each] for each in reversed(ROWS))).to_dict()) == whole


def test_comes_back_from_json() -> None:
    found = report(ROWS)
    back = ContaminationReport.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back.to_dict() == found.to_dict()
    assert back.hits == found.hits


def test_shows_both_sides_with_the_shared_words_in_colour() -> None:
    text = row("Look\x1b[2J here: " + TEXTS[0], 3, "evil\x1b.jsonl")
    coloured = show(report([text]), force_terminal=True, color_system="standard")
    assert "\x1b[2J" not in coloured
    assert "\x1b[1;31mThe wide river" in coloured
    plain = show(report([text]))
    assert "task0 question: same words, 100% of it" in plain
    assert plain.count("The wide river") == 2


def test_the_reason_names_the_evaluation_that_the_row_shows_most_of() -> None:
    found = INDEX.matches([ROWS[7], ROWS[8]])
    assert drop_reason(INDEX, found[0]) == "contaminated by task0"
    assert drop_reason(INDEX, found[1]) == "contaminated by task1"


def test_nothing_found() -> None:
    assert show(report([ROWS[6]])) == ""


def account(drops: bool, *rows: Conversation) -> ContaminationAccount:
    ledger = Ledger()
    ledger.count("a.jsonl", "filtered", 3, reason="too short")
    ledger.count("a.jsonl", "filtered", 2 * drops, reason="contaminated by task0")
    return ContaminationAccount.of(report(list(rows)).to_dict(), ledger, drops=drops)


def test_one_line_tells_what_was_compared_what_not_and_what_came_of_it() -> None:
    found = account(True, ROWS[0], ROWS[6])
    assert found.line == (
        "contamination: compared with task0 (1), task1 (2, 1 too short); not compared: gsm8k (its data isn't here); "
        "1 of 2 rows hold an evaluation item; 2 dropped"
    )
    assert "none dropped (on_hit: report)" in account(False, ROWS[0]).line
    assert "weren't compared with any evaluation" in ContaminationAccount.of(None, Ledger(), drops=False).line


def test_dropping_without_the_evaluations_warns_and_says_how_to_get_them() -> None:
    warning = account(True, ROWS[0]).warning
    assert warning is not None and "1 of 3 evaluations couldn't be compared with" in warning and "gsm8k" in warning
    assert "CHATWRIGHT_DATA" in warning and "contamination.evaluations" in warning
    assert account(False, ROWS[0]).warning is None, "nothing was to be dropped"
    assert replace(account(True, ROWS[0]), unchecked={}).warning is None, "all of them were compared with"


def show(found: ContaminationReport, **options: Any) -> str:
    stream = io.StringIO()
    Console(width=140, file=stream, **options).print(found.renderable())
    return stream.getvalue()
