"""MA-RLHF's recipes on the shared data: many sources in one mixture, its template, SFT, then DPO on one adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings, find_recipe, load_recipe
from chatwright.templates.laws import check_laws
from shared_files import shared
from tiny_model import make_tiny_model
from training_runs import CPU


@pytest.fixture(autouse=True)
def _shared_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data")))
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


def small(name: str, model: Path, out: Path, *more: str) -> RunSettings:
    """The shipped recipe with few rows of every source and two steps on a tiny model."""
    plain = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    overrides = []
    for number, entry in enumerate(plain["data"]):
        overrides += [f"data.{number}.stop={entry.get('start', 0) + 6}", f"data.{number}.max_rows=null"]
    for number in range(len(plain.get("heldout", {}).get("data", ()))):
        overrides.append(f"heldout.data.{number}.stop=10")
    quick = ["train.max_steps=2", "train.device=cpu", "train.dtype=float32", "train.threads=1", "eval.every=null"]
    return load_recipe(name, [f"model={model}", f"out={out}", "max_tokens=1500", *overrides, *quick, *more])


def run(settings: RunSettings) -> RunData:
    data = build_data(settings)
    assert isinstance(data, RunData)
    model = build_model(settings, data.text, CPU)
    build_trainer(settings, data, model, CPU, show_progress=False).train()
    return data


@pytest.mark.slow
def test_sft_then_dpo_on_one_adapter(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", max_position_embeddings=2048)
    sft = small("ma_rlhf_sft", base, tmp_path / "sft", "packing.packs_per_step=1")
    data = run(sft)
    assert {entry.name.split(" (")[0] for entry in data.entries} >= {"alpaca-libre", "hh-rlhf", "ARC-Easy", "GSM8K"}
    assert data.text.template.settings.format == "role_text"
    text = data.text.tokenizer.decode(data.store.example(0)[0].tolist(), with_control=True)
    assert text.startswith("<|im_start|>\n#") and "\n#ASSISTANT:" in text and text.endswith("<|im_end|>")

    dpo = small("ma_rlhf_dpo", tmp_path / "sft", tmp_path / "dpo")
    pairs = run(dpo)
    assert pairs.text.template.settings.format == "role_text", "the template is the one that the model was trained with"
    folder = latest_checkpoint(tmp_path / "dpo")
    assert folder is not None and (folder / "adapter_model.safetensors").is_file()


def test_the_sources_of_the_two_stages_are_disjoint_where_they_share_a_file() -> None:
    entries = {
        name: next(e for e in load_recipe(name).data if e.source_name == "hh-rlhf")
        for name in ("ma_rlhf_sft", "ma_rlhf_dpo")
    }
    assert entries["ma_rlhf_sft"].path == entries["ma_rlhf_dpo"].path
    assert entries["ma_rlhf_sft"].stop == entries["ma_rlhf_dpo"].start


def test_the_laws_hold_on_the_mixtures_own_rows(tmp_path: Path) -> None:
    from chatwright.recipes.data import prepare_text
    from chatwright.recipes.rendering import read_entry

    base = make_tiny_model(tmp_path / "base")
    settings = small("ma_rlhf_sft", base, tmp_path / "run")
    template = prepare_text(settings).template
    rows = [
        row
        for entry in settings.data
        if entry.source_name in ("self-instruct", "hh-rlhf", "chatterbot")
        for row in read_entry(entry.model_copy(update={"stop": 20, "max_rows": None}), 0)[0][:8]
    ]
    assert len(rows) > 10
    assert [result.failures for result in check_laws(template, rows) if not result.passed] == []
