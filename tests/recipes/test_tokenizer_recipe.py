"""`tokenizer train`: a folder that transformers loads alike, never half made, never replaced unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatwright.conversations.data_settings import DataSettings
from chatwright.errors import ModelError, UserError
from chatwright.recipes.tokenizer_recipe import RECORD, TokenizerRecipe, entry_texts, make_tokenizer, read_texts
from chatwright.settings import build
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_training import TokenizerSettings, train_tokenizer
from training_runs import run_command

PARAGRAPHS = [f"Paragraph {number} tells of ships, whales and the sea; number {number} ends." for number in range(300)]


def _recipe(folder: Path, **changes: object) -> TokenizerRecipe:
    path = folder / "text.txt"
    if not path.exists():
        path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    plain = {
        "data": [{"path": str(path), "text_by": "paragraph"}],
        "tokenizer": {"vocab_size": 300},
        "heldout_share": 0.2,
        "beside": [],
        "out": str(folder / "tokenizer"),
    }
    return build(TokenizerRecipe, {**plain, **changes}, "recipe")


def test_it_counts_all_but_the_held_out_texts(tmp_path: Path) -> None:
    made = make_tokenizer(_recipe(tmp_path))
    assert 150 < made.texts < 290 and made.made and made.vocab_size == 300
    rest = made.compression[0]
    assert rest.num_bytes == sum(map(len, PARAGRAPHS)) - made.characters
    assert rest.text == "held-out text"


def test_nothing_held_out_is_said_to_be_so(tmp_path: Path) -> None:
    made = make_tokenizer(_recipe(tmp_path, heldout_share=0.0))
    assert made.texts == 300 and made.compression[0].text == "text it was trained on"
    whole = train_tokenizer(PARAGRAPHS, TokenizerSettings(vocab_size=300))
    assert TextTokenizer.load(made.folder).encode_text("whales 300") == whole.encode_text("whales 300")


def test_transformers_loads_it_with_the_same_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = make_tokenizer(_recipe(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(made.folder)
    text = "The sea's 12345 whales,\n\n  and ships."
    assert theirs(text, add_special_tokens=False).input_ids == TextTokenizer.load(made.folder).encode_text(text)
    assert theirs.bos_token == "<|bos|>"


def test_made_twice_is_made_once_and_something_else_is_never_replaced_unasked(tmp_path: Path) -> None:
    make_tokenizer(_recipe(tmp_path))
    stamp = (tmp_path / "tokenizer" / RECORD).stat().st_mtime_ns
    again = make_tokenizer(_recipe(tmp_path))
    assert not again.made and (tmp_path / "tokenizer" / RECORD).stat().st_mtime_ns == stamp
    other = _recipe(tmp_path, tokenizer={"vocab_size": 290})
    with pytest.raises(UserError, match="holds another tokenizer"):
        make_tokenizer(other)
    assert TextTokenizer.load(tmp_path / "tokenizer").vocab_size == 300
    assert make_tokenizer(other, force=True).vocab_size == 290


@pytest.mark.parametrize("what", ["a file of mine", "a file beside a tokenizer", "a file in its place"])
def test_nothing_but_a_tokenizer_is_ever_replaced(tmp_path: Path, what: str) -> None:
    out = tmp_path / "tokenizer"
    if what == "a file beside a tokenizer":
        make_tokenizer(_recipe(tmp_path))
    if what != "a file in its place":
        out.mkdir(exist_ok=True)
    mine = out if what == "a file in its place" else out / "mine.txt"
    mine.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="holds something else already"):
        make_tokenizer(_recipe(tmp_path, tokenizer={"vocab_size": 290}), force=True)
    assert mine.read_text(encoding="utf-8") == "precious"


def test_a_missing_tokenizer_to_compare_with_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such tokenizer"):
        make_tokenizer(_recipe(tmp_path, beside=[str(tmp_path / "none")]))
    assert not (tmp_path / "tokenizer").exists()


def test_conversations_are_texts_to_measure_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "Yes."}]
    path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    assert read_texts([str(path)]) == {str(path): ["Say yes.", "Yes."]}


def test_changed_text_is_not_what_was_made(tmp_path: Path) -> None:
    make_tokenizer(_recipe(tmp_path))
    (tmp_path / "text.txt").write_text("\n\n".join(PARAGRAPHS[:200]), encoding="utf-8")
    with pytest.raises(UserError, match="holds another tokenizer"):
        make_tokenizer(_recipe(tmp_path))


def test_every_text_of_a_conversation_counts(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "Yes."}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(entry_texts(DataSettings(path=str(path)))) == ["Say yes.", "Yes."]


@pytest.mark.slow
def test_the_command_trains_and_reports(tmp_path: Path) -> None:
    _recipe(tmp_path)
    text, out = tmp_path / "text.txt", tmp_path / "made"
    command = ("tokenizer", "train", text, "-o", out, "--vocab-size", 290, "--beside", "none", "--json")
    printed = run_command(*command)
    assert json.loads(printed[printed.index("{") :])["vocab_size"] == 290
    printed = run_command("tokenizer", "report", out, "--text", text, "--json")
    rows = json.loads(printed[printed.index("[") :])
    assert rows[0]["num_bytes"] == len("\n\n".join(PARAGRAPHS))
    assert "vocab_size must be at least" in run_command("tokenizer", "train", text, "--vocab-size", 9, status=2)
