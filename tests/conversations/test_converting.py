"""`convert`: there and back gives the same conversations, and what a target can't hold is refused or counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conversation_strategies import conversations
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.conversations.converting import convert_files, losses
from chatwright.conversations.differences import differences, normal_form
from chatwright.conversations.preference_writer import preference_differences
from chatwright.conversations.preferences import load_preferences
from chatwright.conversations.row_files import new_file
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.writers import WRITERS
from chatwright.errors import DataError, UserError
from shared_files import shared

KINDS = ("jsonl", "parquet")


PREFERENCES = ("dpo_en_demo.json", "dpo_zh_demo.json", "hh_rlhf_harmless_base_test.jsonl.gz", "kto_en_demo.json")


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_real_preferences_come_back_from_both_kinds(tmp_path, name, kind):
    path, out = shared(f"data/preference/{name}"), tmp_path / f"out.{kind}"
    before = load_preferences(path, on_bad_row="skip")
    done = convert_files([path], out, to="preference", on_bad_row="skip")
    assert (done.read, done.refused, done.changed) == (before.num_rows, 0, 0)
    assert (done.dropped, done.skipped) == (len(before.dropped), len(before.skipped))
    after = load_preferences(out)
    items, again = [*before.pairs, *before.labelled], [*after.pairs, *after.labelled]
    assert len(items) == len(again) == done.written
    assert {lost for pair in zip(items, again, strict=True) for lost in preference_differences(*pair)} == set()


def test_a_pair_keeps_its_margin_tools_and_extras(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5, "tools": TOOLS, "id": {"n": None}}
    source = write_rows(tmp_path / "a.jsonl", row, {**row, "chosen": "c"})
    for kind in KINDS:
        done = convert_files([source], tmp_path / f"out.{kind}", to="preference")
        assert (done.written, done.dropped) == (1, 1)
        (pair,) = load_preferences(tmp_path / f"out.{kind}").pairs
        assert (pair.margin, pair.extra, pair.tools[0]["function"]["name"]) == (0.5, {"id": {"n": None}}, "f")
        assert (pair.prompt[0].text, pair.chosen[0].text, pair.rejected[0].text) == ("a", "b", "c")


def test_conversations_are_no_preferences(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", PLAIN)
    with pytest.raises(DataError):
        convert_files([source], tmp_path / "out.jsonl", to="preference")
    assert sorted(tmp_path.iterdir()) == [source]


def told(conversation: Conversation) -> tuple[object, ...]:
    """All that a conversation says; not where it came from."""
    plain = normal_form(conversation)
    return plain.messages, plain.tools, dict(plain.variables), dict(plain.extra)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(st.lists(conversations(), min_size=1, max_size=4))
def test_the_messages_format_holds_every_conversation(tmp_path_factory, kind, chats):
    path = tmp_path_factory.getbasetemp() / f"there.{kind}"
    with new_file(path, kind, "messages", force=True) as file:
        for chat in chats:
            row = file.shape(WRITERS["messages"](chat))
            assert losses(chat, row, "messages") == ()
            file.add(row)
    back = load_conversations(path, format="messages").conversations
    assert [told(chat) for chat in back] == [told(chat) for chat in chats]


@pytest.mark.parametrize("target", ["sharegpt", "alpaca"])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(chats=st.lists(conversations(), min_size=1, max_size=3))
def test_what_another_format_holds_without_loss_comes_back_the_same(tmp_path_factory, target, kind, chats):
    path = tmp_path_factory.getbasetemp() / f"back.{kind}"
    kept = []
    with new_file(path, kind, target, force=True) as file:
        for chat in chats:
            row = file.shape(WRITERS[target](chat))
            try:
                lost = losses(chat, row, target)
            except DataError:
                continue
            file.add(row)
            kept.append((chat, lost))
    back = load_conversations(path, format=target).conversations if kept else []
    for (chat, lost), again in zip(kept, back, strict=True):
        assert (told(again) == told(chat)) == (lost == ())
        assert differences(chat, again) == lost


TOOLS = [{"name": "f", "parameters": {"a": None}}]
PLAIN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
CALLING = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}], "weight": 0.5},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "b", "train": False},
    ]
}


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_that_the_target_cannot_hold_are_refused_with_counts(tmp_path):
    source, out = write_rows(tmp_path / "a.jsonl", PLAIN, CALLING, CALLING), tmp_path / "out.jsonl"
    with pytest.raises(UserError) as caught:
        convert_files([source], out, to="alpaca")
    assert "2 of 3 rows hold what alpaca can't" in caught.value.message
    for reason in ("tool calls: 2 rows", "tool results: 2", "train flags: 2", "weights: 2", f"first {source}, row 1"):
        assert reason in caught.value.message
    assert sorted(tmp_path.iterdir()) == [source]


def test_lossy_keeps_what_can_be_kept_and_counts_it(tmp_path):
    source, out = write_rows(tmp_path / "a.jsonl", PLAIN, CALLING), tmp_path / "out.jsonl"
    done = convert_files([source], out, to="alpaca", lossy=True)
    assert (done.read, done.written, done.changed, done.refused, done.skipped) == (2, 2, 1, 0, 0)
    assert done.reasons["changed", "tool calls"] == 1
    assert [json.loads(line)["output"] for line in out.read_text().splitlines()] == ["b", "b"]


def test_skip_leaves_rows_out_and_counts_them(tmp_path):
    source, out = write_rows(tmp_path / "a.jsonl", PLAIN, CALLING, {"messages": 3}), tmp_path / "out.parquet"
    done = convert_files([source], out, to="alpaca", on_bad_row="skip", format="messages")
    assert (done.read, done.written, done.skipped, done.refused) == (3, 1, 1, 1)
    assert len(load_conversations(out).conversations) == 1


def test_a_conversation_without_reply_is_no_alpaca_row_even_with_loss(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", {"messages": [{"role": "system", "content": "s"}]})
    with pytest.raises(UserError, match="can't be written"):
        convert_files([source], tmp_path / "out.jsonl", to="alpaca", lossy=True, format="messages")
    assert sorted(tmp_path.iterdir()) == [source]


def test_results_inside_a_turn_are_no_sharegpt(tmp_path):
    turn = Message("assistant", (Part("tool_call", "1+1", "python"), Part("tool_result", "2", "python")))
    chat = Conversation((Message.of("user", "?"), turn))
    assert losses(chat, WRITERS["messages"](chat), "messages") == ()
    assert losses(chat, WRITERS["sharegpt"](chat), "sharegpt") == ("the order of parts inside turns",)


def test_schemas_of_two_tools_stay_apart_in_parquet(tmp_path):
    tools = [[{"name": "f", "parameters": {"a": {"enum": ["x", None]}}}], [{"name": "g", "parameters": {"b": 1}}]]
    source = write_rows(tmp_path / "a.jsonl", *({**PLAIN, "tools": each, "note": {"n": None}} for each in tools))
    convert_files([source], tmp_path / "b.parquet", to="messages")
    convert_files([tmp_path / "b.parquet"], tmp_path / "c.jsonl", to="messages")
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["tools"][0]["function"] for row in rows] == [each[0] for each in tools]
    assert [row["note"] for row in rows] == [{"n": None}] * 2


def test_several_sources_of_several_formats_become_one_file(tmp_path):
    chats = write_rows(tmp_path / "a.jsonl", PLAIN)
    pairs = write_rows(tmp_path / "b.jsonl", {"prompt": "a", "completion": "b"})
    done = convert_files([chats, pairs], tmp_path / "out.jsonl", to="sharegpt")
    assert done.written == 2
    assert list(done.formats.values()) == ["messages", "prompt_completion"]


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("a.jsonl", {"format": "trl"}, "no format 'trl'"),
        ("a.jsonl", {"on_bad_row": "ignore"}, "no on_bad_row 'ignore'"),
        ("taken.jsonl", {}, "exists already"),
        ("folder.jsonl", {"force": True}, "not a file"),
        ("/dev/null", {"force": True, "file_format": "jsonl"}, "no file format"),
        ("a.txt", {}, "no file format"),
        ("a.jsonl", {"file_format": "parquet"}, "says jsonl, --format says parquet"),
        ("a.jsonl", {"file_format": "csv"}, "unknown file format"),
        ("no/such/a.jsonl", {}, "can't be written"),
        ("a.jsonl", {"to": "alpacca"}, "no target"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path, out, options, says):
    source = write_rows(tmp_path / "rows.jsonl", PLAIN)
    (tmp_path / "taken.jsonl").write_text("mine")
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert_files([source], tmp_path / out, **{"to": "messages", **options})
    assert says in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken.jsonl").read_text() == "mine"


def test_a_source_may_be_replaced_by_its_conversion(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", PLAIN)
    convert_files([source], source, to="sharegpt", force=True)
    assert load_conversations(source).format == "sharegpt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_no_half_file(tmp_path, kind):
    long = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "0123456789" * 3000}]}
    rows = [json.loads(json.dumps(long).replace("x", str(number))) for number in range(300)]
    source = write_rows(tmp_path / "rows.jsonl", *rows)
    code = f"""
