"""What an evaluation measures, by name: a model as its subject, and held-out conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chatwright.checkpoints.contamination import contamination_of
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.lineage import weights_hash
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.schema import Conversation
from chatwright.errors import DataError
from chatwright.evals.endpoint import ChoiceBy
from chatwright.evals.heldout import HeldoutSet
from chatwright.evals.local import LocalSubject
from chatwright.evals.records import file_name
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.tools import ToolBox
from chatwright.models.generation_weights import GenerationWeights
from chatwright.preparation.crew import Crew
from chatwright.preparation.rows import RowReader
from chatwright.recipes.data import build_data
from chatwright.recipes.rendering import plan_entries, read_entry
from chatwright.recipes.run_settings import RunSettings, load_recipe, shipped_recipes
from chatwright.recipes.talking import load_for_generation
from chatwright.recipes.template_record import serving_template
from chatwright.runtime import DtypeName, compute_dtype, start_runtime
from chatwright.settings import build
from chatwright.templates.base import TrainOn

TASK_PREFIX = "task:"
EVALS = "evals"
"""The folder of results: in the run folder of a model trained here, else in the working folder."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A subject, with what is known of where it came from.

    Args:
        folder: where its results belong if the user names no folder.
        contamination: evaluation → rows trained on that hold items of it.
    """

    subject: LocalSubject
    folder: Path
    contamination: dict[str, int]


def open_subject(
    name: str,
    *,
    device: str = "auto",
    dtype: DtypeName | None = None,
    batch_rows: int | None = None,
    choice_by: ChoiceBy = "logprobs",
    weights: GenerationWeights = GenerationWeights.PACKED,
) -> Opened:
    """Load a model to measure it.

    Args:
        name: anything `resolve_model` finds.
        dtype: what it computes in; None is float32 on a CPU and `auto` elsewhere. In bfloat16 a product's last bits
            depend on how many rows are multiplied together, so that single replies differ between batches.
        weights: `int8` computes in bfloat16 unless `dtype` says otherwise.
        batch_rows: replies generated at once, at most; the engine's own bound where not given.

    Raises:
        ModelError, TemplateError, CheckpointError: it can't be found, loaded, or served as it was trained.
    """
    resolved = resolve_model(name)
    runtime = start_runtime(device)  # type: ignore[arg-type]
    template = serving_template(resolved.text_folder)
    exact = runtime.device.type == "cpu" and weights is GenerationWeights.PACKED
    precision = compute_dtype(dtype or ("float32" if exact else "auto"), runtime.device)
    model = load_for_generation(resolved, runtime.device, precision, weights)
    limits = {} if batch_rows is None else {"max_rows": batch_rows}
    responder = Responder(make_engine(model, template, **limits), template, ToolBox())
    kind = "" if weights is GenerationWeights.PACKED else f" {weights}"
    identity = f"{weights_hash(resolved.folder, resolved.adapter)[:16]} {str(precision).removeprefix('torch.')}{kind}"
    subject = LocalSubject(name, responder, identity, choice_by=choice_by)
    trained = resolved.checkpoint or resolved.adapter or resolved.folder
    return Opened(subject, results_folder(name, resolved), contamination_of(trained))


def results_folder(name: str, resolved: ResolvedModel | None) -> Path:
    """`runs/demo/evals/step-000100` for a checkpoint, else `evals/<name>` in the working folder.

    Args:
        resolved: None for a model on a server.
    """
    if resolved is not None and resolved.checkpoint is not None:
        return resolved.checkpoint.parent / EVALS / resolved.checkpoint.name
    return Path(EVALS) / file_name(name)


def heldout_set(name: str, crew: Crew | None = None) -> HeldoutSet:
    """The held-out conversations that a name stands for.

    Args:
        name: a recipe or run folder (what it holds out), `task:NAME` (its test split), or data: a file, folder, glob,
            address or `hub:` name, all of whose rows are taken.
        crew: the ranks that ask together.

    Raises:
        DataError: there is no such data, a bad row, or the recipe holds nothing out. ConfigError: a bad recipe.
    """
    if _is_recipe(name):
        settings = load_recipe(name)
        return _held_out(Path(name).name, settings, crew or Crew())
    if name.startswith(TASK_PREFIX):
        chosen = {"task": name.removeprefix(TASK_PREFIX), "split": "test"}
    else:
        chosen = {"path": name}
    entry = build(DataSettings, chosen, name)
    conversations, _ = read_entry(entry, seed=0)
    return HeldoutSet(Path(name).name, tuple(conversations), (None,) * len(conversations))


def _is_recipe(name: str) -> bool:
    shipped = name.replace("-", "_") in shipped_recipes()
    return (Path(name) / "recipe.yaml").is_file() or shipped or name.endswith((".yaml", ".yml"))


def _held_out(name: str, settings: RunSettings, crew: Crew) -> HeldoutSet:
    """The rows that a recipe holds out, as it reads them: a share of its data, or data of their own."""
    if not settings.heldout.share and not settings.heldout.data:
        hint = "set heldout.share or heldout.data in it, or give the data itself"
        raise DataError("the recipe holds nothing out", source=name, hint=hint)
    keys: set[tuple[str, int]] | None = None
    if settings.heldout.share:
        store = build_data(settings, crew=crew).heldout
        keys = {(key.source, key.row) for key in store.keys}
    found: list[tuple[Conversation, TrainOn]] = []
    for entry in plan_entries(settings):
        if keys is None and not entry.work.heldout:
            continue
        for conversation in RowReader(entry.work, settings.train.seed).read(entry.read()):
            if keys is None or (conversation.source, conversation.row) in keys:
                found.append((conversation, entry.work.train_on))
    return HeldoutSet(name, tuple(each for each, _ in found), tuple(policy for _, policy in found))
