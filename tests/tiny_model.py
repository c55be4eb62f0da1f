"""A tiny random Llama with a tiny byte-level BPE tokenizer, made on the spot: tests that train need no shared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chatwright.models.families import config_from_hf
from chatwright.models.weights import init_model, save_model
from chatwright.templates.native_jinja import CHATML_JINJA

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "Who are you? I am a tiny model, trained in a test. What is two and three? Two and three make five.",
    "system user assistant\nTell me a colour. Blue is a colour. Count the letters: a b c d e f g.\n",
    "Name an animal that can fly. A bat can fly, and a bird can. Where is the river? The river is behind the hill.",
] * 4


def make_tiny_model(folder: Path, *, seed: int = 0, control: tuple[str, ...] = tuple(CONTROL), **changes: Any) -> Path:
    """Write a Hugging Face folder that loads everywhere.

    Args:
        folder: made if it isn't there.
        seed: of the weights.
        control: added tokens; the first is the padding, the last the end of a turn.
        changes: fields of config.json other than the defaults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(control), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": control[-1],
        "pad_token": control[0],
        "chat_template": CHATML_JINJA,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.token_to_id(control[-1]),
        "pad_token_id": tokenizer.token_to_id(control[0]),
        **changes,
    }
    save_model(init_model(config_from_hf(config), seed), folder)
    return folder
