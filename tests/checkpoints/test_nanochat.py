"""nanochat's checkpoints: found as nanochat finds them, converted exactly, refused by name where they don't fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.nanochat import find_checkpoint
from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.weights import load_model
from chatwright.templates.template import load_template
from chatwright.templates.tokenizer import TextTokenizer
from nanochat_files import SPECIAL, encoding_state, model_config, trained_ranks, write_checkpoint, write_tokenizer

STATE = encoding_state(trained_ranks())
SIZE = len(STATE["mergeable_ranks"]) + len(SPECIAL)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nanochat's folder with its tokenizer; `sft/d2` and `mid/d2` have checkpoints."""
    folder = tmp_path / "nanochat"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    write_tokenizer(folder / "tokenizer", STATE)
    config = model_config(vocab_size=SIZE)
    write_checkpoint(folder / "chatsft_checkpoints/d2", 700, config, seed=700)
    write_checkpoint(folder / "mid_checkpoints/d2", 813, config, seed=813)
    return folder


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def found(name: str | Path) -> tuple[str, int]:
    checkpoint = find_checkpoint(str(name))
    assert checkpoint is not None
    return f"{checkpoint.folder.parent.name}/{checkpoint.folder.name}", checkpoint.step


def test_source_tag_and_step_are_chosen_as_nanochat_does(base: Path) -> None:
    sft = base / "chatsft_checkpoints"
    touch(sft / "d10", "model_000100.pt", "model_000700.pt", "model_000900_backup.pt")
    touch(sft / "d9", "model_005000.pt")
    assert found("nanochat:sft") == ("chatsft_checkpoints/d10", 700)
    assert found("nanochat:sft/d9") == ("chatsft_checkpoints/d9", 5000)
    assert found("nanochat:sft/d10@100") == ("chatsft_checkpoints/d10", 100)
    assert found(f"nanochat:{sft}@700") == ("chatsft_checkpoints/d10", 700)
    assert found(f"nanochat:{sft / 'd9'}") == found(sft / "d9") == ("chatsft_checkpoints/d9", 5000)
    assert found(sft / "d10/model_000100.pt") == ("chatsft_checkpoints/d10", 100)
    assert found("nanochat:mid") == ("mid_checkpoints/d2", 813)
    other = base / "rl"
    for age, tag in enumerate(("new", "old")):
        touch(other / tag, "model_000001.pt")
        os.utime(other / tag, (10 - age, 10 - age))
    assert found(f"nanochat:{other}") == ("rl/new", 1)
    assert find_checkpoint("smollm2") is None and find_checkpoint(str(base)) is None


