"""The viewer shows which tokens are trained, control tokens as such, and lets no text command the terminal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.inspection.viewer import Look, example_record, legend, pieces, printable, show_example
from chatwright.templates.rendered import ExampleKey, RenderedExample


class ByteTokenizer:
    """Ids below 256 are UTF-8 bytes; 256 and 257 are control tokens."""

    control_names = {256: "<|user|>", 257: "<|end|>"}  # noqa: RUF012 - a fake

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


class SpaceEatingTokenizer(ByteTokenizer):
    """Like SentencePiece's: the first space of a decoded text is dropped."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def example(parts, **key):
    """From (text or control id, weight) pairs."""
    ids, weights = [], []
    for text, weight in parts:
        new = list(text.encode()) if isinstance(text, str) else [text]
        ids += new
        weights += [weight] * len(new)
    named = ExampleKey(**({"source": "chats.jsonl", "row": 3, "part": 0} | key))
    return RenderedExample(np.array(ids, np.int32), np.array(weights, np.float32), (), named)


CHAT = example([(256, 0), ("hi ", 0), ("żółw\n", 1), (257, 1), ("glue", 0)])


def test_pieces_cover_the_example_and_say_what_is_trained():
    found = pieces(CHAT, ByteTokenizer())
    assert [(piece.text, piece.look) for piece in found] == [
        ("<|user|>", Look.GIVEN_CONTROL),
        ("hi ", Look.GIVEN),
        ("żółw\n", Look.TRAINED),
        ("<|end|>", Look.TRAINED_CONTROL),
        ("glue", Look.GIVEN),
    ]
    assert [piece.start for piece in found[1:]] == [piece.end for piece in found[:-1]]
    assert found[-1].end == len(CHAT.ids)


def test_the_terminal_view_has_colours_and_a_heading():
    text = show_example(CHAT, ByteTokenizer())
    assert text.plain.splitlines()[0] == "chats.jsonl, row 3 · 17 tokens, 9 trained (53%)"
    assert text.plain.endswith("<|user|>hi żółw↵\n<|end|>glue")
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["żółw↵\n"] == "green" and styles["<|end|>"] == "reverse green" and styles["hi "] == "dim"


def test_marks_for_output_without_colours():
    assert show_example(CHAT, ByteTokenizer(), marks=True).plain.endswith("<|user|>hi ⟦żółw↵\n<|end|>⟧glue")
    assert show_example(example([("ab", 0), ("c", 1)], part=2), ByteTokenizer(), marks=True).plain == (
        "chats.jsonl, row 3, part 2 · 3 tokens, 1 trained (33%)\nab⟦c⟧"
    )


def test_a_weight_on_the_first_token_is_not_shown_as_trained():
    assert [piece.look for piece in pieces(example([("ab", 1)]), ByteTokenizer())] == [Look.GIVEN, Look.TRAINED]


def test_a_space_at_a_border_is_kept_even_where_decoding_drops_first_spaces():
    record = example_record(example([("a", 0), (" b", 1)]), SpaceEatingTokenizer())
    assert record["supervised"] == [{"start": 1, "end": 3, "text": " b"}]


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "a\rb", "\x9b31m", "\x7f"])
def test_text_cannot_command_the_terminal(text):
    shown = show_example(example([("x", 0), (text, 1)], source=text), ByteTokenizer()).plain
    assert not any((ord(char) < 32 and char not in "\n\t") or 127 <= ord(char) < 160 for char in shown)
    assert printable("\x1b[0m\x7f") == "␛[0m␡"


def test_the_record_is_json_with_spans_as_text():
    record = json.loads(json.dumps(example_record(CHAT, ByteTokenizer())))
    assert (record["source"], record["row"], record["part"]) == ("chats.jsonl", 3, 0)
    assert record["ids"] == CHAT.ids.tolist() and record["weights"] == CHAT.weights.tolist()
    assert record["supervised"] == [{"start": 4, "end": 13, "text": "żółw\n<|end|>"}]


def test_an_empty_example_is_shown():
    assert "0 tokens" in show_example(example([]), ByteTokenizer()).plain
    assert example_record(example([]), ByteTokenizer())["supervised"] == []


def test_the_legend_names_every_look():
    assert all(word in legend().plain for word in ("trained", "given", "control token"))


@given(st.lists(st.tuples(st.one_of(st.text(max_size=4), st.sampled_from([256, 257])), st.sampled_from([0.0, 1.0]))))
def test_the_pieces_spell_the_whole_text(parts):
    tokenizer = ByteTokenizer()
    given_text = "".join(tokenizer.control_names[p] if isinstance(p, int) else p for p, _ in parts)
    built = example(parts)
    if built.ids.size > 1 and built.weights[0] > 0 and built.ids[0] > 127:
        return  # the first token is never trained, which may cut a character in two
    assert "".join(piece.text for piece in pieces(built, tokenizer)) == given_text
