"""Exports: what transformers loads from them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatwright.adapters.lora import adapted_layers, attach_lora
from chatwright.adapters.peft_files import load_peft, save_peft
from chatwright.adapters.settings import LoraSettings
from chatwright.adapters.token_rows import attach_token_rows
from chatwright.checkpoints.export import MARKER_NAME, export_model
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import Manifest
from chatwright.checkpoints.store import save_checkpoint
from chatwright.checkpoints.tensors import TrainingState, save_tensors
from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.config import DecoderConfig
from chatwright.models.families import config_from_hf
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import init_model, load_model, save_model
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def tiny_config() -> DecoderConfig:
    return config_from_hf(CONFIG)


def write_tokenizer(folder: Path) -> None:
    tokens = {"<|end|>": 0, "<|stop|>": 1, **{chr(97 + index): index + 2 for index in range(26)}}
    added = [{"id": i, "content": t, "special": True} for t, i in tokens.items() if i < 2]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "BPE", "vocab": tokens, "merges": []}
    content = {"version": "1.0", "added_tokens": [token | flags for token in added], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "chatwright.json").write_text('{"template_identity": "abc"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.6}')


def make_checkpoint(run: Path) -> CausalLM:
    """A checkpoint as a run saves it: fp32 weights, texts, training state."""
    model = init_model(tiny_config(), seed=0)

    def write(folder: Path) -> None:
        save_model(model, folder)
        write_tokenizer(folder)
        save_tensors({"x": torch.zeros(1)}, folder / "adapter_masters.safetensors")
        TrainingState(1, 1, 1, {"m": torch.zeros(3)}).save(folder)

    save_checkpoint(run, Manifest(step=1, stage="sft"), write)
    return model


def logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden, _ = model(ids, torch.arange(len(ids)), SegmentLayout.from_lengths([len(ids)]))
        return model.output_head().logits(hidden)


def test_an_export_is_a_clean_folder(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "run")
    report = export_model(resolve_model(tmp_path / "run"), tmp_path / "out", dtype="bfloat16")
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "chat_template.jinja",
        "chatwright.json",
        MARKER_NAME,
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {tensor.dtype for tensor in load_file(report.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((report.folder / "config.json").read_text())["dtype"] == "bfloat16"
    generation = json.loads((report.folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [0, 1], "temperature": 0.6}, "every stop id, and the rest as it was"
    assert TextTokenizer.load(report.folder).identity == TextTokenizer.load(tmp_path / "run" / "step-000001").identity
    assert str(tmp_path) not in (report.folder / MARKER_NAME).read_text()
    assert report.lines()[0].startswith("model, bfloat16, ")


def test_transformers_loads_the_export_with_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_checkpoint(tmp_path / "run")
    folder = export_model(resolve_model(tmp_path / "run"), tmp_path / "out", dtype="float32").folder
    ids = torch.arange(2, 30)
    expected = logits(model, ids)
    assert torch.equal(logits(load_model(folder), ids), expected)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.generation_config.eos_token_id == [0, 1]
    with torch.no_grad():
        assert (theirs(ids[None]).logits[0] - expected).norm() / expected.norm() < 1e-5


def test_a_model_from_elsewhere_is_exported_too(tmp_path: Path) -> None:
    source = shared("models/stories260k")
    folder = export_model(resolve_model(source), tmp_path / "out", dtype="float32").folder
    before, after = load_model(source), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert TextTokenizer.load(folder).stop_ids == TextTokenizer.load(source).stop_ids


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "run")
    resolved = resolve_model(tmp_path / "run")
    (tmp_path / "out").mkdir()
    export_model(resolved, tmp_path / "out", dtype="float32")
    export_model(resolved, tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="isn't an export"):
        export_model(resolved, tmp_path / "mine")
    with pytest.raises(ModelError, match="isn't an export"):
        export_model(resolved, tmp_path / "run")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_what_can_not_be_exported(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "run")
    resolved = resolve_model(tmp_path / "run")
    with pytest.raises(ModelError, match="'int4'"):
        export_model(resolved, tmp_path / "out", dtype="int4")
    with pytest.raises(ModelError, match="nothing to merge"):
        export_model(resolved, tmp_path / "out", merge=True)
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 3] = 1e6
    save_model(model, tmp_path / "large")
    with pytest.raises(ModelError, match=r"not finite in float16, such as model\.embed_tokens(.|\n)*bfloat16"):
        export_model(resolve_model(tmp_path / "large"), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_an_adapter_stays_an_adapter_without_merge(tmp_path: Path) -> None:
    save_model(init_model(tiny_config(), seed=0), tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 4})
    )
    save_tensors({"base_model.model.lora_A.weight": torch.zeros(4, 32)}, adapter / "adapter_model.safetensors")
    write_tokenizer(adapter)
    report = export_model(resolve_model(adapter), tmp_path / "out")
    assert report.kind == "adapter" and report.dtype == "float32"
    config = json.loads((report.folder / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": str(tmp_path / "base"), "r": 4}
    assert (report.folder / "chat_template.jinja").exists() and not (report.folder / "config.json").exists()

    from_hub = ResolvedModel(tmp_path / "base", "hub:owner/name@0123", adapter=adapter)
    config = json.loads((export_model(from_hub, tmp_path / "out").folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "0123")


def make_adapter(folder: Path) -> tuple[Path, CausalLM]:
    """A base beside an adapter checkpoint with trained-looking weights and token rows, and the adapted model."""
    save_model(init_model(tiny_config(), seed=0), folder / "base")
    write_tokenizer(folder / "base")
    model = load_model(folder / "base")
    attach_lora(model, LoraSettings(rank=4), seed=1)
    attach_token_rows(model, [5, 6], seed=2)
    generator = torch.Generator().manual_seed(3)
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, 0.0, 0.05, generator=generator)
    manifest = Manifest(step=1, stage="sft", base_source=str(folder / "base"), base_hash=model_hash(folder / "base"))

    def write(path: Path) -> None:
        save_peft(model, path, base_name=str(folder / "base"))
        write_tokenizer(path)

    return save_checkpoint(folder / "run", manifest, write), model


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_merged_adapter_is_a_plain_model(tmp_path: Path, dtype: str, bound: float) -> None:
    checkpoint, adapted = make_adapter(tmp_path)
    report = export_model(resolve_model(checkpoint), tmp_path / "out", dtype=dtype, merge=True)
    lines = report.lines()
    assert report.kind == "merged model" and "greedy agreement" in lines[1]
    assert (len(lines) == 3 and "rounded to bfloat16: largest logit error" in lines[2]) == (dtype != "float32")
    ids = torch.arange(2, 30)
    expected = logits(adapted.eval(), ids)
    plain, base = load_model(report.folder), load_model(tmp_path / "base")
    assert (logits(plain, ids) - expected).norm() / expected.norm() < bound
    assert (logits(base, ids) - expected).norm() / expected.norm() > 5 * bound, "the adapter does something"
    config = json.loads((report.folder / "config.json").read_text())
    assert config["dtype"] == dtype and config["vocab_size"] == 60
    assert json.loads((report.folder / "generation_config.json").read_text())["eos_token_id"] == [0, 1]


def test_an_exported_adapter_loads_again(tmp_path: Path) -> None:
    checkpoint, adapted = make_adapter(tmp_path)
    folder = export_model(resolve_model(checkpoint), tmp_path / "out").folder
    resolved = resolve_model(folder)
    assert resolved.folder == tmp_path / "base" and resolved.adapter == folder
    model = load_model(resolved.folder)
    load_peft(model, folder)
    ids = torch.arange(2, 30)
    assert torch.equal(logits(model.eval(), ids), logits(adapted.eval(), ids))
