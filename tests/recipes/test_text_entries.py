"""Plain text and chosen replies as data entries of a recipe: counted, cut, mixed, cached, sharded; or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatwright.conversations import documents
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.schema import Document
from chatwright.errors import ConfigError, DataError
from chatwright.inspection.ledger import Stage
from chatwright.preparation.streamed_rows import stream_entry
from chatwright.recipes.data import RunData, build_data, prepare_text
from chatwright.recipes.planning import plan_run
from chatwright.recipes.rendering import data_fingerprint, render_entries
from chatwright.recipes.run_settings import RunSettings
from chatwright.selftest.laws import check_recipe
from chatwright.selftest.outcome import Status
from chatwright.settings import build
from chatwright.templates.base import TrainOn
from shared_files import shared
from training_runs import CPU, conversations, recipe, write_rows

PARAGRAPHS = [f"The river {number} is behind the hill.\nIt is a colour, " + "blue " * number for number in range(20)]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return path


def built(model: Path, entry: dict[str, Any] | list[dict[str, Any]], out: Path, **changes: Any) -> RunData:
    data = entry if isinstance(entry, list) else [entry]
    return build_data(recipe(model, None, out, **{"data": data, **changes}))


def read_back(data: RunData) -> dict[tuple[str, int], str]:
    """The text of every document, its pieces joined in their order."""
    ids: dict[tuple[str, int], list[int]] = {}
    for number in sorted(range(len(data.store)), key=lambda number: data.store.key(number)):
        key = data.store.key(number)
        ids.setdefault((key.source, key.row), []).extend(data.store.example(number)[0].tolist())
    return {key: data.text.tokenizer.decode(found) for key, found in ids.items()}


@pytest.mark.parametrize("by", ["file", "paragraph", "line"])
def test_a_text_file_is_trained_whole_and_counted(tiny_model: Path, book: Path, by: str) -> None:
    entry = {"path": str(book), "text_by": by}
    data = built(tiny_model, entry, book.parent, max_tokens=40)
    wanted = {"file": ["\n\n".join(PARAGRAPHS)], "paragraph": PARAGRAPHS, "line": "\n".join(PARAGRAPHS).split("\n")}
    assert list(read_back(data).values()) == wanted[by]
    assert data.entries[0].format == "text" and data.entries[0].num_rows == len(wanted[by])
    ledger, rows = data.ledger, len(wanted[by])
    assert [ledger.rows(stage) for stage in (Stage.READ, Stage.CONVERTED, Stage.RENDERED)] == [rows] * 3
    assert ledger.rows(Stage.SPLIT) == len(data.store) - rows > 0
    assert ledger.tokens(Stage.RENDERED) == ledger.tokens(Stage.KEPT) == data.store.num_tokens
    assert data.store.num_tokens - len(data.store) == data.store.supervised_counts.sum(), "all but the first tokens"
    assert data.store.lengths.max() <= 40
    assert (
        plan_run(recipe(tiny_model, None, book.parent, data=[entry], max_tokens=40), data).sources[0].format == "text"
    )


def test_text_replays_inside_a_mixture_of_conversations(tiny_model: Path, book: Path) -> None:
    """Whatever the stage and the recipe's mask policy, text trains every token; conversations keep theirs."""
    chat = write_rows(book.parent / "chat.jsonl", conversations(12))
    rows = write_rows(book.parent / "web.jsonl", [{"body": text, "id": 1} for text in PARAGRAPHS])
    entries = [
        {"path": str(chat), "weight": 3},
        {"path": str(rows), "format": "text", "text_field": "body", "weight": 1, "max_rows": 9, "name": "web"},
    ]
    changes = {"heldout": {"share": 0.2}, "template": {"format": "chatml", "train_on": "last"}, "max_tokens": 60}
    data = built(tiny_model, entries, book.parent, overflow="truncate", **changes)
    data.ledger.check()
    text = np.flatnonzero(data.entry_index == 1)
    assert len({data.store.rows[number] for number in text}) == 7, "2 of 9 rows are held out"
    assert data.ledger.rows(Stage.HELD_OUT, "web") >= 2
    for number in text.tolist():
        assert data.store.example(number)[1][1:].all()
    chats = np.flatnonzero(data.entry_index == 0)
    assert (data.store.supervised_counts[chats] < data.store.lengths[chats] - 1).all()


