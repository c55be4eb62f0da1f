"""A run is resumed only as what it was; what changed is named. What doesn't decide the weights may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatwright.checkpoints.manifest import read_manifest, record_files
from chatwright.checkpoints.store import list_checkpoints
from chatwright.errors import CheckpointError, UserError
from chatwright.recipes import resuming
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.train.hooks import Hook, StepRecord
from tiny_model import CONTROL, make_tiny_model
from training_runs import conversations, differing_bits, prepare, recipe, train, write_rows


class Stop(Hook):
    """Ends a run as Ctrl-C does, behind step 2."""

    def __init__(self, trainer_of: Callable[[], Any]) -> None:
        self.trainer_of = trainer_of

    def on_step(self, record: StepRecord) -> None:
        """Ask for the end."""
        if record.step == 2:
            self.trainer_of().stop_requested = True


def half_a_run(settings: RunSettings) -> None:
    """Train two steps and save."""
    box: list[Any] = []
    trainer, _, _ = prepare(settings, hooks=[Stop(lambda: box[0])])
    box.append(trainer.trainer)
    result = trainer.train()
    assert result.interrupted and result.progress.step == 2


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """12 conversations."""
    return write_rows(tmp_path / "rows.jsonl", conversations(12))


@pytest.fixture
def begun(tiny_model: Path, rows: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """A run of 8 steps that stopped after 2; gives its settings with changes."""

    def settings(**changes: Any) -> RunSettings:
        base = {"train": {"epochs": 2}, "heldout": {"share": 0.2}}
        for name, value in changes.items():
            base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
        return recipe(tiny_model, rows, tmp_path / "run", **base)

    half_a_run(settings())
    return settings


def replace_text(rows: Path, old: str, new: str) -> None:
    assert len(old) == len(new) and old in rows.read_text()
    rows.write_text(rows.read_text().replace(old, new))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"optimizer": {"learning_rate": 2e-3}}, r"optimizer\.learning_rate: was 0\.001, is 0\.002"),
    "clipping": ({"optimizer": {"max_grad_norm": None}}, r"optimizer\.max_grad_norm: was 1\.0, is None"),
    "schedule": ({"schedule": {"name": "constant"}}, r"schedule\.name: was cosine, is constant"),
    "epochs": ({"train": {"epochs": 3}}, r"train\.epochs: was 2\.0, is 3\.0"),
    "max_steps": ({"train": {"max_steps": 4}}, r"train\.max_steps: was None, is 4"),
    "seed": ({"train": {"seed": 5}}, r"train\.seed: was 1, is 5"),
    "dtype": ({"train": {"dtype": "float64"}}, r"train\.dtype: was float32, is float64"),
    "packing": ({"packing": {"packs_per_step": 2}}, r"packing\.packs_per_step: was 1, is 2"),
    "adapter": ({"adapter": {"rank": 2}}, r"an adapter: was False, is True"),
    "mask": ({"template": {"train_on": "last"}}, r"the data or its masks"),
    "stage": ({"stage": "mid"}, r"the data or its masks"),
    "template": ({"template": {"variables": {"x": 1}}}, r"the template"),
    "held-out rows": ({"heldout": {"share": 0.3}}, r"the held-out data"),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_a_changed_setting_is_refused_by_name(begun: Callable[..., RunSettings], change: str) -> None:
    changes, words = SETTINGS[change]
    with pytest.raises(CheckpointError, match=r"resuming would train something else(.|\n)*" + words):
        prepare(begun(**changes), resume=True)


def test_a_changed_letter_is_refused(begun: Callable[..., RunSettings], rows: Path) -> None:
    """The packing plan, which sees lengths only, is the same."""
    replace_text(rows, "Yes, a", "Yes; a")
    with pytest.raises(CheckpointError, match="the data or its masks"):
        prepare(begun(), resume=True)


def test_another_adapter_than_it_began_with_is_refused(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The checkpoint has its weights; but a DPO run measures by what it began with."""
    adapter = {"rank": 2, "alpha": 2, "targets": ["all-linear"]}
    first = train(recipe(tiny_model, rows, tmp_path / "first", adapter=adapter, train={"max_steps": 2}))
    settings = recipe(tmp_path / "first", rows, tmp_path / "run", adapter=adapter, train={"epochs": 2})
    half_a_run(settings)
    assert prepare(settings, resume=True)[0].start.step == 2
    folder = first.folder
    config, manifest = folder / "adapter_config.json", read_manifest(folder)
    config.write_text(config.read_text() + " ")
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": record_files(folder)}).to_json())
    with pytest.raises(CheckpointError, match="the adapter that it began with"):
        prepare(settings, resume=True)


def test_another_base_model_or_tokenizer_is_refused(
    begun: Callable[..., RunSettings], tmp_path: Path, tiny_model: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"- the base model"):
        prepare(begun(model=str(other)), resume=True)
    retold = make_tiny_model(tmp_path / "retold", control=(*CONTROL[:1], "<think>", *CONTROL[1:]))
    with pytest.raises(CheckpointError, match=r"- the tokenizer"):
        prepare(begun(model=str(retold)), resume=True)
    same = shutil.copytree(tiny_model, tmp_path / "same")
    assert prepare(begun(model=str(same)), resume=True)[0].start.step == 2


def test_what_does_not_decide_the_weights_may_change(
    begun: Callable[..., RunSettings], tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    """Saved and evaluated more often, layers recomputed: the same weights."""
    options = {"save_every": 1, "keep_last": 3, "activation_checkpointing": True, "log_every": 2}
    run = train(begun(train=options, eval={"every": 2}), resume=True)
    whole = train(recipe(tiny_model, rows, tmp_path / "whole", train={"epochs": 2}, heldout={"share": 0.2}))
    assert run.trainer.start.step == 2 and run.result.progress.step == whole.result.progress.step
    assert (run.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert len(list_checkpoints(run.trainer.run.path)) == 3


def test_progress_of_an_older_version_goes_on() -> None:
    """It knows a best loss, null before the first evaluation, and no other metric."""
    old = {"step": 4, "tokens": 9, "supervised_tokens": 5, "worse_evaluations": 1, "best_step": 2}
    found = resuming._progress({**old, "best_loss": 1.5})
    assert (found.best_value, found.best_metric, found.best_step, found.step) == (1.5, "heldout_loss", 2, 4)
    assert resuming._progress({**old, "best_loss": None}).best_value is None


def test_a_refusal_changes_nothing(begun: Callable[..., RunSettings], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError):
        prepare(begun(optimizer={"learning_rate": 1.0}), resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_is_never_begun_twice_by_mistake(begun: Callable[..., RunSettings]) -> None:
    with pytest.raises(UserError, match=r"holds a run already(.|\n)*--resume"):
        prepare(begun())


def test_a_moved_run_is_resumed_where_it_is(
    begun: Callable[..., RunSettings], tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "archive" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "run", moved)
    settings = load_recipe(str(moved))
    assert settings.out == str(moved)
    run = train(settings, resume=True)
    assert run.trainer.start.step == 2 and not (tmp_path / "run").exists()
    train(recipe(tiny_model, rows, tmp_path / "whole", train={"epochs": 2}, heldout={"share": 0.2}))
    assert differing_bits(moved, tmp_path / "whole") == []
