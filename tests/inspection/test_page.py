"""The page: whole, valid, quiet on the network, safe against every text, and true to the ledger."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from page_records import RUN, SOURCE, page_of, shown, with_run

from chatwright.conversations.schema import Conversation, Message
from chatwright.inspection.contamination import ContaminationIndex, ContaminationSettings
from chatwright.inspection.contamination_report import ContaminationReport
from chatwright.inspection.evaluation_texts import EvalText
from chatwright.inspection.page import build_page, write_page
from chatwright.inspection.page_data import PageData
from chatwright.inspection.page_reports import page_findings, page_matches

VOID = {"meta", "input", "br", "link", "img", "hr"}
NASTY = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>&amp;&lt;",
    "line\u2028separator\u2029paragraph",
    "NUL \x00 escape \x1b[31m bell \x07 delete \x7f",
    "bidi \u202e gnp.exe \u2066 isolate \u2069 \u200f",
    "hidden \u200b\ufeff\U000e0041 tags",
    "<!-- --> ]]> <![CDATA[ $title ${facts} {{x}}",
    "你好 🤖👩‍👩‍👧 مرحبا",
    "",
]


class Page(HTMLParser):
    """Everything a test asks of a page: balance, ids, links, and the texts of elements."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def facts_of(page: Page) -> dict:
    """What the script reads."""
    return json.loads(page.texts["script"][0])


@pytest.fixture(scope="module")
def full() -> PageData:
    first = shown("Hi", "Hello, żółw!", row=0)
    first = shown("Hi", "Hello, żółw!", row=0, **with_run(first))
    return page_of(first, shown("Who?", "Me.", row=7, part=2, in_run=False, notes=("held out",)), run=RUN)


def test_the_page_is_balanced_and_has_every_section(full):
    page = Page(build_page(full))
    assert {"examples", "packing", "sources", "ledger", "findings", "matches", "recipe"} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_what_is_shown_is_counted_against_what_is_trained(full):
    assert "1 of 2 training examples are shown, and 1 that the run doesn&#x27;t train on" in build_page(full)
    assert "1 of 1 training examples are shown: rows" in build_page(page_of(full.examples[0]))


def test_absent_reports_leave_no_section_and_no_link(full):
    page = Page(build_page(page_of(*full.examples, findings=None, matches=None)))
    assert not {"findings", "matches"} & set(page.ids)
    assert not {"#findings", "#matches"} & {value for _, name, value in page.attributes if name == "href"}


def test_nothing_is_loaded_from_anywhere(full):
    page = Page(build_page(full))
    asked = [value for _, name, value in page.attributes if name in ("src", "href", "action", "srcset", "data")]
    assert all(value.startswith("#") for value in asked), asked
    assert not [tag for tag, _, _ in page.attributes if tag in ("link", "img", "iframe", "object")]
    assert "@import" not in page.texts["style"][0] and "url(" not in page.texts["style"][0]
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|sendBeacon|import)\b", page.texts["script"][1])


