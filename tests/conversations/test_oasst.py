"""OpenAssistant trees: the best thread, all threads, and the flat table, on rows in the schema of the oasst1 card."""

from __future__ import annotations

import json

import pytest

from chatwright.conversations.converters import convert
from chatwright.conversations.sources import load_conversations
from chatwright.errors import DataError


def node(text: str, *replies: dict, rank: int | None = None, **fields: object) -> dict:
    role = "prompter" if text[0] in "pq" else "assistant"
    return {"message_id": text, "text": text, "role": role, "lang": "en", "rank": rank, "replies": [*replies], **fields}


TREE = {
    "message_tree_id": "p0",
    "tree_state": "ready_for_export",
    "prompt": node(
        "p0",
        node("a1", node("q1", node("b1")), rank=1),
        node("a0", node("q0"), node("q2", node("b2", rank=None), node("b3", rank=0), rank=5), rank=0),
        node("a9", rank=0, deleted=True),
    ),
}


def flat(tree: dict) -> list[dict]:
    """The tree as rows of the hub's table, as they stand there: no `replies`, a `parent_id` instead."""
    rows, waiting = [], [(tree["prompt"], None)]
    while waiting:
        message, parent = waiting.pop(0)
        row = {key: value for key, value in message.items() if key != "replies"}
        rows.append({**row, "parent_id": parent, "message_tree_id": tree["message_tree_id"]})
        waiting += [(reply, message["message_id"]) for reply in message["replies"]]
    return rows


def texts(loaded) -> list[list[str]]:
    return [[m.text for m in c.messages] for c in loaded.conversations]


def test_the_best_ranked_thread_up_to_the_last_reply():
    found = convert(TREE, "oasst", "hand", 4)
    assert [(m.role, m.text) for m in found.messages] == [
        ("user", "p0"),
        ("assistant", "a0"),
        ("user", "q2"),
        ("assistant", "b3"),
    ]
    unranked = {"prompt": node("p0", node("a1", node("q1")), node("a2"))}
    assert [m.text for m in convert(unranked, "oasst", "hand", 4).messages] == ["p0", "a1"], "the first; its end is cut"
    assert found.extra == {"lang": "en", "message_tree_id": "p0", "tree_state": "ready_for_export"}


ALL_THREADS = [["p0", "a0", "q2", "b3"], ["p0", "a0", "q2", "b2"], ["p0", "a0"], ["p0", "a1", "q1", "b1"]]


def test_all_threads_best_first_and_none_twice():
    loaded = load_conversations([TREE, TREE], format="oasst_threads")
    assert texts(loaded) == ALL_THREADS * 2
    assert [c.row for c in loaded.conversations] == list(range(8)), "a row is a thread"


def test_the_flat_table_is_grouped_into_trees_wherever_its_rows_stand(tmp_path):
    second = {"message_tree_id": "p5", "prompt": node("p5", node("a5"))}
    rows = flat(TREE) + flat(second)
    path = tmp_path / "messages.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in reversed(rows)))
    loaded = load_conversations(path, format="oasst_flat")
    assert texts(loaded) == [["p5", "a5"], ["p0", "a0", "q2", "b3"]]
    assert [c.row for c in loaded.conversations] == [0, 1]
    assert load_conversations(path, format="oasst_threads").num_rows == 5
    assert texts(load_conversations(rows, format="oasst_flat", start=1, stop=2)) == [["p5", "a5"]], "rows are trees"


def test_trees_are_detected():
    assert load_conversations([TREE]).format == "oasst"


def test_a_message_without_its_parent_is_counted():
    rows = [row for row in flat(TREE) if row["message_id"] != "a1"]
    loaded = load_conversations(rows, format="oasst_flat", on_bad_row="skip")
    assert texts(loaded) == [["p0", "a0", "q2", "b3"]]
    assert loaded.skip_counts == {"parent_id": 1}
    with pytest.raises(DataError, match="isn't in the source: 'a1'"):
        load_conversations(rows, format="oasst_flat")


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ({"prompt": node("p0")}, "prompt", "no assistant answers"),
        ({"prompt": "text"}, "prompt", "str 'text'"),
        ({"prompt": node("p0", {"text": 3, "role": "assistant"})}, "prompt.replies.1.text", "int 3"),
        ({"prompt": node("p0", node("a0"), role="robot")}, "prompt.role", "'robot'"),
        ({"prompt": {"text": "p", "role": "prompter", "replies": "x"}}, "prompt.replies", "'x'"),
        (flat(TREE)[0], "message_id", "one message of a tree"),
    ],
)
def test_a_bad_tree_names_its_field_and_value(row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, "oasst", "hand", 5)
    assert (caught.value.row, caught.value.field) == (5, field)
    assert says in caught.value.message


def test_messages_in_a_circle_are_counted():
    """They hang under no first message: each is a bad row, and so is one that replies to itself."""

    def message(number: int, parent: int | None, role: str) -> dict[str, object]:
        return {"message_id": str(number), "parent_id": parent and str(parent), "role": role, "text": f"text {number}"}

    good = [message(1, None, "prompter"), message(2, 1, "assistant")]
    circle = [
        message(3, 4, "prompter"),
        message(4, 3, "assistant"),
        message(5, 4, "prompter"),
        message(6, 6, "assistant"),
    ]
    loaded = load_conversations([*circle, *good], format="oasst_flat", on_bad_row="skip")
    assert [[m.text for m in c.messages] for c in loaded.conversations] == [["text 1", "text 2"]]
    assert loaded.num_rows == 5 and loaded.skip_counts == {"parent_id": 4}
    with pytest.raises(DataError, match=r"row 0, field 'parent_id': .*circle"):
        load_conversations([*good, *circle][2:], format="oasst_flat")