def test_shards_give_the_same_text_and_the_cache_follows_the_files(
    tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        (book.parent / "texts").mkdir(exist_ok=True)
        (book.parent / "texts" / f"{number}.txt").write_text("\n\n".join(PARAGRAPHS[number : number + 5]))
    entry = {"path": str(book.parent / "texts"), "format": "text", "text_by": "paragraph"}
    settings = recipe(tiny_model, None, book.parent, data=[entry], max_tokens=50, preparation={"workers": 1})
    text = prepare_text(settings)
    wanted = render_entries(settings, text.template, None)
    monkeypatch.setattr(documents, "SMALL_FILE_BYTES", 0)
    where = {"text_folder": text.resolved.text_folder, "folder": book.parent / "cache" / "tokens", "key": "k"}
    made = render_entries(settings, text.template, None, **where)
    assert np.array_equal(made.store.ids, wanted.store.ids) and made.store.keys == wanted.store.keys
    assert made.ledger.to_dict() == wanted.ledger.to_dict()
    before = data_fingerprint(settings, text.template)
    assert before == data_fingerprint(settings, text.template) is not None
    by_line = recipe(tiny_model, None, book.parent, data=[{**entry, "text_by": "line"}], max_tokens=50)
    assert data_fingerprint(by_line, text.template) != before
    (book.parent / "texts" / "3.txt").write_text("Other.")
    assert data_fingerprint(settings, text.template) != before


def test_filters_and_transforms_that_read_text_work_on_it(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["  Blue is a colour. ", "Blue  is a colour.", "tiny", "A secret bat.", "The river is behind.", "old"]
    rows = write_rows(tmp_path / "web.jsonl", [{"text": text, "ok": text != "old"} for text in texts])
    filters = [
        {"kind": "length", "min": 4},
        {"kind": "field", "field": "ok", "forbid": [False]},
        {"kind": "pattern", "forbid": "secret"},
        {"kind": "exact_duplicates"},
    ]
    entry = {"path": str(rows), "format": "text", "transforms": [{"kind": "whitespace"}], "filters": filters}
    data = built(tiny_model, entry, tmp_path)
    assert sorted(read_back(data).values()) == ["Blue is a colour.", "The river is behind.", "tiny"]
    lost = {e.reason: e.rows for e in data.ledger.entries() if e.stage in (Stage.FILTERED, Stage.DROPPED)}
    assert lost == {
        "length: under 4 characters (conversation)": 1,
        "pattern: forbidden 'secret' (any)": 1,
        "exact_duplicates": 1,
    }
    kept = {**entry, "filters": filters[1:2], "on_bad_row": "skip"}
    assert built(tiny_model, kept, tmp_path).ledger.rows(Stage.FILTERED) == 1


def test_bad_rows_stop_or_are_counted_and_a_notice_that_was_cut_is_told(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "web.jsonl", [{"text": "Blue is a colour."}, {"text": " "}, {"words": "x"}])
    entry = {"path": str(rows), "format": "text"}
    with pytest.raises(DataError, match="the text is empty"):
        built(tiny_model, entry, tmp_path)
    data = built(tiny_model, {**entry, "on_bad_row": "skip"}, tmp_path)
    assert data.entries[0].skipped == {"text": 1, "row": 1}
    novel = tmp_path / "novel.txt"
    novel.write_text(
        "About\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nA bat.\n*** END OF THIS PROJECT GUTENBERG EBOOK X"
    )
    data = built(tiny_model, {"path": str(novel)}, tmp_path)
    assert (list(read_back(data).values()), data.entries[0].changed) == (["A bat."], {documents.NOTICE_CUT: 1})
    data = built(tiny_model, {"path": str(novel), "keep_notices": True}, tmp_path)
    assert (list(read_back(data).values()), data.entries[0].changed) == ([novel.read_text()], {})


def test_documents_in_memory(tiny_model: Path, tmp_path: Path) -> None:
    made = [Document("A bird can fly.", "mine", 0), Document("A river can't.", "mine", 1)]
    data = build_data(recipe(tiny_model, None, tmp_path), sources={"mine": made, "chat": conversations(3)})
    assert [data.store.example(number)[1][1:].all() for number in range(5)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"train_on": "last"}, "trains every token but the first; remove train_on: last"),
        ({"filters": [{"kind": "repeats_prompt"}]}, "filter repeats_prompt is for conversations"),
        ({"filters": [{"kind": "length", "of": "replies", "min": 1}]}, "can't measure of: replies"),
        ({"filters": [{"kind": "length", "unit": "turns", "min": 1}]}, "can't count turns"),
        ({"filters": [{"kind": "pattern", "role": "user", "match": "x"}]}, "can't search role: user"),
        ({"transforms": [{"kind": "drop_system"}]}, "transform drop_system is for conversations"),
        ({"roles": {"user": "human"}}, "'roles' belongs to conversations"),
        ({"columns": {"text": "body"}}, "text_field"),
        ({"preference": "chosen"}, "'preference' belongs to pairs"),
        ({"format": "messages", "text_by": "line"}, "'text_by' belongs to plain text"),
        ({"format": "txt"}, "unknown format 'txt'; did you mean 'text'"),
        ({"format": "trl"}, "trl is preference data; add preference: chosen"),
        ({"format": "dolly", "preference": "chosen"}, "unknown format 'dolly'; valid: auto, hh_rlhf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RunSettings, {"model": "m", "data": [{"path": "a", "format": "text", **entry}]}, "recipe.yaml")


def test_real_books_lose_no_token(tiny_model: Path, tmp_path: Path) -> None:
    entry = {"path": str(shared("data/text/gutenberg/alice.txt"))}
    data = built(tiny_model, entry, tmp_path, max_tokens=160)
    (document,) = documents.scan_texts(entry["path"])
    assert list(read_back(data).values()) == [document.value.text]
    data.ledger.check()


def test_text_streams_from_any_row_on(tiny_model: Path, book: Path) -> None:
    entry = build(DataSettings, {"path": str(book), "text_by": "paragraph", "start": 2, "step": 3}, "entry")
    streamed = stream_entry(entry, "book", 0, TrainOn.ASSISTANT, 1)
    assert streamed.work.format == "text"
    rows = [row for part in streamed.parts for row in part(2)]
    assert [row.value.text for row in rows] == PARAGRAPHS[2::3][2:]


def test_the_laws_hold_on_pieces_of_text(tiny_model: Path, book: Path) -> None:
    chat = write_rows(book.parent / "chat.jsonl", conversations(4))
    for data, applies in (([{"path": str(book)}], False), ([{"path": str(book)}, {"path": str(chat)}], True)):
        settings = recipe(tiny_model, None, book.parent / "run", data=data, max_tokens=80)
        report = check_recipe(settings, CPU)
        status = {outcome.name: outcome.status for outcome in report.outcomes}
        assert Status.BROKEN not in status.values(), report.outcomes
        assert status["labels"] == Status.HOLDS
        assert (status["serving"] == Status.HOLDS) is applies


# Preferences


def test_the_chosen_replies_of_pairs_are_trained_and_the_rest_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(6)]
    pairs[4]["rejected"] = pairs[4]["chosen"]
    path = write_rows(tmp_path / "pairs.jsonl", pairs)
    with pytest.raises(DataError, match="preference: chosen"):
        built(tiny_model, {"path": str(path)}, tmp_path)
    data = built(tiny_model, {"path": str(path), "preference": "chosen"}, tmp_path)
    assert (data.entries[0].format, data.entries[0].num_rows) == ("trl, chosen replies", 6)
    assert sorted(data.store.rows.tolist()) == [0, 1, 2, 3, 5]
    lost = {e.reason: e.rows for e in data.ledger.entries() if e.stage == Stage.FILTERED}
    assert lost == {"preference: the two replies are identical": 1}
    ids, weights = data.store.example(0)
    assert data.text.tokenizer.decode(ids[weights > 0].tolist()) == "It is 0."


def test_of_labelled_replies_the_wanted_ones_are_trained(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "?", "completion": f"Yes {n}.", "label": n % 3 > 0} for n in range(9)]
    path = write_rows(tmp_path / "kto.jsonl", rows)
    data = built(tiny_model, {"path": str(path), "format": "kto", "preference": "chosen"}, tmp_path)
    lost = {e.reason: e.rows for e in data.ledger.entries() if e.stage == Stage.FILTERED}
    assert lost == {"preference: the reply is labelled as unwanted": 3}
    assert sorted(data.store.rows.tolist()) == [1, 2, 4, 5, 7, 8]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dpo_en_demo.json", (300, 0, 0)),
        ("kto_en_demo.json", (300, 0, 150)),
        ("hh_rlhf_harmless_base_test.jsonl.gz", (2312, 4, 0)),
    ],
)
def test_real_preferences_as_training_data(
    tiny_model: Path, tmp_path: Path, name: str, counts: tuple[int, ...]
) -> None:
    entry = {"path": str(shared(f"data/preference/{name}")), "preference": "chosen", "on_bad_row": "skip"}
    data = built(tiny_model, entry, tmp_path, overflow="drop")
    assert tuple(data.ledger.rows(stage) for stage in (Stage.READ, Stage.SKIPPED, Stage.FILTERED)) == counts
    json.dumps(data.ledger.to_dict())
