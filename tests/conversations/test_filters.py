"""Row filters: each drops what it should and keeps what it should; settings and users' functions that are wrong."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import filter_examples
import pytest
from filter_examples import CASES, PROSE, chat

from chatwright.conversations import languages
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.filters import ExactDuplicates, NearDuplicates, RowFilters, build_filters
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.text_measures import GOPHER_LIMITS, repetition, symbol_share
from chatwright.errors import ConfigError, DataError, UserError
from chatwright.settings import build, dump_yaml, parse_yaml
from shared_files import shared


def filters(*settings: dict[str, Any]) -> RowFilters:
    return build_filters(build(DataSettings, {"path": "x.jsonl", "filters": list(settings)}, "recipe").filters)


@pytest.mark.parametrize("case", CASES)
def test_every_filter_keeps_and_drops(case):
    settings, kept, dropped, words = CASES[case]
    row_filters = pickle.loads(pickle.dumps(filters(settings)))
    assert [row_filters.reason(row) for row in kept] == [None] * len(kept)
    reasons = [row_filters.reason(row) for row in dropped]
    assert all(reason and reason.startswith(words) for reason in reasons), reasons


def test_a_reply_that_is_not_trained_does_not_count():
    row = chat("a", "")
    (message,) = row.messages[1:]
    untrained = type(row)(
        (row.messages[0], type(message)("assistant", message.parts, train=False), *chat("b", "c").messages)
    )
    assert filters({"kind": "empty_reply"}).reason(untrained) is None


def test_settings_are_written_and_read_back():
    given = [
        {"kind": "length", "min": 3},
        {"kind": "field", "field": "a", "allow": [True, 1, None, "x", 2.5]},
        {"kind": "near_duplicates"},
    ]
    made = build(DataSettings, {"path": "x.jsonl", "filters": given, "transforms": [{"kind": "drop_system"}]}, "recipe")
    for only_changed in (True, False):
        again = build(DataSettings, parse_yaml(dump_yaml(made, only_changed=only_changed), "again"), "again")
        assert again == made
        assert [type(value) for value in again.filters[1].allow] == [bool, int, type(None), str, float]


def test_the_first_filter_that_drops_gives_the_reason_under_its_name():
    row_filters = filters(
        {"kind": "length", "max": 99}, {"kind": "length", "max": 3, "name": "short"}, {"kind": "empty_reply"}
    )
    assert row_filters.reason(chat("a", "     ")) == "short: over 3 characters (conversation)"
    assert RowFilters().reason(chat("a", "")) is None


def test_duplicates_are_handed_on_not_asked_row_by_row():
    row_filters = filters({"kind": "exact_duplicates"}, {"kind": "near_duplicates", "threshold": 0.7, "name": "near"})
    assert row_filters.duplicates == (ExactDuplicates(), NearDuplicates(threshold=0.7, name="near"))
    assert [each.label for each in row_filters.duplicates] == ["exact_duplicates", "near"]
    assert row_filters.reason(chat("a", "b")) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "length"}, "give 'min', 'max' or both"),
        ({"kind": "length", "min": 5, "max": 4}, "min (5) is greater than max (4)"),
        ({"kind": "pattern", "match": "("}, "no regular expression"),
        ({"kind": "pattern"}, "exactly one of 'match' and 'forbid'"),
        ({"kind": "pattern", "match": "a", "forbid": "b"}, "exactly one of 'match' and 'forbid'"),
        ({"kind": "field", "field": "a"}, "exactly one of 'allow' and 'forbid'"),
        ({"kind": "near_duplicates", "threshold": 2}, "less than or equal to 1"),
        ({"kind": "lenght", "min": 5}, "'length'"),
        ({"kind": "empty_reply", "min": 5}, "unknown setting"),
        ({"kind": "python", "function": "no path"}, "function"),
    ],
)
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ConfigError, match="filters") as caught:
        filters(settings)
    assert words in str(caught.value)


def test_users_functions_keep_drop_and_say_why():
    named = {
        name: filters({"kind": "python", "function": f"filter_examples:{name}"})
        for name in ("keep_all", "short_only", "drop_all")
    }
    assert named["keep_all"].reason(chat("a", "b")) is None
    assert named["short_only"].reason(chat("a", "b")) is None
    assert named["short_only"].reason(chat("a", "long reply")) == "python: too long for me"
    assert named["drop_all"].reason(chat("a", "b")) == "python: filter_examples:drop_all says no"
    assert pickle.loads(pickle.dumps(named["drop_all"])).reason(chat("a", "b"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "filter_examples:fails raised KeyError: 'quality' (line"),
        ("fails", "gets a Conversation (with .messages, .extra) and returns True"),
        ("forgets", "filter_examples:forgets returned None"),
    ],
)
def test_errors_in_a_users_function_name_function_and_row(name, words):
    with pytest.raises(DataError) as caught:
        filters({"kind": "python", "function": f"filter_examples:{name}"}).reason(
            chat("a", "b", source="my.jsonl", row=7)
        )
    assert words in str(caught.value)
    assert "my.jsonl, row 7" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:f", "PYTHONPATH"),
        ("filter_examples:missing", "has no 'missing'"),
        ("filter_examples:PROSE", "is no function, but str"),
        ("broken_module:f", "raised ZeroDivisionError"),
    ],
)
def test_a_function_that_can_not_be_found_is_told_before_the_first_row(path, words, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"filters\.1\.function: ") as caught:
        filters({"kind": "empty_reply"}, {"kind": "python", "function": path})
    assert words in str(caught.value)


def test_languages_are_kept_and_dropped():
    pytest.importorskip("py3langid")
    english_only = pickle.loads(pickle.dumps(filters({"kind": "language", "allow": ["en"]})))
    german = (
        "Der Fluss entspringt in den Hügeln und fließt vierzig Meilen weit durch Felder, bevor er das Meer erreicht."
    )
    assert english_only.reason(chat("What do you know of rivers?", PROSE)) is None
    assert english_only.reason(chat("Was weißt du über Flüsse?", german)) == "language: in language de"
    assert (
        english_only.reason(chat("你知道河流吗？请告诉我。", "河流从山上流下来，穿过田野，最后流入大海。"))
        == "language: in language zh"
    )
    assert english_only.reason(chat("Ja?", "Nein.")) is None, "too short to tell"
    assert english_only.reason(chat("Use it.", "Use it.\n```\n" + german + "\n```")) is None, "code isn't language"
    of_prompts = filters({"kind": "language", "allow": ["de"], "of": "prompts"})
    assert of_prompts.reason(chat(german, PROSE)) is None
    assert of_prompts.reason(chat(PROSE, german)) == "language: in language en"
    with pytest.raises(ConfigError, match="no such language: english"):
        filters({"kind": "language", "allow": ["english"]})


def test_without_the_library_the_language_filter_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages.identifier.cache_clear()
    with pytest.raises(UserError, match=r"chatwright\[data\]"):
        filters({"kind": "language", "allow": ["en"]})


def test_gophers_rules_by_hand():
    assert repetition(PROSE) is None
    same_line = "\n".join(
        ["one two three four five six seven"] * 4 + [f"line {i} is about number {i * 7}" for i in range(6)]
    )
    assert repetition(same_line) == "repeated lines hold more than 20% of the text"
    more_lines = "\n".join(["ok"] * 20 + [f"line {i} is about the number {i * 7} in this list" for i in range(10)])
    assert repetition(more_lines) == "more than 30% of the lines are repeated"
    words = " ".join(f"w{i} and the" for i in range(40))
    assert repetition(words) == "one 2-gram makes up more than 20% of the text"
    twice = " ".join([f"word{i}" for i in range(60)] + ["x"] + [f"word{i}" for i in range(30)])
    assert repetition(twice) == "repeated 5-grams make up more than 15% of the text"
    assert repetition(twice, limits=GOPHER_LIMITS._replace(duplicates=(1.0,) * 6)) is None
    assert symbol_share("a b!") == pytest.approx(1 / 3)
    assert symbol_share(" ") == 0
    assert symbol_share("मेरा बेटा पैदा हुआ।") < 0.1


def test_filters_on_real_rows():
    rows = load_conversations(
        shared("data/sft/alpaca_libre_tasks_v3.jsonl"), format="alpaca", on_bad_row="skip"
    ).conversations
    status = filters({"kind": "field", "field": "status", "allow": ["ok"]})
    kept = [row for row in rows if status.reason(row) is None]
    assert 0 < len(kept) < len(rows)
    assert {row.extra["status"] for row in kept} == {"ok"}
    quality = filters(
        {"kind": "empty_reply"}, {"kind": "repetition"}, {"kind": "truncated"}, {"kind": "repeats_prompt"}
    )
    assert sum(quality.reason(row) is not None for row in kept) < 0.05 * len(kept), "good rows stay"
    assert filter_examples.keep_all(rows[0])
