"""What a checkpoint of a run holds.

A step folder is a loadable model (weights or adapter, tokenizer, chat template, stop ids) plus the
training state and a manifest.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from chatwright import __version__
from chatwright.adapters.peft_files import save_peft
from chatwright.checkpoints.contamination import marks_after
from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import Manifest, manifest_hash, read_manifest
from chatwright.checkpoints.store import keep, mark_best, save_checkpoint
from chatwright.checkpoints.tensors import TrainingState, save_tensors
from chatwright.errors import CheckpointError
from chatwright.inspection.ledger import Ledger, LedgerError, Stage
from chatwright.models.families import config_to_hf
from chatwright.models.reward_model import RewardModel, reward_config
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import read_config, save_weights
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.recipes.ancestry import start_of
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.planning import contamination_marks
from chatwright.recipes.resuming import ADAPTER_MASTERS
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import TrainingData
from chatwright.recipes.template_record import save_template_record
from chatwright.run_folder import RunFolder
from chatwright.runtime import Runtime, determinism_tuple
from chatwright.train.evaluation import LOSSES
from chatwright.train.trainer import Progress


class CheckpointWriter:
    """Writes a run's checkpoints; rank 0 writes, the others wait."""

    def __init__(
        self,
        settings: RunSettings,
        data: TrainingData,
        model: ModelSetup,
        optimizer: MasterOptimizer,
        run: RunFolder,
        runtime: Runtime,
        parent: Path | None,
    ) -> None:
        self.settings, self.data, self.model = settings, data, model
        self.optimizer, self.run, self.runtime = optimizer, run, runtime
        self.parent = manifest_hash(parent) if parent is not None else None
        self.identity = data.identity()
        if parent is not None and runtime.is_main:
            self._settle(parent)
        self.contamination = self._contamination() if runtime.is_main else {}
        base = data.text.resolved
        self.base_hash = model_hash(base.folder, new=base.new) if runtime.is_main else None
        self.start = start_of(base) if runtime.is_main else (None, None)

    def _contamination(self) -> dict[str, int]:
        """The marks of this run's rows, and of those that the model was trained on before."""
        found = self.data.text.resolved
        began = found.checkpoint or found.adapter or found.folder
        return marks_after(began, contamination_marks(self.settings, self.data))

    def save(self, progress: Progress) -> Path:
        """Save, mark the best, and delete what `keep_last` no longer keeps; returns the step's folder."""
        folder = self.run.path / f"step-{progress.step:06d}"
        problem: CheckpointError | None = None
        if self.runtime.is_main:
            try:
                self._save(progress)
            except CheckpointError as error:  # a full disk, say: no rank may go on alone, or wait for ever
                problem = error
        problem = self.runtime.broadcast_object(problem)
        if problem is not None:
            raise problem
        return folder

    def _save(self, progress: Progress) -> None:
        self.run.sync()
        folder = save_checkpoint(self.run.path, self._manifest(progress), lambda path: self._write(path, progress))
        self.parent = manifest_hash(folder)
        self._settle(folder)

    def _settle(self, folder: Path) -> None:
        """What follows a save; done again on resuming, since a kill may have come between."""
        for metric in read_manifest(folder).metrics:
            mark_best(self.run.path, folder, metric, higher_is_better=metric not in LOSSES)
        keep(self.run.path, last=self.settings.train.keep_last)

    def _write(self, folder: Path, progress: Progress) -> None:
        text = self.data.text
        masters = self.optimizer.master_state()
        if self.model.adapted or text.resolved.adapter is not None:
            save_peft(self.model.model, folder, base_name=text.resolved.source, tensors=masters)
            save_tensors(masters, folder / ADAPTER_MASTERS)
        else:
            save_weights({**_saved_buffers(self.model.model), **masters}, folder)
            (folder / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")
        save_template_record(folder, text.template)
        TrainingState(
            step=progress.step,
            tokens=progress.tokens,
            supervised_tokens=progress.supervised_tokens,
            optimizer=self.optimizer.state_dict(),
            counters={"progress": asdict(progress), **self.identity, **self.data.loader_state(progress.step)},
            ledger=self._ledger(progress).to_dict(),
        ).save(folder)

    def _config(self) -> dict[str, object]:
        """The Hugging Face config of the saved weights: float32, and the template's stop ids."""
        template = self.data.text.template
        model = self.model.model
        if isinstance(model, RewardModel):
            return self._reward_config(model)
        config = (
            config_to_hf(model.config) if isinstance(model, CausalLM) else read_config(self.data.text.resolved.folder)
        )
        stop = list(template.stop_ids)
        tokens = {"bos_token_id": template.tokenizer.bos_id, "pad_token_id": template.tokenizer.pad_id}
        dtype = str(next(iter(self.optimizer.master_state().values())).dtype).removeprefix("torch.")
        return {**config, **tokens, "eos_token_id": stop if len(stop) != 1 else stop[0], "dtype": dtype}

    def _reward_config(self, model: RewardModel) -> dict[str, object]:
        template = self.data.text.template
        config = reward_config(model.config, template.stop_ids, list(template.tokenizer.control_names))
        dtype = str(next(iter(self.optimizer.master_state().values())).dtype).removeprefix("torch.")
        return {**config, "dtype": dtype}

    def _ledger(self, progress: Progress) -> Ledger:
        """The data's ledger with what the finished steps trained.

        Raises:
            LedgerError: its sums don't balance, or it says otherwise than the trainer, which counts on its own.
        """
        ledger = self.data.ledger_after(progress.step)
        ledger.check(finished=progress.step == self.data.num_steps)
        counted = ledger.tokens(Stage.TRAINED)
        if counted != progress.tokens:
            raise LedgerError(f"the ledger counts {counted:,} tokens as trained, the trainer took {progress.tokens:,}")
        return ledger

    def _manifest(self, progress: Progress) -> Manifest:
        text, settings = self.data.text, self.settings
        return Manifest(
            step=progress.step,
            stage=settings.stage,
            tokens=progress.tokens,
            supervised_tokens=progress.supervised_tokens,
            parent=self.parent,
            base_source=text.resolved.source,
            base_hash=self.base_hash,
            start_source=self.start[0],
            start_hash=self.start[1],
            model=self._config(),
            adapter=settings.adapter.model_dump(mode="json") if settings.adapter else None,
            template_identity=text.template.identity,
            tokenizer_identity=text.tokenizer.identity,
            recipe=settings.model_dump(mode="json"),
            versions=_versions(),
            determinism=determinism_tuple(self.runtime),
            metrics=_own_value(progress),
            progress=asdict(progress),
            contamination=self.contamination,
            data={name: str(value) for name, value in self.identity.items()},
        )


def _saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a transformers model keeps beside its parameters and loads again, such as a router's correction bias."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _own_value(progress: Progress) -> dict[str, float]:
    """What was measured of these very weights, so that the best of the *saved* checkpoints is found among them."""
    if progress.last_value is None or progress.last_step != progress.step:
        return {}
    return {progress.best_metric: progress.last_value}


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "tokenizers", "safetensors", "transformers")
    found = {"python": platform.python_version(), "chatwright": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
