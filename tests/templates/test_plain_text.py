"""Documents as examples: their frame, their cuts, and that their text can't become a control token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.conversations.documents import document_conversation
from chatwright.conversations.schema import Conversation, Document, Message
from chatwright.templates.laws import check_laws
from chatwright.templates.overflow import Overflow, fit
from chatwright.templates.plain_text import DocumentFrame, render_documents, split_document
from chatwright.templates.template import TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared
from tiny_model import CONTROL, make_tiny_model

END, TURN = "<|endoftext|>", "<|im_end|>"


def document(text: str, row: int = 0) -> Conversation:
    return document_conversation(Document(text, "a.txt", row))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return TextTokenizer.load(tiny_model)


@pytest.mark.parametrize(
    ("control", "special", "begin", "end"),
    [
        (CONTROL, {}, None, END),  # eos is the end of a turn, so the end of a document is found by name
        (["<pad>", "<s>", "</s>"], {"bos_token": "<s>"}, "<s>", "</s>"),
        (["<pad>", "<|im_start|>", TURN], {"bos_token": "<|im_start|>"}, None, TURN),
        (["<pad>", "<|bos|>", "<|assistant_end|>"], {"bos_token": "<|bos|>"}, "<|bos|>", "<|bos|>"),
        (["<pad>", "<begin>", "<finish>"], {"bos_token": "<begin>"}, "<begin>", "<finish>"),
    ],
)
def test_the_frame_is_begin_of_text_and_the_end_of_a_document(
    tmp_path: Path, control: list[str], special: dict[str, str], begin: str | None, end: str
) -> None:
    import json

    folder = make_tiny_model(tmp_path / "m", control=tuple(control))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **special}))
    tokenizer = TextTokenizer.load(folder)
    frame = DocumentFrame.of(tokenizer)
    assert (tokenizer.control_names.get(frame.begin or -1), tokenizer.control_names[frame.end or 0]) == (begin, end)


@pytest.mark.parametrize(("name", "begin"), [("gpt2", END), ("minimind", None)])
def test_real_tokenizers(name: str, begin: str | None) -> None:
    tokenizer = TextTokenizer.load(shared(f"data/tokenizers/{name}"))
    (example,) = render_documents(tokenizer, [document("Hello there.")])
    names = [tokenizer.control_names.get(index) for index in example.ids.tolist()]
    assert names[-1] == END and (names[0] == begin)
    assert tokenizer.decode(example.ids.tolist()) == "Hello there."


def test_every_token_is_trained_but_the_first_whatever_the_policy(tiny_model: Path, tokenizer: TextTokenizer) -> None:
    template = load_template(tokenizer, TemplateSettings(format="chatml"))
    chat = Conversation((Message.of("user", "Who?"), Message.of("assistant", "I.")))
    mixed = template.render_many([document("One river."), chat, document("Two rivers.", 1)], TrainOn.LAST)
    assert [len(each) for each in mixed] == [1, 1, 1]
    for (example,), text in ((mixed[0], "One river."), (mixed[2], "Two rivers.")):
        assert example.weights.tolist() == [0.0, *[1.0] * (len(example.ids) - 1)]
        assert tokenizer.decode(example.ids.tolist()) == text
    assert mixed[1][0].ids.tolist() == template.render(chat, TrainOn.LAST)[0].ids.tolist()


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1) | st.sampled_from([*CONTROL, f"a{END}b", f"{END}\n{TURN}"]))
def test_no_text_becomes_a_control_token(tiny_model: Path, text: str) -> None:
    tokenizer = TextTokenizer.load(tiny_model)
    template = load_template(tokenizer, TemplateSettings(format="chatml"))
    (example,) = template.render(document(text))
    inside = example.ids.tolist()[:-1]
    assert not set(inside) & set(tokenizer.control_names)
    assert all(law.passed for law in check_laws(template, [document(text)]))


@settings(max_examples=80, deadline=None)
@given(length=st.integers(1, 60), max_tokens=st.integers(1, 25))
def test_pieces_hold_every_token_once(tokenizer: TextTokenizer, length: int, max_tokens: int) -> None:
    (example,) = render_documents(tokenizer, [document("x" * length)])
    pieces = split_document(example, max_tokens)
    assert np.concatenate([piece.ids for piece in pieces]).tolist() == example.ids.tolist()
    assert [piece.key.part for piece in pieces] == list(range(len(pieces)))
    for piece in pieces:
        assert len(piece.ids) <= max_tokens
        assert piece.weights.tolist() == [0.0, *[1.0] * (len(piece.ids) - 1)]
        assert [piece.spans[0].start, piece.spans[-1].end] == [0, len(piece.ids)]
    if max_tokens > 2:
        assert all(piece.num_supervised for piece in pieces), "nothing is left that trains nothing"


@pytest.mark.parametrize("overflow", list(Overflow)[1:])
def test_fit_cuts_documents_whatever_becomes_of_conversations(tiny_model: Path, overflow: Overflow) -> None:
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    rows = [document("a river " * 40), Conversation((Message.of("user", "?"), Message.of("assistant", "no " * 90)))]
    rendered = [example for group in template.render_many(rows) for example in group]
    fitted = fit(rendered, 30, overflow, template, rows)
    pieces = [example for example in fitted.kept if example.key.source == "a.txt"]
    assert sum(len(piece.ids) for piece in pieces) == len(rendered[0].ids)
    assert fitted.num_added == len(pieces) - 1
    assert len(fitted.drops) + len(fitted.cuts) == 1, "the conversation"
