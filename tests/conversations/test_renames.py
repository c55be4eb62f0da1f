"""Fields and roles by other names: renamed before conversion, unread where told so."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.renames import Renames
from chatwright.conversations.sources import load_conversations
from chatwright.errors import ConfigError
from chatwright.settings import build

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