import resource, signal
from chatwright.conversations.converting import convert_files
from chatwright.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    convert_files([{str(source)!r}], {str(tmp_path / "out")!r} + ".{kind}", to="messages")
except UserError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "can't be written" in run.stdout and "nothing was kept" in run.stdout, run.stdout + run.stderr
    assert sorted(tmp_path.iterdir()) == [source]


REAL = [
    *("alpaca_libre_tasks_v1.jsonl", "alpaca_libre_tasks_v2.jsonl", "alpaca_libre_tasks_v3.jsonl"),
    *("fastchat_dummy_conversation.json", "glaive_toolcall_en_demo.json", "glaive_toolcall_zh_demo.json"),
    *("identity.json", "reason_tool_use_demo_50.jsonl", "self_instruct_seed_tasks.jsonl"),
    "self_instruct_user_oriented.jsonl",
]


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_comes_back_from_both_kinds(tmp_path, name):
    path = shared(f"data/sft/{name}")
    try:
        loaded = load_conversations(path, on_bad_row="skip")
    except DataError:
        pytest.skip("no conversations in a format that is known")
    for kind in KINDS:
        out = tmp_path / f"out.{kind}"
        done = convert_files([path], out, to="messages", on_bad_row="skip")
        assert (done.written, done.refused, done.changed) == (len(loaded.conversations), 0, 0)
        back = load_conversations(out, format="messages").conversations
        assert list(map(told, back)) == list(map(told, loaded.conversations))


