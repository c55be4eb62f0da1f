"""Makes checkpoints as nanochat writes them: tensors by its names, a meta file, a pickled tiktoken encoding."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatwright.checkpoints.nanochat_names import config_of
from chatwright.checkpoints.tiktoken_files import ALPHABET
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model
from chatwright.templates.native import NATIVE_FORMATS
from tiny_model import CORPUS

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL = NATIVE_FORMATS["nanochat"].control
OURS_TO_THEIRS = {
    "self_attn.q_proj": "attn.c_q",
    "self_attn.k_proj": "attn.c_k",
    "self_attn.v_proj": "attn.c_v",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "model.layers.": "transformer.h.",
    "model.embed_tokens": "transformer.wte",
}


class Encoding:
    """Pickles as tiktoken's class of this name does."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


Encoding.__module__ = "tiktoken.core"


def pickled_encoding(state: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> bytes:
    """What `pickle.dumps(tiktoken.Encoding(...))` gives for this state."""
    kept = {name: sys.modules.get(name) for name in ("tiktoken", "tiktoken.core")}
    core = types.ModuleType("tiktoken.core")
    core.Encoding = Encoding  # type: ignore[attr-defined]
    sys.modules |= {"tiktoken": types.ModuleType("tiktoken"), "tiktoken.core": core}
    try:
        return pickle.dumps(Encoding(state), protocol=protocol)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def trained_ranks(size: int = 330, pattern: str = PATTERN) -> dict[bytes, int]:
    """Merges counted on a few sentences: bytes first, each token's id its rank."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    values = {character: value for value, character in enumerate(ALPHABET)}
    written = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes([value]): value for value in range(256)}
    for token, _ in written:
        joined = bytes(values[character] for character in token)
        ranks.setdefault(joined, len(ranks))
    return ranks


def encoding_state(ranks: dict[bytes, int], pattern: str = PATTERN) -> dict[str, Any]:
    """The parts of nanochat's encoding: the special tokens follow the ranks."""
    special = {name: len(ranks) + place for place, name in enumerate(SPECIAL)}
    return {"name": "rustbpe", "pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": special}


def write_tokenizer(folder: Path, state: dict[str, Any]) -> Path:
    """tokenizer.pkl and token_bytes.pt, the latter as nanochat's tok_train makes it: of each token's decoded text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickled_encoding(state))
    lengths = torch.zeros(len(state["mergeable_ranks"]) + len(state["special_tokens"]), dtype=torch.int32)
    for token, index in state["mergeable_ranks"].items():
        text = token.decode("utf-8", errors="replace")  # as `Encoding.decode` has it
        lengths[index] = len(text.encode("utf-8"))
    torch.save(lengths, folder / "token_bytes.pt")
    return folder / "tokenizer.pkl"


def model_config(depth: int = 2, vocab_size: int = 339) -> dict[str, int]:
    """GPTConfig of a tiny model with grouped keys."""
    return {
        "sequence_len": 64,
        "vocab_size": vocab_size,
        "n_layer": depth,
        "n_head": 4,
        "n_kv_head": 2,
        "n_embd": 32,
    }


def nanochat_name(name: str) -> str:
    """nanochat's name of one of transformers' tensors."""
    for ours, theirs in OURS_TO_THEIRS.items():
        name = name.replace(ours, theirs)
    return name


def write_checkpoint(
    folder: Path,
    step: int,
    config: dict[str, int] | None = None,
    *,
    seed: int = 0,
    compiled: bool = False,
    pad: int = 0,
) -> CausalLM:
    """model_….pt and meta_….json of random weights; returns the model that they are.

    Args:
        compiled: with `_orig_mod.` before every name. pad: rows behind the vocabulary.
    """
    config = config or model_config()
    folder.mkdir(parents=True, exist_ok=True)
    model = init_model(config_from_hf(config_of(config, "test")), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    state = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            tensor = parameter.detach().clone()
            if "embed_tokens" in name:
                tensor = tensor.bfloat16()  # as nanochat keeps it
                parameter.copy_(tensor)
            if pad and "layers" not in name:
                tensor = torch.cat([tensor, torch.zeros(pad, tensor.shape[1], dtype=tensor.dtype)])
            state["_orig_mod." * compiled + nanochat_name(name)] = tensor
    torch.save(state, folder / f"model_{step:06d}.pt")
    meta = {"step": step, "val_bpb": 0.9, "model_config": config, "user_config": {"run": "dummy"}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta), encoding="utf-8")
    return model
