"""The tokenizer: parity with transformers on ordinary text, and no text that becomes a control token."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from template_families import FAMILIES, family_folder
from template_strategies import CONTROL_STRINGS, texts

from chatwright.errors import TemplateError
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.twin import Place, is_whitespace_token
from shared_files import shared

SHARED = ["data/tokenizers/gpt2", "data/tokenizers/minimind", "models/stories260k"]


def folder_of(name: str) -> Path:
    return family_folder(name) if name in FAMILIES else shared(name)


@cache
def loaded(name: str) -> TextTokenizer:
    return TextTokenizer.load(folder_of(name))


def holds_control(tokenizer: TextTokenizer, text: str) -> bool:
    return any(name.strip() in text for name in tokenizer.control_ids)


@pytest.mark.parametrize("name", [*SHARED, *FAMILIES])
def test_ordinary_text_gets_the_ids_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_of(name)
    ours = TextTokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    checked = 0

    @settings(max_examples=50, deadline=None)
    @given(text=texts(plain=True))
    def check(text: str) -> None:
        nonlocal checked
        if not holds_control(ours, text):
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode_text(text, at_start=True) == expected
            assert ours.encode_whole(text) == expected
            checked += 1

    check()
    assert checked > 25


@pytest.mark.parametrize("name", [*SHARED, *FAMILIES])
def test_gaps_between_control_tokens_get_the_ids_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_of(name)
    ours = TextTokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    control, index = next(
        (text, index) for text, index in ours.control_ids.items() if index != ours.unknown_id and "user" not in text
    )
    for gap in ["Hello", " Hello", "user\nHello", "  a b ", "\n\nHi", "你好 Paris", " ", "x"]:
        whole = theirs(control + gap + control, add_special_tokens=False)["input_ids"]
        assert [index, *ours.encode_text(gap), index] == whole, gap


@pytest.mark.parametrize("name", [*SHARED, *FAMILIES])
def test_the_bytes_of_the_tokens_add_up_to_the_texts(name: str) -> None:
    """Exactly, but for the space that older SentencePiece puts before the first word."""
    tokenizer = loaded(name)
    sizes = tokenizer.token_bytes
    assert len(sizes) == tokenizer.vocab_size and not sizes[sorted(tokenizer.control_names)].any()

    @settings(max_examples=50, deadline=None)
    @given(text=texts())
    def check(text: str) -> None:
        ids = tokenizer.encode_text(text)
        if tokenizer.decode(ids) != text:  # a tokenizer that normalizes, or has no token for a part of it
            return
        begins = sizes[ids].sum() - len(text.encode())
        assert begins == 0 or (begins == 1 and tokenizer.decode(ids, place=Place.INSIDE) == f" {text}")

    check()


@settings(max_examples=200, deadline=None)
@given(text=texts())
def test_byte_level_text_comes_back_exactly(text: str) -> None:
    for tokenizer in (loaded("smollm2"), loaded("llama3")):
        for place in Place:
            (ids,) = tokenizer.encode_placed([(text, place)])
            assert tokenizer.decode(ids, place=place) == text


@settings(max_examples=100, deadline=None)
@given(text=texts(plain=True).filter(lambda text: "▁" not in text))
def test_sentencepiece_text_comes_back_exactly_at_every_place(text: str) -> None:
    for tokenizer in (loaded("models/stories260k"), loaded("phi3")):
        for place in Place:
            (ids,) = tokenizer.encode_placed([(text, place)])
            assert tokenizer.decode(ids, place=place) == text


def test_text_behind_a_prompt_gets_no_space_of_its_own() -> None:
    tokenizer = TextTokenizer.load(shared("models/stories260k"))
    start, behind, inside = (tokenizer.encode_placed([("Once", place)])[0] for place in Place)
    assert start == behind != inside
    assert tokenizer.decode(start) == tokenizer.decode(inside, place=Place.INSIDE) == "Once"


# No text becomes a control token


def attack_texts(tokenizer: TextTokenizer, count: int, seed: int) -> list[str]:
    """Texts that hold control strings: alone, embedded, split, nested, doubled, with odd neighbours."""
    draw = random.Random(seed)
    own = list(tokenizer.control_ids)
    names = [*own * (1 + 2 * len(CONTROL_STRINGS) // len(own)), *CONTROL_STRINGS]
    found = []
    for _ in range(count):
        pieces = []
        for _ in range(draw.randint(1, 5)):
            name = draw.choice(names)
            cut = draw.randint(0, len(name))
            forms = [name, f" {name} ", f"x{name}y", name[:cut], name[cut:], name[:cut] + name + name[cut:]]
            forms += [f"{name}{name}", f"{name[:cut]}\u200b{name[cut:]}", f"\n{name}\n", f"<{name}>", name.upper()]
            forms += [name.replace("<", "<<"), name]
            pieces.append(draw.choice([*forms, "Hello", "你好", "\ue000"]))
        found.append("".join(pieces))
    return found


@pytest.mark.parametrize("name", ["data/tokenizers/minimind", "data/tokenizers/gpt2", "models/stories260k"])
def test_ten_thousand_attacks_on_real_tokenizers(name: str) -> None:
    tokenizer = TextTokenizer.load(shared(name)).add_control_tokens(["<think>", "<|im_end|>", "Hello", "user"])
    attacks = attack_texts(tokenizer, 10_000, seed=1)
    control = set(tokenizer.control_names)
    for place in Place:
        encoded = tokenizer.encode_placed([(text, place) for text in attacks])
        assert all(control.isdisjoint(ids) for ids in encoded)
    # the attack is real: with control tokens on, nearly every text forges one
    forged = sum(not control.isdisjoint(tokenizer.encode_whole(text)) for text in attacks[:500])
    assert forged > 300


@pytest.mark.parametrize("name", FAMILIES)
def test_attacks_on_every_build_of_tokenizer(name: str) -> None:
    tokenizer = TextTokenizer.load(family_folder(name))
    control = set(tokenizer.control_names) - {tokenizer.unknown_id}
    attacks = attack_texts(tokenizer, 600, seed=2)
    for ids in tokenizer.encode_placed([(text, place) for text in attacks for place in Place]):
        assert control.isdisjoint(ids)
    forged = sum(not control.isdisjoint(tokenizer.encode_whole(text)) for text in attacks)
    assert forged > 300


def test_the_library_s_own_switch_does_not_keep_added_tokens_out() -> None:
    """Why the twin exists: `encode_special_tokens` still turns text into merely added tokens."""
    from tokenizers import Tokenizer

    folder = shared("data/tokenizers/minimind")
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    assert library.encode("<think>", add_special_tokens=False).ids == [25]
    assert TextTokenizer.load(folder).encode_text("<think>") != [25]


def test_whitespace_tokens_stay_text() -> None:
    assert all(is_whitespace_token(name) for name in ("\n\n", "▁▁", " ", "\t"))
    assert not is_whitespace_token("<s>")
    tokenizer = TextTokenizer.load(family_folder("gemma"))
    assert "\n\n" not in tokenizer.control_ids and "▁▁" not in tokenizer.control_ids
    whole = json.loads((family_folder("gemma") / "tokenizer.json").read_text(encoding="utf-8"))
    blank = next(token["id"] for token in whole["added_tokens"] if token["content"] == "\n\n")
    assert blank in tokenizer.encode_text("a\n\nb")


def test_an_unknown_build_that_would_forge_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    import chatwright.templates.twin as twin

    monkeypatch.setattr(twin, "without_control", lambda data: data)
    tokenizer = TextTokenizer.load(family_folder("smollm2"))
    with pytest.raises(TemplateError, match=r"<\|im_end\|>"):
        tokenizer.encode_text("a <|im_end|>")


# Adding and saving


def test_added_tokens_follow_the_largest_id() -> None:
    before = TextTokenizer.load(shared("data/tokenizers/gpt2"))
    after = before.add_control_tokens(["<a>", "<b>", "<|endoftext|>", "<a>"])
    assert (before.vocab_size, after.vocab_size) == (50257, 50259)
    assert after.control_ids == {"<|endoftext|>": 50256, "<a>": 50257, "<b>": 50258}
    assert "<a>" not in before.control_ids
    assert before.identity != after.identity
    assert after.identity == before.add_control_tokens(["<a>", "<b>"]).identity
    with pytest.raises(TemplateError, match="visible"):
        before.add_control_tokens([" \n"])


@pytest.mark.parametrize("name", [*SHARED, "gemma", "llama2"])
def test_transformers_loads_what_was_saved(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = TextTokenizer.load(folder_of(name)).add_control_tokens(["<|im_start|>", "<|im_end|>", "<|new|>"])
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 7}', encoding="utf-8")
    ends = [tokenizer.control_ids["<|im_end|>"], tokenizer.stop_ids[0]]
    tokenizer.save(tmp_path, chat_template="{{ messages[0].content }}<|new|>", stop_ids=ends)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = TextTokenizer.load(tmp_path)
    for text in ["Hello world", "  a\n\nb ", "你好", "x<|im_end|> y<|new|>z", "<s> </s> <eos>"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_whole(text)
        assert again.encode_text(text) == tokenizer.encode_text(text)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.eos_id, tokenizer.bos_id)
    messages = [{"role": "user", "content": "Hi"}]
    rendered = theirs.apply_chat_template(messages, return_dict=False)
    assert rendered == tokenizer.encode_whole("Hi<|new|>")
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"temperature": 0.5, "eos_token_id": ends}
    assert set(again.stop_ids) == {*ends, *tokenizer.stop_ids}
    assert again.control_ids == tokenizer.control_ids and again.chat_template == "{{ messages[0].content }}<|new|>"


def test_files_are_read_in_transformers_order(tmp_path: Path) -> None:
    source = shared("data/tokenizers/gpt2") / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    (tmp_path / "config.json").write_text('{"bos_token_id": 5, "eos_token_id": [9, 8]}', encoding="utf-8")
    tokenizer = TextTokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (5, 9, (8, 9))
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    special = {"eos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.chat_templates == {"default": "A", "tool_use": "B"}
    assert tokenizer.eos_id == 50256 and 50256 in tokenizer.stop_ids
    (tmp_path / "chat_template.jinja").write_text("C", encoding="utf-8")
    assert TextTokenizer.load(tmp_path).chat_template == "C"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TemplateError, match="can't be read"):
        TextTokenizer.load(tmp_path)


def test_token_text_is_for_people() -> None:
    tokenizer = TextTokenizer.load(shared("data/tokenizers/gpt2"))
    assert tokenizer.token_text(50256) == "<|endoftext|>"
    assert tokenizer.token_text(tokenizer.encode_text("Hello")[0]) == "Hello"
    assert all(tokenizer.token_text(index) for index in tokenizer.encode_text("你好🙂"))
    assert tokenizer.decode([50256, 15496], with_control=True) == "<|endoftext|>Hello"
    assert tokenizer.decode([50256, 15496]) == "Hello"
