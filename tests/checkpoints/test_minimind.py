"""MiniMind's `.pth` files in and out: the same logits, its names, half precision, and what a wrong file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import minimind_reference as reference
import pytest
import torch

from chatwright.checkpoints.export import export_model
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.manifest import Manifest
from chatwright.checkpoints.minimind_export import export_minimind
from chatwright.checkpoints.minimind_names import (
    from_minimind_lm,
    halves_from_pairs,
    pairs_from_halves,
    to_minimind_lm,
)
from chatwright.checkpoints.store import save_checkpoint
from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.weights import load_model, read_config
from shared_files import shared
from tiny_model import make_tiny_model

IDS = torch.tensor([1, 85, 7, 20, 3, 3, 90, 2, 11, 54])
SIZES = {"dim": 64, "layers": 2, "heads": 8, "kv_heads": 2, "inner": 96, "vocab": 320}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as MiniMind's repository: `model/` with the tokenizer, `out/` for weights."""
    made = make_tiny_model(tmp_path / "tiny")
    (tmp_path / "minimind/out").mkdir(parents=True)
    (tmp_path / "minimind/model").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (made / name).rename(tmp_path / "minimind/model" / name)
    return tmp_path / "minimind"


def save(path: Path, weights: dict[str, Any], *, half: bool = False) -> Path:
    torch.save({name: value.half() if half else value for name, value in weights.items()}, path)
    return path


def our_logits(resolved: ResolvedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    layout = SegmentLayout.from_lengths([len(ids)])
    with torch.no_grad():
        return load_model(resolved.folder).logits(ids, torch.arange(len(ids)), layout)


def distance(ours: torch.Tensor, other: torch.Tensor) -> float:
    return float((ours - other).norm() / other.norm())


def test_minimind_lm_of_2025_gives_its_logits(project: Path) -> None:
    weights = reference.make_weights(**SIZES)
    resolved = resolve_model(save(project / "out/minimind_sft_64.pth", weights))
    expected = reference.logits(weights, IDS, heads=8, theta=1e6)
    assert distance(our_logits(resolved), expected) < 1e-5
    assert distance(our_logits(resolved), reference.logits(weights, IDS, heads=8, theta=1e4)) > 1e-3
    config = read_config(resolved.folder)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["tie_word_embeddings"]) == (8, 2, True)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 1e6)


def test_minimind_lm_of_2024_had_sixteen_heads_and_kept_its_mask(project: Path) -> None:
    weights = reference.make_weights(**{**SIZES, "heads": 16, "kv_heads": 8})
    expected = reference.logits(weights, IDS, heads=16, theta=1e4)
    kept = {**weights, "layers.0.attention.mask": torch.zeros(1, 1, 512, 512)}
    resolved = resolve_model(save(project / "out/pretrain_64.pth", kept))
    assert distance(our_logits(resolved), expected) < 1e-5
    assert read_config(resolved.folder)["max_position_embeddings"] == 512


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_minimind_for_causal_lm_gives_the_logits_of_transformers(project: Path, kind: str) -> None:
    """2025's is Llama (as its own converter says), 2026's with norms over q and k is Qwen3."""
    transformers = pytest.importorskip("transformers")
    kv_heads, eps = (2, 1e-5) if kind == "llama" else (4, 1e-6)
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, head_dim=8,
        num_key_value_heads=kv_heads, vocab_size=320, rms_norm_eps=eps, tie_word_embeddings=True,
        max_position_embeddings=32768, rope_theta=1e6, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    resolved = resolve_model(save(project / "out/full_sft_64.pth", model.state_dict()))
    with torch.no_grad():
        expected = model(IDS[None]).logits[0]
    assert read_config(resolved.folder)["model_type"] == kind
    assert distance(our_logits(resolved), expected) < 1e-5


def test_half_precision_becomes_float32_and_a_file_to_resume_from_gives_its_model(project: Path) -> None:
    weights = reference.make_weights(**SIZES)
    resolved = resolve_model(save(project / "out/pretrain_64.pth", weights, half=True))
    model = load_model(resolved.folder)
    stored = weights["layers.1.feed_forward.w2.weight"].half().float()
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, stored)
    assert json.loads((resolved.folder / "chatwright_origin.json").read_text())["dtype"] == "float16"
    halves = {name: value.half() for name, value in weights.items()}
    torch.save({"model": halves, "optimizer": {"state": {}}, "step": 7}, project / "out/pretrain_64_resume.pth")
    again = resolve_model(project / "out/pretrain_64_resume.pth")
    assert torch.equal(our_logits(again), our_logits(resolved))


def test_it_is_converted_once_and_again_when_anything_changes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(project / "out/pretrain_64.pth", reference.make_weights(**SIZES))
    first, second = resolve_model(path), resolve_model(path)
    assert first == second and first.source == str(path)
    assert capsys.readouterr().err.count("converting pretrain_64.pth") == 1
    save(path, reference.make_weights(**SIZES, seed=1))
    assert resolve_model(path).folder != first.folder
    path.with_suffix(".json").write_text('{"rope_theta": 10000.0}')
    third = resolve_model(path)
    assert read_config(third.folder)["rope_theta"] == 1e4


