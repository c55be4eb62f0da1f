"""Cells cover the tokens without gaps, keep characters whole and never straddle the mask."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from page_records import ByteReader, rendered

from chatwright.inspection.cells import message_blocks, token_cells
from chatwright.templates.rendered import ExampleKey, RenderedExample, Span


@given(st.text(max_size=12), st.text(max_size=12), st.integers(0, 40))
def test_cells_cover_the_shown_tokens(question, answer, most):
    example = rendered(question.encode(errors="replace").decode(), answer.encode(errors="replace").decode())
    cells = token_cells(example, ByteReader(), most)
    assert [cell.start for cell in cells[1:]] == [cell.end for cell in cells[:-1]]
    assert (cells[-1].end if cells else 0) == min(most, len(example.ids))
    for cell in cells:
        assert len({bool(example.weights[at]) for at in range(cell.start, cell.end)}) == 1


def test_a_character_of_several_tokens_is_one_cell_and_broken_bytes_go_by_name():
    example = rendered("é你🤖", "ok")
    assert [cell.text for cell in token_cells(example, ByteReader())] == [
        "<|user|>",
        "é",
        "你",
        "🤖",
        "<|end|>",
        "o",
        "k",
        "<|end|>",
    ]
    cut = RenderedExample(np.array([0xE4, 0xBD, 65], np.int32), np.zeros(3, np.float32), (), ExampleKey("s", 0, 0))
    assert [cell.text for cell in token_cells(cut, ByteReader())] == ["<E4>", "<BD>", "A"]


def test_the_first_token_is_never_trained():
    example = RenderedExample(np.array([65, 66], np.int32), np.ones(2, np.float32), (), ExampleKey("s", 0, 0))
    assert [cell.trained for cell in token_cells(example, ByteReader())] == [False, True]


def test_what_stands_between_two_messages_goes_to_the_one_it_closes_or_opens():
    texts = [256, "sys", 257, "\n", 256, "hi", 257, "\n", 256, "assistant", "yes", 257]
    owners = [-1, -1, -1, -1, -1, 0, -1, -1, -1, -1, 1, 1]
    ids: list[int] = []
    spans: list[Span] = []
    for text, owner in zip(texts, owners, strict=True):
        new = list(text.encode()) if isinstance(text, str) else [text]
        spans.append(Span(len(ids), len(ids) + len(new), owner, 0))
        ids += new
    weights = np.zeros(len(ids), np.float32)
    example = RenderedExample(np.array(ids, np.int32), weights, tuple(spans), ExampleKey("s", 0, 0))
    cells = token_cells(example, ByteReader())
    blocks = message_blocks(cells)
    shown = [(block.message, "".join(cell.text for cell in cells[block.first : block.last])) for block in blocks]
    assert shown == [
        (-1, "<|user|>sys<|end|>\n"),
        (0, "<|user|>hi<|end|>\n"),
        (1, "<|user|>assistantyes<|end|>"),
    ]
    assert blocks[0].first == 0 and blocks[-1].last == len(cells)


def test_an_example_without_spans_is_one_block():
    example = RenderedExample(np.array([65, 256], np.int32), np.ones(2, np.float32), (), ExampleKey("s", 0, 0))
    assert message_blocks(token_cells(example, ByteReader())) == [(-1, 0, 2)]
