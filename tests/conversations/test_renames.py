"""Fields and roles by other names: renamed before conversion, unread where told so."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.renames import ROWS_TO_FIND_NAMES, Renames
from chatwright.conversations.sources import load_conversations
from chatwright.errors import ConfigError, DataError
from chatwright.preparation.prepare import plan_entry
from chatwright.settings import build
from chatwright.templates.base import TrainOn

TALK = [{"speaker": "prompter", "text": "hi"}, {"speaker": "bot", "text": "yo"}]


def entry(**given: object) -> DataSettings:
    return build(DataSettings, {"path": "a.jsonl", **given}, "recipe")


def texts(rows: list[object], settings: DataSettings) -> list[list[tuple[str, str]]]:
    loaded = load_conversations(rows, format=settings.format, renames=settings.renames)
    return [[(m.role, m.text) for m in c.messages] for c in loaded.conversations]


def test_columns_are_renamed_and_null_ones_left_unread():
    rows = [{"question": "q", "answer": "a", "input": "never", "output": "the other output"}]
    settings = entry(format="alpaca", columns={"instruction": "question", "output": "answer", "input": None})
    assert texts(rows, settings) == [[("user", "q"), ("assistant", "a")]]


def test_names_can_be_swapped():
    renames = Renames({"prompt": "completion", "completion": "prompt"})
    assert renames.apply({"prompt": 1, "completion": 2, "id": 3}) == {"prompt": 2, "completion": 1, "id": 3}


def test_messages_and_roles_are_renamed():
    names = {
        "message_columns": {"role": "speaker", "content": "text"},
        "roles": {"user": "prompter", "assistant": ["bot"]},
    }
    wanted = [[("user", "hi"), ("assistant", "yo")]]
    assert texts([{"thread": TALK}], entry(columns={"messages": "thread"}, **names)) == wanted
    assert texts([TALK], entry(format="nanochat", **names)) == wanted, "a row that is its list of messages"
    single = Renames(message_columns={"role": "speaker"}, roles={"assistant": ("bot",)})
    assert single.apply({"chosen": TALK[1]}) == {"chosen": {"role": "assistant", "text": "yo"}}


def test_other_rows_are_left_as_they_are():
    renames = Renames({"a": "b"}, {"role": "x"}, {"user": ("y",)})
    for row in ("text", 3, None, ["a", "b"], {"c": [1]}, {"messages": "no list"}):
        assert renames.apply(row) == row
    assert pickle.loads(pickle.dumps(renames)) == renames


names = st.sampled_from("abcd")


@given(st.dictionaries(names, st.integers()), st.dictionaries(names, st.none() | names))
def test_every_value_that_is_asked_for_is_there_and_no_other_field_is_invented(row, columns):
    before, renamed = json.dumps(row), Renames(columns).apply(row)
    assert json.dumps(row) == before, "the row itself isn't changed"
    for ours, theirs in columns.items():
        assert renamed.get(ours) == (row.get(theirs) if theirs is not None else None)
    rest = row.keys() - columns.keys() - set(columns.values())
    assert {name: renamed[name] for name in rest} == {name: row[name] for name in rest}
    assert renamed.keys() <= rest | columns.keys()


def test_no_renaming_is_no_work():
    assert entry().renames is None
    assert entry(hub_mode="cached").renames is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"roles": {"usr": ["a"]}}, "roles"),
        ({"columns": ["a"]}, "columns"),
        ({"hub_mode": "streaming"}, "belongs to a hub data set"),
        ({"path": "hub:a/b/train", "hub_mode": "live"}, "hub_mode"),
        ({"path": None, "task": "spelling", "columns": {"a": "b"}}, "belong to a 'path'"),
    ],
)
def test_wrong_settings_are_named(data, says):
    with pytest.raises(ConfigError, match=says):
        entry(**data)
    assert entry(path="hub:a/b/train", hub_mode="streaming").hub_mode == "streaming"


ASKED = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("rows", "given", "says"),
    [
        (
            [ASKED],
            {"columns": {"instruction": "Frage"}},
            "columns: there is no field 'Frage'; the fields are prompt, comp",
        ),
        ([ASKED], {"columns": {"instruction": "promt"}}, "did you mean 'prompt'"),
        ([{"instruction": "a"}], {"columns": {"Frage": "x"}}, "there is no field 'x'; the fields are instruction"),
        ([{"instruction": "a"}], {"columns": {"q": "instruction", "a": "b"}}, "there is no field 'b'"),
        ([{"answer": "a"}], {"columns": {"answer": "output"}}, r"data's second: columns: \{output: answer\}"),
        ([["a", "b"]], {"columns": {"a": "b"}}, "the rows have no named fields"),
        (
            [{"messages": TALK}],
            {"message_columns": {"role": "who"}},
            "message_columns: .* 'who'; the fields are speaker, t",
        ),
        ([ASKED], {"message_columns": {"role": "speaker"}}, "no list of messages was found"),
    ],
)
@pytest.mark.parametrize("format", ["auto", "alpaca"])
def test_a_name_that_no_row_has_is_told(tmp_path, rows, given, says, format):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = entry(path=str(path), format=format, **given)
    with pytest.raises(DataError, match=says):
        load_conversations(rows, format=format, renames=settings.renames)
    with pytest.raises(DataError, match=says):
        plan_entry(settings, "own", 0, TrainOn.ASSISTANT, 10, 0)


def test_a_name_that_only_later_rows_have_is_allowed():
    columns = Renames({"instruction": "prompt", "output": "completion", "input": "rare"})
    rows = [ASKED] * 100 + [{**ASKED, "rare": "c"}]
    assert len(load_conversations(rows, format="alpaca", renames=columns).conversations) == 101
    with pytest.raises(DataError, match="'rare'"):
        load_conversations([ASKED] * ROWS_TO_FIND_NAMES + rows, format="alpaca", renames=columns)
    unread = Renames({"instruction": "prompt", "output": "completion", "input": None})
    assert len(load_conversations([ASKED], format="alpaca", renames=unread).conversations) == 1
