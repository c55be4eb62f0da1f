"""Our renderings equal those of the reference implementations, token for token."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared

KINDS: dict[str, Any] = {"text": "text", "python": "tool_call", "python_output": "tool_result"}


def read_message(row: dict[str, Any]) -> Message:
    content = row["content"]
    if isinstance(content, str):
        return Message.of(row["role"], content)
    return Message(row["role"], tuple(Part(KINDS[part["type"]], part["text"]) for part in content))


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shared(f"goldens/{name}").read_text(encoding="utf-8").splitlines() if line]


@pytest.fixture(scope="module")
def nanochat() -> Template:
    tokenizer = TextTokenizer.load(shared("data/tokenizers/gpt2"))
    return load_template(tokenizer, TemplateSettings(format="nanochat"))


def test_nanochat_renders_as_the_reference(nanochat: Template) -> None:
    rows = golden("nanochat-render.jsonl")
    assert len(rows) >= 10
    for row in rows:
        messages = tuple(read_message(message) for message in row["conversation"]["messages"])
        (example,) = nanochat.render(Conversation(messages))
        assert example.ids.tolist() == row["ids"], row["name"]
        assert (example.weights > 0).astype(int).tolist() == row["mask"], row["name"]
        assert nanochat.render_prompt(Conversation(messages[:-1])) == row["completion_prompt_ids"], row["name"]


def test_minimind_labels_equal_the_reference_where_it_trains_the_line_break() -> None:
    tokenizer = TextTokenizer.load(shared("data/tokenizers/minimind"))
    as_minimind = load_template(
        tokenizer, TemplateSettings(format="jinja", train_line_break_after_end=True, model_writes_thinking=True)
    )
    ours = load_template(tokenizer, TemplateSettings(format="jinja", model_writes_thinking=True))
    for row in golden("minimind-labels.jsonl"):
        conversation = Conversation(tuple(read_message(message) for message in row["conversations"]))
        (example,) = as_minimind.render(conversation)
        assert example.ids.tolist() == row["ids"], row["name"]
        labels = [index if weight else -100 for index, weight in zip(example.ids, example.weights, strict=True)]
        assert labels == row["labels"], row["name"]
        (shorter,) = ours.render(conversation)
        assert shorter.ids.tolist() == row["ids"]
        turns = sum(message["role"] == "assistant" for message in row["conversations"])
        assert shorter.num_supervised == example.num_supervised - turns
        ends = [index for index, label in enumerate(labels) if label == tokenizer.eos_id]
        assert len(ends) == turns and all(shorter.weights[end] and not shorter.weights[end + 1] for end in ends)