def test_a_source_is_no_folder_of_that_name(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "sft/d3", "model_000001.pt")
    assert found("nanochat:sft") == ("chatsft_checkpoints/d2", 700)
    assert found("nanochat:./sft") == found("sft/d3") == ("sft/d3", 1)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nanochat:rl", "holds no checkpoint|no such folder"),
        ("nanochat:sft/d3", "holds no checkpoint.*\n.*there are: d2"),
        ("nanochat:sft@5", "no checkpoint of step 5.*\n.*its steps are 700"),
        ("nanochat:nowhere", "no such folder.*\n.*nanochat:base"),
        ("nanochat:sft@abc", "must be a number, found 'abc'"),
        ("nanochat:{base}", "several stages.*\n.*chatsft_checkpoints"),
    ],
)
def test_a_wrong_name_says_what_there_is(base: Path, name: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        resolve_model(name.format(base=base))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("pad", [0, 25])
def test_weights_come_over_exactly(base: Path, compiled: bool, pad: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base / "base_checkpoints/d2"
    model = write_checkpoint(folder, 10, model_config(vocab_size=SIZE), compiled=compiled, pad=pad)
    resolved = resolve_model("nanochat:base")
    assert resolved.source == f"nanochat:{folder}@10" and "once" in capsys.readouterr().err
    ours = load_model(resolved.folder)
    for (name, one), (same, other) in zip(model.named_parameters(), ours.named_parameters(), strict=True):
        assert name == same and torch.equal(one, other), name
    assert resolve_model(resolved.source) == resolved and not capsys.readouterr().err  # once


def test_transformers_loads_what_was_converted(base: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "NanoChatForCausalLM"):
        pytest.skip("this transformers has no NanoChat")
    folder = resolve_model("nanochat:sft").folder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, SIZE, (1, 12), generator=torch.Generator().manual_seed(0))
    layout_free = load_model(folder)
    with torch.no_grad():
        hidden, _ = layout_free(ids[0], torch.arange(12), SegmentLayout.from_lengths([12]))
        ours = layout_free.output_head().logits(hidden)
        assert (theirs(ids).logits[0] - ours).abs().max() < 1e-4


def test_the_tokenizer_and_template_are_nanochats(base: Path) -> None:
    folder = resolve_model("nanochat:sft/d2@700").folder
    tokenizer = TextTokenizer.load(folder)
    assert tokenizer.control_ids == STATE["special_tokens"] and tokenizer.vocab_size == SIZE
    assert tokenizer.bos_id == STATE["special_tokens"]["<|bos|>"]
    assert set(tokenizer.stop_ids) == {STATE["special_tokens"][name] for name in ("<|bos|>", "<|assistant_end|>")}
    template = load_template(tokenizer)
    assert (template.settings.format, template.trained_token_ids) == ("nanochat", ())
    assert template.stop_ids == tokenizer.stop_ids


def test_files_of_one_folder_are_enough(base: Path, tmp_path: Path) -> None:
    """As published models come: weights and tokenizer side by side."""
    folder = tmp_path / "published/d2"
    write_checkpoint(folder, 650, model_config(vocab_size=SIZE))
    with pytest.raises(ModelError, match=r"its tokenizer\.pkl is in none of"):
        resolve_model(folder)
    write_tokenizer(folder, STATE)
    assert resolve_model(folder).source == f"nanochat:{folder}@650"


def test_names_that_do_not_fit_are_all_told(base: Path) -> None:
    path = base / "chatsft_checkpoints/d2/model_000700.pt"
    state = torch.load(path)
    del state["transformer.h.1.attn.c_q.weight"]
    state["resid_lambdas"] = torch.ones(2)
    state["transformer.h.0.mlp.c_fc.weight"] = torch.ones(3, 32)
    torch.save(state, path)
    with pytest.raises(
        ModelError,
        match=r"missing 1: transformer\.h\.1\.attn\.c_q\.weight; unexpected 1: resid_lambdas; "
        r"transformer\.h\.0\.mlp\.c_fc\.weight has shape \[3, 32\], expected \[128, 32\]",
    ):
        resolve_model("nanochat:sft")
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="holds no weights by name"):
        resolve_model("nanochat:sft")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window_pattern": "SSSL"}, "another form of the model"),
        ({"n_embd": None}, "positive number for n_embd"),
        ({"n_head": 5}, "divides 32 dimensions into 5 heads"),
        ({"vocab_size": 300}, f"the tokenizer has {SIZE} tokens, the model 300"),
    ],
)
def test_settings_that_do_not_fit_are_refused(base: Path, change: dict[str, object], match: str) -> None:
    path = base / "chatsft_checkpoints/d2/meta_000700.json"
    meta = json.loads(path.read_text())
    meta["model_config"] |= change
    path.write_text(json.dumps(meta))
    with pytest.raises(ModelError, match=match):
        resolve_model("nanochat:sft")
    path.unlink()
    with pytest.raises(ModelError, match="can't be read"):
        resolve_model("nanochat:sft")


def test_a_table_of_another_tokenizer_is_refused(base: Path) -> None:
    torch.save(torch.ones(SIZE), base / "tokenizer/token_bytes.pt")
    with pytest.raises(ModelError, match=r"token_bytes\.pt: isn't of the tokenizer\.pkl beside it"):
        resolve_model("nanochat:sft")
