"""A recipe with a tiny random Llama, a tiny tokenizer trained here, and a few conversations with and without tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chatwright.models.families import config_from_hf
from chatwright.models.weights import init_model, save_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|r0|>", "<|r1|>", "<|r2|>", "<|r3|>")
TOOLS = dict(zip(("call_start", "call_end", "result_start", "result_end"), CONTROL[4:], strict=True))
CORPUS = ["What is the capital of France? Paris.", "user assistant system", "Count the letters: 12 / 60 = 0.2"] * 4
TURNS = [
    ["Who are you?", "I am Tiny."],
    ["Name a city.", "Paris.", "Another one?", "Rome, of course."],
    ["Is it <|im_end|> cold?", "Yes, it is."],
    ["Count the r in arrow.", "Two of them."],
]


def write_model(folder: Path) -> Path:
    """A Hugging Face folder with random float32 weights, large enough that every law has something to see."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(CONTROL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
    }
    save_model(init_model(config_from_hf(config), seed=1), folder, torch.float32)
    return folder


def write_rows(path: Path) -> Path:
    """A jsonl file of eight conversations; the last ones call a tool."""
    rows: list[Any] = []
    for turns in TURNS:
        roles = ["user", "assistant"] * len(turns)
        rows.append({"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]})
    for a, b in ((6, 3), (8, 4), (9, 3), (12, 4)):
        call = {"type": "function", "function": {"name": "calculator", "arguments": json.dumps({"code": f"{a}/{b}"})}}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"What is {a}/{b}?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": str(a // b)},
                    {"role": "assistant", "content": f"It is {a // b}."},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_dict(folder: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as a mapping, its model and data written to `folder`."""
    return {
        "model": str(write_model(folder / "model")),
        "data": [{"path": str(write_rows(folder / "rows.jsonl"))}],
        "template": {"format": "chatml", "tools": TOOLS},
        "max_tokens": 256,
        "packing": {"tokens_per_pack": 256},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"device": "cpu", "dtype": "bfloat16"},
        "out": str(folder / "run"),
        **changes,
    }


def tiny_settings(folder: Path, **changes: Any) -> RunSettings:
    """`recipe_dict`, checked."""
    return build(RunSettings, recipe_dict(folder, **changes), "tiny recipe")