@pytest.mark.parametrize("name", REAL)
def test_real_files_through_sharegpt_and_back(tmp_path, name):
    path = shared(f"data/sft/{name}")
    try:
        loaded = load_conversations(path, on_bad_row="skip")
    except DataError:
        pytest.skip("no conversations in a format that is known")
    done = convert_files([path], tmp_path / "a.jsonl", to="sharegpt", on_bad_row="skip")
    assert done.refused == 0, done.lines("refused")
    convert_files([tmp_path / "a.jsonl"], tmp_path / "b.parquet", to="messages")
    back = load_conversations(tmp_path / "b.parquet", format="messages").conversations
    assert list(map(told, back)) == list(map(told, loaded.conversations))


@pytest.mark.parametrize(
    ("rows", "says", "unsaid"),
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "--to preference", "preference: chosen"),
        ([{"messages": [{"role": "user", "content": "a"}]}, "{bad"], "give --on-bad-row skip", "on_bad_row"),
        ([{"text": "a"}], "name the format by --from (", "format: text"),
    ],
)
def test_errors_name_the_options_of_the_command(tmp_path, rows, says, unsaid):
    source = tmp_path / "own.jsonl"
    source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        convert_files([source], tmp_path / "out.jsonl", to="messages")
    assert says in caught.value.full_text()
    assert unsaid not in caught.value.full_text()