def test_the_policy_allows_this_script_alone(full):
    page = Page(build_page(full))
    policy = next(value for _, name, value in page.attributes if name == "content" and "script-src" in value)
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(page.texts["script"][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_text_escapes_or_hides(text):
    plain, nasty = Page(build_page(page_of(shown("a", "b")))), build_page(page_of(shown(text, text), title=text))
    page = Page(nasty)
    elements = {tag for tag, _, _ in page.attributes}
    assert elements <= {tag for tag, _, _ in plain.attributes}
    assert len(page.texts["script"]) == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200b\ufeff]", nasty)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_hidden_characters_are_written_out():
    page = build_page(page_of(shown("a\x00b\u202ec", "x\u2028y")))
    for words in ("a␀b", "⟨U+202E⟩", "⟨U+2028⟩"):
        assert words.replace("b", "") in page or words in page


def test_lone_surrogates_can_be_written(tmp_path):
    write_page(tmp_path / "page.html", page_of(shown("half \ud83d", "\udcff"), title="\ud800"))
    assert "⟨U+D83D⟩" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_row_of_ten_megabytes_is_shortened_with_a_count():
    text = "x" * 10_000_000
    example = shown("question", "answer")
    messages = (example.messages[0]._replace(parts=(("text", text),)),)
    long = shown("q" * 5000, "a", row=1, most=2000)
    html = build_page(page_of(*(type(example)(**{**fields(example), "messages": messages}), long)))
    assert len(html) < 300_000
    assert "9,997,000 more characters, not shown" in html
    assert f"{long.num_tokens - 2000:,} more tokens of this example, not shown" in html


def fields(example) -> dict:
    return {name: getattr(example, name) for name in example.__dataclass_fields__}


def test_links_to_rows_resolve_and_rows_that_are_not_shown_have_none(full):
    page = Page(build_page(full))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert targets <= set(page.ids)
    assert {"row-my_chats.jsonl-0", "row-my_chats.jsonl-7-part-2"} <= set(page.ids)
    html = build_page(full)
    assert '<a href="#row-my_chats.jsonl-0" title="data/my chats.jsonl">my chats.jsonl row 0</a>' in html
    assert '<span title="x">x row 9</span>' in html


def test_sources_of_one_file_name_keep_apart_anchors():
    one, two = shown("a", "b", row=3), shown("c", "d", row=3)
    other = type(two)(**{**fields(two), "key": two.key._replace(source="other/my chats.jsonl")})
    page = Page(build_page(page_of(one, other, one)))
    rows = [name for name in page.ids if name.startswith("row-")]
    assert rows == ["row-my_chats.jsonl-3", "row-my_chats.jsonl-2-3", "row-my_chats.jsonl-3-again-2"]
    assert {SOURCE, "other/my chats.jsonl"} <= set(page.texts["span"]), "names that end alike are shown whole"


def test_the_figures_are_those_of_the_ledger(full):
    page = Page(build_page(full))
    tokens = sum(example.num_tokens for example in full.examples)
    tiles = dict(zip(page.texts["dt"], page.texts["dd"], strict=False))
    assert tiles["rows read"] == "4" and tiles["training examples"] == "2"
    cells = page.texts["td"]
    assert "bad <line>" in cells and "longer than 800 tokens" in cells
    for entry in full.ledger:
        if entry["tokens"]:
            assert any(f"{entry['tokens']:,} tokens" in cell for cell in cells), entry
    assert f"read {4} = skipped 1 + converted 3 ✓" in "".join(page.texts["li"])
    assert f"{tokens:,} tokens in packs of" in "".join(page.texts["p"])
    for histogram in (full.sources[0].lengths, full.sources[0].shares):
        assert sum(histogram.counts) == 2


def test_a_sum_that_does_not_balance_is_seen(full):
    wrong = tuple(entry | {"rows": entry["rows"] + (entry["stage"] == "read")} for entry in full.ledger)
    assert "read 5 ≠ skipped 1 + converted 3 ✗" in build_page(page_of(*full.examples, ledger=wrong))


def test_tokens_carry_their_mask(full):
    page = Page(build_page(full))
    trained, given = "".join(page.texts["u"]), "".join(page.texts["i"])
    assert "Hello, żółw!<|end|>" in trained and "Hi<|end|>" in given
    assert "ó" in page.texts["u"], "two bytes that make one character are one cell"


def test_the_script_gets_ids_starts_and_losses(full):
    first, second = facts_of(Page(build_page(full)))["examples"]
    example = full.examples[0]
    assert first["ids"] == list(example.ids)
    assert first["starts"] == [cell.start for cell in example.cells]
    assert {int(at) for at in first["before"]} == {at for a, b in example.trained_runs for at in range(a, b)}
    assert "before" not in second


def test_views_of_losses_are_offered_only_with_a_run(full):
    assert 'value="change"' in build_page(full)
    assert 'value="change"' not in build_page(page_of(*full.examples))


def test_the_same_records_give_the_same_page(full):
    assert build_page(full) == build_page(full)


def test_reports_become_records_the_gravest_first():
    finding = {"rule": "r", "severity": "info", "says": "s", "count": 9, "fix": "f", "excerpt": None}
    places = [{"source": "a", "row": row, "message": None, "what": "w"} for row in (1, 2)]
    other = [{"source": "b", "row": 5, "message": 0, "what": "w"}]
    grave = finding | {"rule": "g", "severity": "error", "count": 1, "places": []}
    reports = [{"findings": [finding | {"places": places}, grave]}, {"findings": [finding | {"places": other}]}]
    found = page_findings(reports)
    assert [(each.rule, each.severity, each.count) for each in found] == [("g", "error", 1), ("r", "info", 18)]
    assert [(place.source, place.row) for place in found[1].places] == [("a", 1), ("b", 5), ("a", 2)]
    side = {"text": "same words", "spans": [[0, 4]], "cut_before": True, "cut_after": False}
    hit = {"source": SOURCE, "row": 0, "task": "gsm8k", "split": "test", "eval_row": 3, "field": "question"}
    hit |= {"kind": "ngram", "share": 0.8, "train": side, "evaluation": side}
    html = build_page(page_of(shown("a", "b"), matches=page_matches({"hits": [hit]})))
    assert "… <mark>same</mark> words" in html and "80% of the test&#x27;s question" in html


def test_a_real_contamination_report_becomes_matches():
    question = (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May, she says."
    )
    item = EvalText("gsm8k", "test", "gsm8k.jsonl", 3, question, "question")
    index = ContaminationIndex.build([item], ContaminationSettings())
    row = Conversation((Message.of("user", f"Please solve: {question}"), Message.of("assistant", "72")), source=SOURCE)
    report = ContaminationReport({"gsm8k": 1})
    report.add(index, [row], index.matches([row]))
    (match,) = page_matches(report.to_dict())
    assert (match.place.source, match.place.row, match.reference) == (SOURCE, 0, "gsm8k (test) row 3, question")
    html = build_page(page_of(shown("a", "b"), matches=(match,)))
    assert "<mark>Natalia sold clips" in html and "100% of the test&#x27;s question" in html
