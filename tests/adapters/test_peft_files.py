"""Files that peft and we both read: equal logits in both directions, and what we don't have is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import LINEAR_ENDINGS, VOCAB, our_logits, our_model, probe_ids, same_in_transformers, shake_adapter
from safetensors.torch import load_file, save_file

from chatwright.adapters.lora import adapt_layer, adapted_layers, attach_lora, merge_lora
from chatwright.adapters.peft_config import short_names
from chatwright.adapters.peft_files import load_peft, save_peft
from chatwright.adapters.settings import LoraSettings
from chatwright.adapters.token_rows import attach_token_rows, row_modules
from chatwright.errors import ModelError
from chatwright.models.transformer import CausalLM

peft = pytest.importorskip("peft")
ROWS_TENSOR = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
IDS = torch.cat([torch.tensor([5, 40, 5]), probe_ids()])


def peft_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS[None]).logits[0]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() <= 1e-6 * expected.norm()  # transformers' rotary tables are float32


def through_peft(base: CausalLM, folder: Path) -> Any:
    loaded = peft.PeftModel.from_pretrained(same_in_transformers(base), folder, autocast_adapter_dtype=False)
    return loaded.to(torch.float64).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", ["standard", "rslora", "raw"])
@pytest.mark.parametrize("rows", [False, True])
def test_ours_in_peft(tmp_path: Path, tied: bool, scaling: str, rows: bool) -> None:
    model = our_model(tied=tied)
    attach_lora(model, LoraSettings(rank=3, alpha=5, scaling=scaling), seed=0)  # type: ignore[arg-type]
    if rows:
        attach_token_rows(model, [5, 40], seed=None)
    shake_adapter(model)
    ours = our_logits(model, IDS)
    save_peft(model, tmp_path, base_name="some/base")

    other = through_peft(our_model(tied=tied), tmp_path)
    assert_same(peft_logits(other), ours)
    assert not torch.allclose(peft_logits(same_in_transformers(our_model(tied=tied))), ours)
    assert_same(peft_logits(other.merge_and_unload()), ours)

    again = our_model(tied=tied)
    names = load_peft(again, tmp_path)
    assert torch.equal(our_logits(again, IDS), ours)
    assert names == list(adapted_layers(model))
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    merge_lora(again)
    assert_same(our_logits(again, IDS), ours)


PEFT_CONFIGS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "regex": {"target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers.1.mlp.up_proj": 6},
        "alpha_pattern": {"k_proj": 3, r"^model.layers.0.mlp.down_proj": 11},
    },
    "one layer": {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [1]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [40, 5]},
    "rows by name": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [40, 5]}},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_peft_in_ours_and_back(tmp_path: Path, name: str, tied: bool) -> None:
    base = our_model(tied=tied)
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **PEFT_CONFIGS[name])
    theirs = peft.get_peft_model(same_in_transformers(base), config, autocast_adapter_dtype=False).eval()
    shake_adapter(theirs)
    expected = peft_logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")

    load_peft(base, tmp_path / "theirs")
    assert_same(our_logits(base, IDS), expected)
    save_peft(base, tmp_path / "ours", base_name="some/base")
    assert_same(peft_logits(through_peft(our_model(tied=tied), tmp_path / "ours")), expected)
    merge_lora(base)
    assert_same(our_logits(base, IDS), expected)


def test_both_ends_of_an_untied_model(tmp_path: Path) -> None:
    base = our_model(tied=False)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 40], "lm_head": [7]}
    )
    theirs = peft.get_peft_model(same_in_transformers(base), config, autocast_adapter_dtype=False).eval()
    shake_adapter(theirs)
    theirs.save_pretrained(tmp_path)
    load_peft(base, tmp_path)
    assert_same(our_logits(base, IDS), peft_logits(theirs))


def test_full_precision_masters_are_stored_instead(tmp_path: Path) -> None:
    model = our_model(dtype=torch.bfloat16)
    attach_lora(model, LoraSettings(rank=2), seed=0)
    masters = {n: torch.full(p.shape, 1 / 3) for n, p in model.named_parameters() if p.requires_grad}
    save_peft(model, tmp_path, "base", tensors=masters)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert len(stored) == len(masters)


def test_rows_of_added_tokens_grow_the_vocabulary(tmp_path: Path) -> None:
    from chatwright.models.vocabulary import resize_vocab

    model = our_model()
    resize_vocab(model, VOCAB + 2)
    attach_token_rows(model, [VOCAB, VOCAB + 1], seed=3)
    save_peft(model, tmp_path, "base")
    again = our_model()
    load_peft(again, tmp_path)
    ids = torch.tensor([1, VOCAB, 5, VOCAB + 1])
    assert again.config.tokenizer_vocab_size == VOCAB + 2
    assert torch.allclose(our_logits(again, ids)[:, : VOCAB + 2], our_logits(model, ids)[:, : VOCAB + 2])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = our_model()
    attach_lora(model, LoraSettings(rank=2), seed=0)
    attach_token_rows(model, [5, 40], seed=None)
    save_peft(model, tmp_path, "some/base")
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa_niter_4"},
        {"target_parameters": ["experts"]},
        {"peft_type": "IA3"},
        {"trainable_token_indices": {"wte": [1]}},
        {"fan_in_fan_out": True},
    ],
)
def test_unsupported_fields_are_refused_by_name(saved: Path, change: dict[str, Any]) -> None:
    change_config(saved, **change)
    model = our_model()
    with pytest.raises(ModelError, match=next(iter(change))):
        load_peft(model, saved)
    assert not adapted_layers(model) and not row_modules(model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": (2, 32)}, r"layers\.9.*lora_A"),
        (
            {
                "base_model.model.lm_head.lora_A.weight": (2, 32),
                "base_model.model.lm_head.lora_B.weight": (VOCAB, 2),
            },
            "output head",
        ),
        ({"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (16, 2)}, r"q_proj has A .* expected"),
        ({"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": (32,)}, "lora_magnitude_vector"),
        (
            {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (3, 32)},
            "trainable_token_indices",
        ),
        ({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 16)}, "32 wide"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, changes: dict[str, tuple[int, ...]], says: str) -> None:
    path = saved / "adapter_model.safetensors"
    stored = load_file(path)
    save_file({**stored, **{name: torch.zeros(shape) for name, shape in changes.items()}}, path)
    model = our_model()
    with pytest.raises(ModelError, match=says):
        load_peft(model, saved)
    assert not adapted_layers(model) and not row_modules(model)


def test_missing_and_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_peft(our_model(), tmp_path / "nowhere")
    (saved / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="can't be read"):
        load_peft(our_model(), saved)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        load_peft(our_model(), saved)


def test_nothing_to_save_and_a_second_adapter_are_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match="no adapter to save"):
        save_peft(our_model(), saved, "base")
    model = our_model()
    load_peft(model, saved)
    with pytest.raises(ModelError, match="already"):
        load_peft(model, saved)


def test_target_names_are_short_only_where_every_layer_is_adapted(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.{end}" for i in range(2) for end in LINEAR_ENDINGS]
    assert short_names(names, names) == LINEAR_ENDINGS
    assert short_names(names[:1], names) == names[:1]
    model = our_model()
    adapt_layer(model, "model.layers.1.mlp.up_proj", rank=2, alpha=2.0)
    adapt_layer(model, "model.layers.0.mlp.up_proj", rank=3, alpha=4.5)
    save_peft(model, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["up_proj"]
    assert config["alpha_pattern"].keys() == config["rank_pattern"].keys() and len(config["rank_pattern"]) == 1