def test_the_tokenizer_is_found_or_named(project: Path, tmp_path: Path) -> None:
    path = save(project / "out/pretrain_64.pth", reference.make_weights(**SIZES))
    (project / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"no tokenizer.json for these weights(.|\n)*pretrain_64.pth:FOLDER"):
        resolve_model(path)
    named = resolve_model(f"{path}:{tmp_path / 'elsewhere'}")
    assert (named.folder / "tokenizer.json").is_file()
    assert resolve_model(named.source).folder == named.folder
    with pytest.raises(ModelError, match="has 320 rows of embedding, but the tokenizer found for it has 6,400 ids"):
        resolve_model(f"{path}:{shared('data/tokenizers/minimind')}")


@pytest.mark.parametrize(("data", "message"), [(b"", "is empty"), (b"\x93\x07no weights" * 9, "a damaged one")])
def test_a_damaged_file_is_told_before_a_missing_tokenizer(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "some_64.pth").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        resolve_model(tmp_path / "some_64.pth")


def broken(change: str) -> dict[str, Any]:
    weights = reference.make_weights(**SIZES)
    if change == "missing and left over":
        del weights["layers.1.attention.wo.weight"], weights["norm.weight"]
        weights["layers.0.attention.extra.weight"] = torch.zeros(2)
    elif change == "shape":
        weights["layers.1.feed_forward.w1.weight"] = torch.zeros(95, 64)
    elif change == "lora":
        weights = {"layers.0.attention.wq.lora.A.weight": torch.zeros(4, 4)}
    elif change == "other model":
        weights = {"h.0.attn.c_attn.weight": torch.zeros(4, 4)}
    elif change == "code":
        weights["norm.weight"] = RunsCode()
    return weights


class RunsCode:
    """A pickle that would call a function of this machine."""

    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing and left over", r"2 missing: layers.1.attention.wo.weight, norm.weight\n  1 unexpected: "
                                  r"layers.0.attention.extra.weight"),
        ("shape", r"layers.1.feed_forward.w1.weight is \[95, 64\], where \[96, 64\] fits the others"),
        ("lora", "holds a LoRA of MiniMind"),
        ("other model", r"holds no MiniMind model: it begins with h.0.attn.c_attn.weight"),
        ("code", "holds more than tensors"),
    ],
)  # fmt: skip
def test_what_a_wrong_file_says(project: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(broken(change), project / "out/bad_64.pth")
    with pytest.raises(ModelError, match=message):
        resolve_model(project / "out/bad_64.pth")
    assert "must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"heads": 4}', "says 'heads', which isn't among"),
        ('{"rope_theta": "x"}', "no positive number"),
        ('{"num_attention_heads": 6}', "6 heads don't divide 64 rows of q"),
        ('{"norm_topk_prob": 1}', "neither true nor false"),
        ("[1]", "must hold one JSON object"),
    ],
)
def test_what_is_said_beside_a_file_is_checked(project: Path, said: str, message: str) -> None:
    path = save(project / "out/pretrain_64.pth", reference.make_weights(**SIZES))
    path.with_suffix(".json").write_text(said)
    with pytest.raises(ModelError, match=message):
        resolve_model(path)


def test_names_and_rows_go_both_ways() -> None:
    names = list(reference.make_weights(**SIZES))
    names += [f"layers.3.feed_forward.experts.2.{name}.weight" for name in ("w1", "w2", "w3")]
    names += ["layers.3.feed_forward.gate.weight", "layers.3.feed_forward.shared_experts.w2.weight"]
    for name in names:
        ours = from_minimind_lm(name)
        assert ours is not None and ours != name
        assert to_minimind_lm(str(ours)) == name
    assert from_minimind_lm("layers.0.attention.bias.weight") is None
    weight = torch.randn(24, 5)
    assert torch.equal(pairs_from_halves(halves_from_pairs(weight, 4), 4), weight)
    assert halves_from_pairs(torch.arange(8)[:, None], 1)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def checkpoint(tmp_path: Path, stage: str, **changes: Any) -> Path:
    """A run with one checkpoint of a tiny model."""
    made = make_tiny_model(tmp_path / f"model-{stage}", rope_theta=1e6, **changes)

    def write(folder: Path) -> None:
        for path in made.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    save_checkpoint(tmp_path / f"run-{stage}", Manifest(step=1, stage=stage), write)
    return tmp_path / f"run-{stage}"


@pytest.mark.parametrize("layout", ["minimind", "minimind-notebook"])
def test_an_export_comes_back_as_it_was(tmp_path: Path, layout: Any) -> None:
    resolved = resolve_model(checkpoint(tmp_path, "pretrain"))
    report = export_minimind(resolved, tmp_path / "out", layout=layout, dtype="float32")
    path = tmp_path / "out/pretrain_32.pth"
    written = torch.load(path, weights_only=True)
    head = "output.weight" if layout == "minimind-notebook" else "lm_head.weight"
    assert head in written and len(written) == len(load_model(resolved.folder).state_dict()) + 1
    back = resolve_model(path)
    assert distance(our_logits(back), our_logits(resolved)) < 1e-6
    assert read_config(back.folder)["num_attention_heads"] == 4
    assert "strict=True" in report.lines()[-1]
    if layout == "minimind-notebook":
        assert distance(reference.logits(written, IDS, heads=4, theta=1e6), our_logits(resolved)) < 1e-5


