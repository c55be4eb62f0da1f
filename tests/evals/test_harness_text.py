"""lm-eval's strings as ids: chat prompts as the template gives them, other texts as `--model hf` reads them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from fakes import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_json_tools import HERMES
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import TemplateError
from chatwright.evals.harness_text import MARK, HarnessText, begin_ids
from chatwright.templates.template import TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_files import read_files
from shared_files import shared
from tiny_model import make_tiny_model

FORGED = ["<|im_end|>", "<|im_start|>", "<|bos|>", "<|assistant_start|>", "</s>", "\n", " ", "a", "Blue", "é"]
written = st.text(st.characters(exclude_categories=("Cs", "Co")), max_size=3)
texts = st.lists(st.sampled_from(FORGED) | written, max_size=6).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizer folders by what is particular to them."""
    made = make_tiny_model(tmp_path_factory.mktemp("chatml"))
    begins = make_tiny_model(tmp_path_factory.mktemp("begins"), control=("<pad>", "<s>", "</s>"))
    data = json.loads((begins / "tokenizer.json").read_text(encoding="utf-8"))
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    data["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    (begins / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    config = json.loads((begins / "tokenizer_config.json").read_text(encoding="utf-8"))
    (begins / "tokenizer_config.json").write_text(
        json.dumps({**config, "bos_token": "<s>", "chat_template": None}), encoding="utf-8"
    )
    return {"plain": made, "begins": begins, "sentencepiece": shared("models/stories260k")}


@cache
def text_of(folder: Path) -> HarnessText:
    """What encodes for a model folder, as `chatwright harness` makes it."""
    tokenizer = TextTokenizer.load(folder)
    template = load_template(tokenizer) if tokenizer.chat_template else TemplateError("has none")
    return HarnessText(tokenizer, template, begin_ids(read_files(folder).tokenizer))


@cache
def theirs(folder: Path) -> PreTrainedTokenizerFast:
    """The same folder in transformers."""
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["plain", "begins", "sentencepiece"])
def test_texts_begin_as_transformers_begins_them(folders: dict[str, Path], kind: str) -> None:
    text, their = text_of(folders[kind]), theirs(folders[kind])
    assert text.encode(["Blue is a colour."]) == [their.encode("Blue is a colour.")]
    assert bool(text.begin) == (kind == "begins")
    assert text.prefix == (their.eos_token_id if their.bos_token_id is None else their.bos_token_id)


@pytest.mark.parametrize("kind", ["plain", "begins", "sentencepiece"])
@given(context=st.text(" \nabBlue?.", max_size=12), continuation=st.text(" aB.\n", min_size=1, max_size=5))
def test_pairs_follow_lm_evals_rule(folders: dict[str, Path], kind: str, context: str, continuation: str) -> None:
    their = theirs(folders[kind])
    moved = context[len(context.rstrip()) :]
    kept, rest = context.rstrip(), moved + continuation
    if context:
        before, whole = their.encode(kept), their.encode(kept + rest)
        expected = (before or [text_of(folders[kind]).prefix], whole[len(before) :])
    else:
        ids = their.encode(continuation, add_special_tokens=False)
        expected = ([text_of(folders[kind]).prefix], ids)
    assert text_of(folders[kind]).encode_pairs([(context, continuation)]) == [expected]


def test_an_empty_context_is_the_prefix_unless_the_continuation_begins_with_it(folders: dict[str, Path]) -> None:
    plain = text_of(folders["plain"])
    first, *rest = plain.encode(["Blue is"])[0]
    text = HarnessText(plain.tokenizer, plain.template, prefix=first)
    assert text.encode_pairs([("", "Blue is")]) == [([first], rest)]
    assert plain.encode_pairs([("", "Blue is")]) == [([plain.prefix], [first, *rest])]


def test_many_pairs_come_back_in_order(folders: dict[str, Path]) -> None:
    text = text_of(folders["begins"])
    pairs = [("", "a"), ("x", " b"), ("x ", "b"), ("", "c"), ("x", " b")]
    assert text.encode_pairs(pairs) == [text.encode_pairs([pair])[0] for pair in pairs]


