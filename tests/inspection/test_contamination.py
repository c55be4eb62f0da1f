"""Contamination: planted items are found, clean rows are not, and the rules are those of a naive reading."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_contamination import naive_matches

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import DataError
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings, Match, too_short
from chatwright.inspection.contamination_sides import Hit, check, check_many
from chatwright.inspection.contamination_store import load_index, prepare_index
from chatwright.inspection.evaluation_texts import EvalText, Evaluations, TextField

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
ANSWER = "In May she sold half of what April brought, 24 clips. So over both months together she sold 72 of her clips."
PASSAGE = "The wide river carried the small grey boats past the old mill while the miller counted his sacks of grain."
STEM = "Which part of a plant cell captures the energy of light?"
SHORT = "What is the capital of Peru?"
SUM = "What is 12 + 30?"


def item(text: str, row: int = 0, field: TextField = "question", task: str = "quiz") -> EvalText:
    return EvalText(task, "test", "quiz.jsonl", row, text, field)


ITEMS = [
    item(QUESTION, 0, task="maths"),
    item(ANSWER, 0, "answer", task="maths"),
    item(PASSAGE + " What did the miller count?", 1),
    item(STEM, 2),
    item(SHORT, 3),
    item(SUM, 4),
    item("Yes", 5, "answer"),
    item("请问长江的源头在哪一个省份的哪一座山脉附近呢", 6),
]


def row(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message.of(roles[place % 2], text) for place, text in enumerate(texts)), row=7)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def index() -> ContaminationIndex:
    return ContaminationIndex.build(ITEMS, ContaminationSettings())


def hits(index: ContaminationIndex, *texts: str) -> list[tuple[str, int, str]]:
    return [(hit.task, hit.eval_row, hit.kind) for hit in check(index, row(*texts))]


PLANTED = {
    "verbatim": ([QUESTION, "72"], ("maths", 0, "ngram")),
    "inside a longer text": ([f"Solve this for my class. {QUESTION} Thank you!", "72"], ("maths", 0, "ngram")),
    "answer only": (["Explain the result.", f"Of course. {ANSWER}"], ("maths", 0, "ngram")),
    "case and punctuation": ([QUESTION.upper().replace(",", " -").replace(".", "\n\n"), "72"], ("maths", 0, "ngram")),
    "a few words changed": (
        [QUESTION.replace("Natalia", "Maria").replace("48", "52").replace("clips in May", "clips in June"), "?"],
        ("maths", 0, "near_duplicate"),
    ),
    "split over two messages": ([QUESTION[:60], "Go on.", QUESTION[60:]], ("maths", 0, "ngram")),
    "most of it": ([PASSAGE], ("quiz", 1, "ngram")),
    "a short question within a text": ([f"My homework says: {STEM.lower()} I don't know.", "?"], ("quiz", 2, "ngram")),
    "a short question, one word changed": ([STEM.replace("captures", "stores"), "?"], ("quiz", 2, "near_duplicate")),
    "a very short question": (["what is THE capital of Peru", "Lima"], ("quiz", 3, "ngram")),
    "a sum": (["what is 12+30", "42"], ("quiz", 4, "ngram")),
    "Chinese": (["请问：长江的源头，在哪一个省份的哪一座山脉附近呢？", "?"], ("quiz", 6, "ngram")),
}
CLEAN = {
    "another question of the same kind": [
        "Ken sold 12 of his lemons in May, and three times as many in June. How many lemons did Ken sell in both?",
        "48",
    ],
    "the first words only": [
        "Natalia sold clips to 48 of her friends in April. Where does Natalia live?",
        "I don't know.",
    ],
    "another short question": ["What is the capital of Chile?", "Santiago"],
    "a very short question within a text": ["Do you know what is the capital of Peru and of Chile?", "Yes"],
    "another sum of the same words": ["What is 12 * 30?", "360"],
    "a short answer": ["Do you like it?", "Yes"],
    "the words in another order": [" ".join(sorted(QUESTION.split())), "?"],
    "nothing": ["", ""],
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_items_are_found(index: ContaminationIndex, name: str) -> None:
    texts, expected = PLANTED[name]
    assert hits(index, *texts) == [expected]


@pytest.mark.parametrize("name", CLEAN)
def test_clean_rows_are_not_hit(index: ContaminationIndex, name: str) -> None:
    assert hits(index, *CLEAN[name]) == []


def test_thinking_calls_and_results_are_read_too(index: ContaminationIndex) -> None:
    for kind in ("thinking", "tool_call", "tool_result"):
        message = Message("assistant", (Part("text", "Well."), Part(kind, QUESTION)))  # type: ignore[arg-type]
        assert [hit.task for hit in check(index, Conversation((Message.of("user", "?"), message)))] == ["maths"]


def test_calculations_of_gsm8k_do_not_break_a_solution() -> None:
    plain = "She sold 48/2 = 24 clips in May. She sold 48+24 = 72 clips altogether in April and May."
    marked = (
        "She sold 48/2 = <<48/2=24>>24 clips in May. She sold 48+24 = <<48+24=72>>72 clips altogether in April and May."
    )
    index = ContaminationIndex.build([item(plain, 0, "answer")], ContaminationSettings())
    assert [hit.share for hit in check(index, row("?", marked))] == [1.0]


def test_what_many_items_say_counts_neither_for_nor_against() -> None:
    frame = "Read the following question with great care and then answer with one single letter only please"
    own = "which metal melts when you hold it in your warm hand for a while today"
    items = [
        item(f"{frame} {word} {own if word == 'w3' else ''}", place)
        for place, word in enumerate(f"w{i}" for i in range(12))
    ]
    index = ContaminationIndex.build(items, ContaminationSettings())
    assert check(index, row(frame, "A")) == []
    (hit,) = check(index, row(f"w3 {own}", "A"))
    assert (hit.eval_row, hit.kind) == (3, "ngram")
    assert 0.5 < hit.share < 1
    (hit,) = check(index, row(items[3].text, "A"))
    assert hit.share == 1


def test_a_very_short_question_of_many_items_tells_nothing() -> None:
    for count, expected in ((10, 10), (11, 0)):
        index = ContaminationIndex.build([item(SHORT, place) for place in range(count)], ContaminationSettings())
        assert len(check(index, row(SHORT))) == expected


def test_both_sides_show_the_shared_words(index: ContaminationIndex) -> None:
    before = "blah " * 200
    (hit,) = check(index, row(f"{before}{QUESTION.upper()} {before}", "72"))
    assert hit.evaluation.text == QUESTION
    assert [hit.evaluation.text[start:end] for start, end in hit.evaluation.spans] == [QUESTION.rstrip("?")]
    assert [hit.train.text[start:end] for start, end in hit.train.spans] == [QUESTION.upper().rstrip("?")]
    assert hit.train.cut_before and hit.train.cut_after
    assert len(hit.train.text) < 600
    assert (hit.source, hit.row, hit.share, hit.field) == ("memory", 7, 1.0, "question")


def test_batches_do_not_mix_conversations(index: ContaminationIndex) -> None:
    words = QUESTION.split()
    parts = [row(" ".join(words[start : start + 11])) for start in (0, 11, 22)]
    rows = [*parts, row(QUESTION), row("x " * 150_000), row(QUESTION), *parts]
    assert [len(found) for found in check_many(index, rows)] == [0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert index.matches([]) == []


def test_thresholds_decide(index: ContaminationIndex) -> None:
    half = " ".join(QUESTION.split()[:15])
    assert hits(index, half) == []
    low = dataclasses.replace(index, min_share=0.0)
    assert hits(low, half) == [("maths", 0, "ngram")]
    changed = PLANTED["a few words changed"][0]
    assert hits(dataclasses.replace(index, near_threshold=0.95), *changed) == []


WORDS = [*"abcdefg", "red", "blue"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=24).map(" ".join)
FIELDS = st.sampled_from(["question", "choices", "answer"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[EvalText], list[list[str]], ContaminationSettings]:
    """Items and conversations that share pieces, in words so few that chance shares some too."""
    base = draw(st.lists(TEXTS, min_size=1, max_size=6))
    piece = st.builds(
        lambda text, a, b: " ".join(text.split()[a:b]), st.sampled_from(base), st.integers(0, 6), st.integers(6, 24)
    )
    mixed = st.lists(st.one_of(st.sampled_from(base), piece, TEXTS), max_size=3).map(" ".join)
    source = draw(st.sampled_from(["s", "s", "task:t"]))
    items = [EvalText("t", "test", source, n // 2, draw(mixed), draw(FIELDS)) for n in range(draw(st.integers(1, 16)))]
    rows = draw(st.lists(st.lists(mixed, min_size=1, max_size=3), min_size=1, max_size=4))
    chosen = ContaminationSettings(
        n=draw(st.integers(8, 14)),
        min_share=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        near_threshold=draw(st.sampled_from([0.1, 0.5, 0.8, 1.0])),
    )
    return items, rows, chosen


@settings(max_examples=300, deadline=None)
@given(cases())
def test_matches_are_those_of_the_naive_reading(
    case: tuple[list[EvalText], list[list[str]], ContaminationSettings],
) -> None:
    items, rows, chosen = case
    found = ContaminationIndex.build(items, chosen).matches([row(*texts) for texts in rows])
    assert found == [naive_matches(items, chosen, texts) for texts in rows]


def test_a_saved_index_finds_the_same(index: ContaminationIndex, tmp_path: Path) -> None:
    chosen = ContaminationSettings()
    evaluations = Evaluations(tuple(ITEMS), {"maths": 1, "quiz": 5})
    folder = prepare_index(evaluations, chosen, tmp_path)
    assert prepare_index(evaluations, chosen, tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    loaded = load_index(folder, chosen)
    rows = [row(*texts) for texts, _ in PLANTED.values()] + [row(*texts) for texts in CLEAN.values()]
    assert check_many(loaded, rows) == check_many(index, rows)
    assert list(loaded.items[1:3]) == ITEMS[1:3]
    assert prepare_index(evaluations, ContaminationSettings(n=10), tmp_path) != folder
    changed = Evaluations((*ITEMS[:-1], item("Another question", 6)), {})
    assert prepare_index(changed, chosen, tmp_path) != folder


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    chosen = ContaminationSettings()
    folder = prepare_index(Evaluations(tuple(ITEMS), {}), chosen, tmp_path)
    with pytest.raises(DataError, match="runs of 13 words, not 9"):
        load_index(folder, ContaminationSettings(n=9))
    (folder / "words.npy").unlink()
    with pytest.raises(DataError, match="no complete contamination index"):
        load_index(folder, chosen)


def test_an_index_of_nothing_finds_nothing(tmp_path: Path) -> None:
    folder = prepare_index(Evaluations((), {}), ContaminationSettings(), tmp_path)
    assert load_index(folder, ContaminationSettings()).matches([row(QUESTION)]) == [[]]


def test_what_a_task_makes_from_a_template_counts_only_as_a_whole() -> None:
    text = "Please count how often the letter s comes up in the word possesses and tell me the sum"
    made = dataclasses.replace(item(text), source="task:spelling_bee")
    for asked, expected in ((made, 0), (item(text), 1)):
        index = ContaminationIndex.build([asked], ContaminationSettings())
        assert len(check(index, row(text.replace("possesses", "mississippi")))) == expected
        assert len(check(index, row(f"Hello. {text}?"))) == 1


def test_items_too_short_to_be_found_are_counted() -> None:
    items = [item("2 + 2 = ?", 0), item("4", 0, "answer"), item(SHORT, 1), item("Peru's capital is Lima.", 2, "answer")]
    assert too_short(items, ContaminationSettings()) == {"quiz": 2}
    assert too_short([item(QUESTION)], ContaminationSettings()) == {}


def test_one_match_an_item(index: ContaminationIndex) -> None:
    found = check(index, row(QUESTION, ANSWER, PASSAGE, SHORT))
    assert [(hit.task, hit.eval_row) for hit in found] == [("maths", 0), ("quiz", 1), ("quiz", 3)]
    assert all(isinstance(hit, Hit) for hit in found)
    assert index.matches([row(SHORT)]) == [[Match(4, "ngram", 1.0, 1)]]