def test_half_precision_and_names_by_stage(tmp_path: Path) -> None:
    names = {"pretrain": "pretrain", "sft": "full_sft", "dpo": "dpo"}
    for stage, prefix in names.items():
        resolved = resolve_model(checkpoint(tmp_path, stage))
        export_minimind(resolved, tmp_path / "out")
        written = torch.load(tmp_path / f"out/{prefix}_32.pth", weights_only=True)
        assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    with pytest.raises(ModelError, match="exists already"):
        export_minimind(resolved, tmp_path / "out")
    export_minimind(resolved, tmp_path / "out", prefix="mine")
    assert (tmp_path / "out/mine_32.pth").is_file()
    exported = export_model(resolved, tmp_path / "plain")
    with pytest.raises(ModelError, match="no beginning of a file's name"):
        export_minimind(resolved, tmp_path / "out", prefix="../mine")
    with pytest.raises(ModelError, match="give --prefix"):
        export_minimind(resolve_model(exported.folder), tmp_path / "out")


def test_transformers_loads_an_export_with_every_name(tmp_path: Path) -> None:
    """`strict=True` into Llama, whose names MiniMindForCausalLM has."""
    transformers = pytest.importorskip("transformers")
    resolved = resolve_model(checkpoint(tmp_path, "sft"))
    export_minimind(resolved, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(resolved.folder))
    written = torch.load(tmp_path / "out/full_sft_32.pth", weights_only=True)
    model.load_state_dict(written, strict=True)
    assert set(written) == set(model.state_dict()) and len(written) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "no model with biases"),
        ({"tie_word_embeddings": False}, "an output head of its own"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "the family qwen2"),
        ({"head_dim": 16}, "heads of 16 dimensions"),
    ],
)
def test_what_minimind_has_no_model_for_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    resolved = resolve_model(checkpoint(tmp_path, "sft", **changes))
    with pytest.raises(ModelError, match=message):
        export_minimind(resolved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reward_model_is_refused(tmp_path: Path) -> None:
    """Its file would hold `score.weight` and a head that it never had, and load nowhere."""
    made = make_tiny_model(tmp_path / "model")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(ModelError, match="a reward model"):
        export_minimind(resolve_model(made), tmp_path / "out", prefix="reward")
    assert not (tmp_path / "out").exists()


EXPERTS_2025 = {"model_type": "minimind", "use_moe": True, "n_routed_experts": 4, "n_shared_experts": 1}
EXPERTS_2026 = {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 64, "head_dim": 8,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6,
    "router_aux_loss_coef": 5e-4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("experts", "layout"), [(EXPERTS_2025, "minimind"), (EXPERTS_2025, "minimind-notebook"), (EXPERTS_2026, "minimind")]
)
def test_a_mixture_of_experts_goes_out_and_in(tmp_path: Path, experts: dict[str, Any], layout: Any) -> None:
    """The file's name says `_moe`; nothing is said beside it but what the weights can't tell."""
    resolved = resolve_model(checkpoint(tmp_path, "sft", **experts))
    report = export_minimind(resolved, tmp_path / "out", layout=layout, dtype="float32")
    path = tmp_path / "out/full_sft_32_moe.pth"
    back = resolve_model(path)
    assert distance(our_logits(back), our_logits(resolved)) < 1e-6
    ours, theirs = read_config(resolved.folder), read_config(back.folder)
    same = ("num_experts_per_tok", "n_routed_experts", "n_shared_experts", "num_experts", "moe_intermediate_size")
    assert {key: ours.get(key) for key in same} == {key: theirs.get(key) for key in same}
    assert "use_moe=True" in report.lines()[-1]
    expert = "layers.0.feed_forward.experts.3.w1" if layout == "minimind-notebook" else "mlp.experts.3.gate_proj"
    assert any(expert in name for name in torch.load(path, weights_only=True))


@pytest.mark.parametrize("experts", [{**EXPERTS_2025, "num_experts_per_tok": 3}, EXPERTS_2026])
def test_weights_of_experts_that_are_not_divided_by_their_sum_come_back_so(
    tmp_path: Path, experts: dict[str, Any]
) -> None:
    """`norm_topk_prob: false`, which no weight tells and MiniMind's code doesn't have by itself."""
    resolved = resolve_model(checkpoint(tmp_path, "sft", **{**experts, "norm_topk_prob": False}))
    report = export_minimind(resolved, tmp_path / "out", dtype="float32")
    assert "norm_topk_prob=False" in report.lines()[-1]
    assert distance(our_logits(resolve_model(tmp_path / "out/full_sft_32_moe.pth")), our_logits(resolved)) < 1e-6
