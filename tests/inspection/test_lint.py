"""Lint: every rule fires where it should and stays silent where it shouldn't; reports; real data sets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lint_templates import LLAMA2_JINJA, OTHER_JINJA, chatml, chatml_over, llama2
from rich.console import Console

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.inspection.lint import LintReport, lint
from chatwright.inspection.lint_rendered import text_headers
from chatwright.inspection.lint_rules import RULES
from chatwright.inspection.lint_tools import schema_problem
from chatwright.inspection.lint_types import LintInput, RenderedRow, render_sample
from chatwright.inspection.row_keys import RowKeys
from chatwright.inspection.sampling import EvenRows
from chatwright.templates.base import Template, TrainOn
from chatwright.templates.native_jinja import CHATML_JINJA
from shared_files import shared

LONG = (
    "The river rises in the hills and runs for forty miles through fields before it meets the sea. Farmers have used "
    "its water since the first mills were built, and three bridges cross it today."
)
SYSTEM = Message.of("system", "Never tell anybody that the secret word of the day is rhubarb. Be kind.")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = Part("tool_call", '{"city":"Rome","days":2}', "weather", "c1")
RESULT = Message("tool", (Part("tool_result", "sunny", "weather", "c1"),))


def chat(*texts: str, **fields: Any) -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message.of(roles[i % 2], text) for i, text in enumerate(texts)), **fields)  # type: ignore[arg-type]


def with_system(conversation: Conversation) -> Conversation:
    return replace(conversation, messages=(SYSTEM, *conversation.messages))


def calling(*messages: Message | str, call: Part = CALL) -> Conversation:
    """A question and a call, followed by messages (texts are replies)."""
    rest = tuple(Message.of("assistant", each) if isinstance(each, str) else each for each in messages)
    return Conversation((Message.of("user", "Weather?"), Message("assistant", (call,)), *rest), (WEATHER,))


def calling_with(arguments: str, tool: str = "weather") -> Conversation:
    return calling(RESULT, "Sunny.", call=replace(CALL, text=arguments, tool=tool))


FINE = chat("How long is it?", LONG)
USER, REPLY = FINE.messages

# rule → (rows that it names, rows that it leaves alone)
ROWS: dict[str, tuple[list[Conversation], list[Conversation]]] = {
    "no_reply": ([chat("a"), Conversation((USER, replace(REPLY, train=False)))], [FINE]),
    "labelled_bad": (
        [replace(FINE, extra={"label": False})],
        [replace(FINE, extra={"label": True}), replace(FINE, extra={"label": 0})],
    ),
    "empty_reply": ([chat("a", " \n"), chat("a", "b", "c", "")], [FINE, calling()]),
    "role_order": (
        [
            chat("a", "b", "c"),
            Conversation((REPLY, USER, REPLY)),
            Conversation((USER, USER, REPLY)),
            Conversation((USER, REPLY, REPLY)),
            Conversation((USER, SYSTEM, REPLY)),
            Conversation((USER, RESULT, REPLY)),
            calling(RESULT, replace(USER), "x"),
        ],
        [FINE, with_system(FINE), calling(RESULT, "Sunny."), calling(RESULT, RESULT, "Sunny."), calling()],
    ),
    "placeholders": ([chat("Who?", "I am {{name}}.")], [FINE, chat("a", "{name} {{ 1 + 1 }}")]),
    "call_without_output": (
        [
            calling("It is sunny."),
            calling(USER, "Sunny."),
            calling(Message("assistant", (replace(CALL, call_id="c2"),)), RESULT, "Both are sunny."),
        ],
        [
            calling(),
            calling(RESULT, "Sunny."),
            calling(Message("assistant", (CALL,)), Message("tool", (Part("tool_result", "[sunny, sunny]"),)), "Both."),
            FINE,
        ],
    ),
    "unknown_tool": (
        [calling_with("{}", "wether")],
        [calling(RESULT, "Sunny."), replace(calling_with("1", "x"), tools=())],
    ),
    "call_arguments": (
        [
            calling_with(a)
            for a in ("Rome", '{"days":2}', '{"city":3}', '{"city":"Rome","day":2}', "[]", '{"city":"R","days":1.5}')
        ],
        [calling_with('{"city":"Rome"}'), calling_with('{"city":"Rome","days":2.0}'), calling_with("12/60", "other")],
    ),
    "control_text": ([chat("Hi<|im_end|>", LONG), chat("a", "[INST] b")], [FINE, chat("a < b", "a |> b")]),
    "repeats_prompt": (
        [chat("How long is the river?", "How long is the river? Forty miles.")],
        [FINE, chat("Hi", "Hi")],
    ),
    "leaked_system": (
        [
            with_system(
                chat(
                    "a",
                    "I must never tell anybody that the secret word of the day is rhubarb.".replace("I must n", "N"),
                )
            )
        ],
        [with_system(FINE), with_system(chat(SYSTEM.text, SYSTEM.text)), chat("a", SYSTEM.text)],
    ),
    "mojibake": (
        [chat("a", "schÃ¶n"), chat("Itâ€™s", "b"), chat("a", "\ufffd")],
        [chat("schön", "It’s NÃO — 日本語 à é")],
    ),
    "truncated": (
        [chat("a", LONG + " Most visitors come in the"), chat("a", LONG * 2 + "\n```\nx = ")],
        [FINE, chat("a", "Well. It")],
    ),
}


def fired(rule: str, rows: list[Conversation], template: Template | None = None) -> list[int]:
    """The numbers of the rows that a rule names."""
    numbered = [replace(row, row=number) for number, row in enumerate(rows)]
    report = lint(numbered, template, rules={rule: RULES[rule]}, max_places=1000)
    return sorted({place.row for finding in report.findings for place in finding.places})


@pytest.mark.parametrize("rule", ROWS)
def test_rules_of_single_rows(rule):
    bad, good = ROWS[rule]
    assert fired(rule, bad + good) == list(range(len(bad)))


def test_exact_and_near_duplicates():
    other = "Most visitors come in June, when the orchards on both banks of the river bloom, and they stay for a week."
    rows = [
        FINE,
        chat("How long is it?", LONG),
        chat("When do they come?", other),
        chat("How long is it?", LONG + " Yes."),
        chat("a", "b"),
        chat("a", "c"),
    ]
    assert fired("exact_duplicates", rows) == [1]
    assert fired("near_duplicates", rows) == [3]
    assert fired("exact_duplicates", []) == fired("near_duplicates", []) == []


def test_exact_duplicates_are_found_among_all_rows():
    """Of 600 rows each stands there twice, one behind the other, and lint holds every second one of them at most."""
    rows = [chat(f"Question {number // 2}?", LONG, source="s", row=number) for number in range(600)]
    even = EvenRows(20)
    for row in rows:
        even.offer(row)
    for report in (lint(rows, max_rows=20), lint(even.rows, keys=RowKeys(rows))):
        found = {finding.rule: finding for finding in report.findings}["exact_duplicates"]
        assert found.count == 300 and [place.row for place in found.places] == list(range(1, 41, 2))
        assert found.places[0] == ("s", 1, None, "the same as row 0") and "Question 0?" in found.excerpt
        assert report.num_rows == 600 and "of 600 rows looked at (all for exact duplicates)" in report.summary()
    apart = lint(even.rows, keys=RowKeys(rows[::2]))
    assert "exact_duplicates" not in {finding.rule for finding in apart.findings}


def test_mixed_languages():
    chinese = "河流从山上流下来，穿过田野，最后流入大海。"
    rows = [chat("How long is the river?", f"{LONG} {i}") for i in range(99)]
    assert fired("language_mix", [*rows, chat("这条河有多长？请告诉我。", chinese)]) == [99], "a stray"
    both = [chat("How long is the river?", LONG), chat("这条河有多长？请告诉我吧朋友。", chinese)] * 10
    assert fired("language_mix", both) == [], "two languages, each answered in its own"
    assert fired("language_mix", [*both, chat("How long is the river?", chinese)]) == [20]
    assert (
        fired(
            "language_mix",
            [*both, chat("请写一个程序，让它打印数字。", f"好的，没有问题，请看下面：\n```\n{LONG}\n```")],
        )
        == []
    )


def test_length_outliers():
    rows = [chat("How long?", LONG + "x" * i) for i in range(60)]
    assert fired("length_outliers", rows) == []
    assert fired("length_outliers", [*rows, chat("a", LONG * 40), chat("a", "b")]) == [60, 61]
    assert fired("length_outliers", [FINE, chat("a", LONG * 40)]) == [], "too few rows to tell"


def test_rules_that_need_a_rendering_are_silent_on_good_rows():
    rows = [FINE, chat("a", "b", "c", "d"), with_system(chat("Who are you?", "A bridge over the river."))]
    for template in (chatml(), llama2()):
        report = lint(rows, template)
        assert [finding.rule for finding in report.findings] == [], report
        assert report.rendered == 3


def damaged(rule: str, change: Callable[[RenderedRow], RenderedRow], template: Template) -> int:
    """How many rows a rule names after the rendering was changed; none before."""
    rendered = render_sample([FINE], template, None)
    assert list(RULES[rule].check(LintInput([FINE], template, rendered))) == []
    return len(list(RULES[rule].check(LintInput([FINE], template, [change(row) for row in rendered]))))


def test_a_missing_stop_token_is_seen():
    def without_end(row: RenderedRow) -> RenderedRow:
        (example,) = row.examples
        end = int(np.flatnonzero(example.weights)[-1])
        return row._replace(examples=(replace(example, ids=example.ids[:end], weights=example.weights[:end]),))

    assert damaged("missing_stop", without_end, chatml()) == 1


def test_a_second_begin_of_text_is_seen():
    template = llama2()

    def doubled(row: RenderedRow) -> RenderedRow:
        (example,) = row.examples
        ids = np.concatenate([[template.tokenizer.bos_id], example.ids])
        return row._replace(examples=(replace(example, ids=ids, weights=np.concatenate([[0], example.weights])),))

    assert damaged("begin_of_text", doubled, template) == 1


def test_rows_that_can_not_be_rendered_or_train_nothing():
    untrained = Conversation((USER, replace(REPLY, train=False)))
    tools = calling(RESULT, "Sunny.")
    assert fired("unrenderable", [FINE, tools], llama2()) == [1]
    assert fired("nothing_supervised", [FINE, untrained, chat("a")], chatml()) == [1, 2]
    assert fired("nothing_supervised", [untrained]) == [], "needs a template"
    assert fired("no_reply", [untrained], chatml()) == [], "said by nothing_supervised"


def test_long_rows_that_train_hardly_anything():
    rows = [chat(LONG * 9, "b"), chat(LONG, "b"), FINE]
    assert fired("little_supervised", rows, chatml()) == [0]
    report = lint(rows, chatml(), train_on=TrainOn.EVERYTHING, rules={"little_supervised": RULES["little_supervised"]})
    assert not report.findings


def test_forged_headers_count_only_where_roles_are_text():
    assert text_headers(llama2()) == ("[/INST]", "[INST]")
    rows = [FINE, chat("a [/INST] b", LONG)]
    assert fired("forged_headers", rows, llama2()) == [1]
    assert fired("forged_headers", rows, chatml()) == []


def test_control_strings_of_the_tokenizer_count():
    rows = [chat("<s>struck</s>", "b"), FINE]
    assert fired("control_text", rows) == []
    assert fired("control_text", rows, chatml()) == [0]


def test_another_template_than_the_models_own():
    assert fired("other_template", [FINE, FINE], chatml_over(OTHER_JINJA)) == [0]
    assert fired("other_template", [FINE], chatml_over(LLAMA2_JINJA)) == [0]
    assert fired("other_template", [FINE], chatml_over(CHATML_JINJA)) == [], "the same tokens"
    assert fired("other_template", [FINE], chatml()) == [], "a base model has none"
    assert fired("other_template", [FINE], llama2()) == [], "its own"


@pytest.mark.parametrize(
    ("value", "schema", "words"),
    [
        (
            {"a": [1, "x"]},
            {"properties": {"a": {"type": "array", "items": {"type": "integer"}}}},
            "a[1] must be integer",
        ),
        ({"a": {"b": 1}}, {"properties": {"a": {"type": "object", "required": ["c"]}}}, "a lacks 'c'"),
        ("x", {"enum": ["y", "z"]}, "one of"),
        (True, {"type": "integer"}, "must be integer"),
        (None, {"type": ["string", "null"]}, None),
        ({"b": 1}, {"properties": {"a": {}}, "additionalProperties": True}, None),
        ({"b": 1}, {"properties": {}}, None),
        ({"a": 1}, {"properties": {"a": {"$ref": "#/x"}}}, None),
        (3, {"type": "dict"}, None),
    ],
)
def test_schemas(value, schema, words):
    found = schema_problem(value, schema)
    assert found is None if words is None else found is not None and words in found


def test_every_rule_has_a_case_here():
    others = {
        *("exact_duplicates", "near_duplicates", "language_mix", "length_outliers", "missing_stop", "begin_of_text"),
        *("unrenderable", "nothing_supervised", "little_supervised", "forged_headers", "other_template"),
    }
    assert set(RULES) == set(ROWS) | others


def report_of(rows: list[Conversation], **options: Any) -> LintReport:
    return lint([replace(row, row=number, source="s.jsonl") for number, row in enumerate(rows)], **options)


def test_the_report_counts_rows_keeps_places_and_prints():
    rows = [chat("a", "", "b", "")] + [chat(f"a{i}", "") for i in range(30)] + [FINE]
    report = report_of(rows, max_places=5)
    (finding,) = [each for each in report.findings if each.rule == "empty_reply"]
    assert (finding.count, finding.severity, len(finding.places)) == (31, "error", 5)
    assert finding.places[0]._asdict() == {"source": "s.jsonl", "row": 0, "message": 1, "what": "an empty reply"}
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["fix"] == "filters: [{kind: empty_reply}]"
    assert report.summary() == "32 rows looked at, 0 of them rendered: 1 error"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.renderable("rows"))
    printed = console.export_text()
    assert "empty_reply" in printed and "0, 1" in printed


def test_the_worst_comes_first_and_samples_are_spread():
    rows = [chat(f"How long is number {i}?", f"{LONG} {i}") for i in range(100)]
    rows[50] = chat("a", "")
    rows[10] = chat("Who are you?", "I am {{name}}.")
    report = report_of(rows, template=chatml(), max_rendered=10)
    assert [finding.rule for finding in report.findings][:2] == ["empty_reply", "placeholders"]
    assert (report.num_rows, report.checked, report.rendered) == (100, 100, 10)
    few = report_of(rows, max_rows=10)
    assert few.checked == 10
    assert "10 of 100 rows looked at" in few.summary()
    assert report_of([]).summary() == "0 rows looked at, 0 of them rendered: nothing found"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("data/sft/identity.json", {"placeholders": (85, 85)}),
        ("data/sft/alpaca_libre_tasks_v1.jsonl", {"empty_reply": (200, 260), "truncated": (0, 0)}),
        (
            "data/sft/glaive_toolcall_en_demo.json",
            {"call_arguments": (1, 3), "exact_duplicates": (30, 40), "truncated": (1, 3)},
        ),
        ("data/sft/glaive_toolcall_zh_demo.json", {"call_arguments": (4, 10), "unknown_tool": (0, 0)}),
        (
            "data/sft/fastchat_dummy_conversation.json",
            {"near_duplicates": (60, 200), "mojibake": (0, 0), "role_order": (0, 0)},
        ),
        ("data/sft/reason_tool_use_demo_50.jsonl", {"call_without_output": (0, 0), "control_text": (0, 0)}),
    ],
)
def test_what_it_finds_in_real_sets(file, expected):
    report = lint(load_conversations(shared(file)).conversations)
    found = {finding.rule: finding.count for finding in report.findings}
    for rule, (least, most) in expected.items():
        assert least <= found.get(rule, 0) <= most, (rule, found)


def test_labels_and_mojibake_in_real_rows():
    rows = load_conversations(shared("data/preference/kto_en_demo.json"), format="messages").conversations
    found = {finding.rule: finding.count for finding in lint(rows).findings}
    assert found["labelled_bad"] == 150
    assert found["mojibake"] == 2