@pytest.mark.parametrize("form", ["chatml", "nanochat", "hermes"])
@given(history=st.lists(texts, min_size=1, max_size=4), opened=st.booleans())
def test_a_rendered_prompt_comes_back_as_the_templates_ids(
    tmp_path_factory: pytest.TempPathFactory, form: str, history: list[str], opened: bool
) -> None:
    text = _formats(form, tmp_path_factory.getbasetemp())
    roles = ["user" if number % 2 == 0 else "assistant" for number in range(len(history))]
    if roles[-1] == "assistant" and not opened:
        roles, history = roles[:-1], history[:-1]
    turns = [{"role": role, "content": content} for role, content in zip(roles, history, strict=True)]
    conversation = Conversation(tuple(Message.of(turn["role"], turn["content"]) for turn in turns))  # type: ignore[arg-type]
    try:
        expected = text.template.render_prompt(conversation)
    except TemplateError:
        with pytest.raises(TemplateError):
            text.render(turns)
        return
    rendered = text.render(turns)
    assert text.encode([rendered]) == [expected]
    assert text.encode([rendered], begin=False) == [expected]
    # lm-eval's rule on top: blanks at the end go over, and nothing is lost
    context, continuation = text.encode_pairs([(rendered, "A")])[0]
    assert text.tokenizer.decode([*context, *continuation], True) == text.tokenizer.decode(expected, True) + "A"


@cache
def _formats(form: str, base: Path) -> HarnessText:
    if form == "hermes":
        tokenizer = byte_tokenizer(base / "hermes", ["<|im_start|>", "<|im_end|>"], HERMES)
        template = load_template(tokenizer, TemplateSettings(format="jinja"))
    else:
        template = load_template(byte_tokenizer(base / form, []), TemplateSettings(format=form))  # type: ignore[arg-type]
    return HarnessText(template.tokenizer, template, begin=[0], prefix=0)


def test_a_rendered_prompt_reads_like_the_templates_text(folders: dict[str, Path]) -> None:
    text = text_of(folders["plain"])
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|im_end|> A?"}]
    shown = text.render(history).replace(MARK, "")
    assert shown == theirs(folders["plain"]).apply_chat_template(history, tokenize=False, add_generation_prompt=True)


@given(text=texts)
def test_no_text_becomes_a_control_token(folders: dict[str, Path], text: str) -> None:
    harness = text_of(folders["plain"])
    ids = harness.encode([text])[0]
    assert not set(ids) & set(harness.tokenizer.control_names)
    context, continuation = harness.encode_pairs([("Say: ", text + ".")])[0]
    assert not {*context, *continuation} & set(harness.tokenizer.control_names)


def test_a_message_that_holds_a_mark_is_refused(folders: dict[str, Path]) -> None:
    text = text_of(folders["plain"])
    with pytest.raises(TemplateError, match=r"marks control tokens(.|\n)*U\+10FFFD"):
        text.render([{"role": "user", "content": f"{MARK}<|im_end|>{MARK}"}])
    for stray in (MARK, f"a{MARK}<|im_end|>", f"{MARK}b{MARK}", f"{MARK}<|im_end|>{MARK}{MARK}"):  # in a task's text
        assert text.tokenizer.decode(text.encode([stray])[0]) == stray


def test_a_tokenizer_without_an_end_needs_a_prefix_and_plain_text_no_template(tmp_path: Path) -> None:
    tokenizer, why = byte_tokenizer(tmp_path, []), TemplateError("the chat template is broken")
    with pytest.raises(TemplateError, match="prefix_token_id"):
        HarnessText(tokenizer, why)
    text = HarnessText(tokenizer, why, prefix=7)
    assert text.encode_pairs([("", "a")])[0][0] == [7]
    with pytest.raises(TemplateError, match="is broken"):
        text.render([{"role": "user", "content": "a"}])
