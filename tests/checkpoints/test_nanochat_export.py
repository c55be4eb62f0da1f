"""A model goes out in nanochat's folders and comes back the same; what nanochat has no form for is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.nanochat_export import export_nanochat
from chatwright.cli.export import run_export
from chatwright.errors import ModelError
from chatwright.models.weights import load_model
from chatwright.templates.tokenizer import TextTokenizer
from nanochat_files import encoding_state, model_config, nanochat_name, trained_ranks, write_checkpoint, write_tokenizer
from training_runs import conversations, recipe, train, write_rows

STATE = encoding_state(trained_ranks())


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint of nanochat's, by name."""
    write_tokenizer(tmp_path / "nanochat/tokenizer", STATE)
    size = len(STATE["mergeable_ranks"]) + 9
    write_checkpoint(
        tmp_path / "nanochat/mid_checkpoints/d2", 813, {**model_config(vocab_size=size), "sequence_len": 256}
    )
    return f"nanochat:{tmp_path / 'nanochat/mid_checkpoints'}"


def test_a_trained_run_comes_back_as_it_was(model: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(8))
    settings = recipe(Path(model), rows, tmp_path / "run", template={"format": "nanochat"}, max_tokens=256)
    run = train(settings.model_copy(update={"model": model}))
    run_export(str(tmp_path / "run"), (str(tmp_path / "out"), None), "nanochat", False, None, None)
    step = run.result.progress.step
    written = tmp_path / f"out/chatsft_checkpoints/d2/model_{step:06d}.pt"
    content = torch.load(written, weights_only=True)
    assert set(content) == {nanochat_name(name) for name in run.weights}
    back = resolve_model(f"nanochat:{tmp_path / 'out/chatsft_checkpoints'}/d2@{step}")
    for name, tensor in load_model(back.folder).state_dict().items():
        assert torch.equal(tensor, run.weights[name].float()), name
    assert TextTokenizer.load(back.folder).control_ids == STATE["special_tokens"]
    pickled = (tmp_path / "out/tokenizer/tokenizer.pkl").read_bytes()
    with pytest.raises(ModelError, match="exists already"):
        export_nanochat(resolve_model(tmp_path / "run"), tmp_path / "out")
    assert (tmp_path / "out/tokenizer/tokenizer.pkl").read_bytes() == pickled


def test_the_source_is_named_where_no_stage_tells_it(model: str, tmp_path: Path) -> None:
    resolved = resolve_model(model)
    with pytest.raises(ModelError, match="no stage tells"):
        export_nanochat(resolved, tmp_path / "out")
    with pytest.raises(ModelError, match=r"unknown source 'chat'.*\n.*base, mid, sft, rl"):
        export_nanochat(resolved, tmp_path / "out", source="chat")
    assert not (tmp_path / "out").exists()
    export_nanochat(resolved, tmp_path / "out", source="rl", dtype="bfloat16")
    assert (tmp_path / "out/chatrl_checkpoints/d2/meta_000000.json").is_file()


def test_another_tokenizer_is_not_overwritten(model: str, tmp_path: Path) -> None:
    (tmp_path / "out/tokenizer").mkdir(parents=True)
    (tmp_path / "out/tokenizer/tokenizer.pkl").write_bytes(b"mine")
    with pytest.raises(ModelError, match="is another tokenizer"):
        export_nanochat(resolve_model(model), tmp_path / "out", source="mid")
    assert (tmp_path / "out/tokenizer/tokenizer.pkl").read_bytes() == b"mine"


def test_other_models_are_refused_by_what_differs(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model with family 'llama' \(only 'nanochat'\).*tied embedding True"):
        export_nanochat(resolve_model(tiny_model), tmp_path / "out", source="sft")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"head_dim": 16}, r"head size 16 \(only 8\)"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope type 'linear' \(only 'default'\)"),
    ],
)
def test_shapes_that_its_code_cannot_be_told_are_refused(
    model: str, tmp_path: Path, change: dict[str, object], match: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(resolve_model(model).folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=match):
        export_nanochat(resolve_model(folder), tmp_path / "out", source="mid")


def test_a_vocabulary_that_some_versions_would_fill_up_is_told(model: str, tmp_path: Path) -> None:
    report = export_nanochat(resolve_model(model), tmp_path / "out", source="mid")
    assert any("no multiple of 64" in note for note in report.notes)
