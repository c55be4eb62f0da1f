"""Runs a chain: each stage into a folder of its own, from its parent's last checkpoint; what is done is skipped.

A stage that is no longer what the recipe says is told before anything runs. Nothing is deleted, ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from chatwright.console import duration, note, warn
from chatwright.errors import ConfigError, UserError
from chatwright.preparation.crew import Crew
from chatwright.recipes.build import build_trainer
from chatwright.recipes.chain_record import (
    RECORD_NAME,
    StageRecord,
    State,
    another_parent,
    begun,
    changes,
    holds_results,
    read_records,
    result_of,
    write_records,
)
from chatwright.recipes.chain_settings import BEST, Chain, ChainStage
from chatwright.recipes.data import build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.new_model import new_config
from chatwright.recipes.run_settings import CHAIN_NAME, RECIPE_NAME, RunSettings
from chatwright.recipes.tokenizer_recipe import TokenizerRecipe, TrainedTokenizer, make_tokenizer
from chatwright.run_folder import RunFolder, write_whole
from chatwright.runtime import Runtime
from chatwright.train.trainer import TrainResult

TrainStage = Callable[[RunSettings, Runtime, bool], TrainResult]
"""Trains a run: its settings, the ranks, whether to go on with what is there."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far a stage is.

    Args:
        folder: where its results are, or will be. record: of what is there; None where nothing is.
    """

    stage: ChainStage
    state: State
    folder: Path
    record: StageRecord | None = None

    @property
    def result(self) -> str | None:
        """The hash of what a finished stage gave."""
        return self.record.result if self.record is not None and self.state is State.DONE else None


def look_at(chain: Chain) -> list[StageStatus]:
    """How far every stage is.

    Raises:
        UserError: stages aren't what the recipe says any more, or folders hold what this chain didn't make; all are
            named.
    """
    records = read_records(chain.out)
    found: dict[str, StageStatus] = {}
    problems: list[str] = []
    for stage in chain.stages:
        parent = _parent_hash(stage, found)
        record = _found_again(stage, records.get(stage.name), stage.folder)
        if record is None:
            found[stage.name] = _to_do(chain, stage, parent)
            continue
        told = _told_apart(stage, record, parent)
        problems += [f"{stage.name}: {each}" for each in told]
        state = State.DONE if record.result is not None else State.HALF
        found[stage.name] = StageStatus(stage, state, Path(record.folder), record)
    if problems:
        raise _changed(chain, problems)
    return list(found.values())


def _parent_hash(stage: ChainStage, statuses: Mapping[str, StageStatus]) -> str | None:
    """The hash of what a stage begins with; None where it grows from no other, or that one isn't finished."""
    if stage.parent is None:
        return None
    parent = statuses[stage.parent]
    if stage.from_best and parent.state is State.DONE:
        return result_of(parent.stage.kind, parent.folder, best=True)
    return parent.result


def _found_again(stage: ChainStage, record: StageRecord | None, own: Path) -> StageRecord | None:
    """A record whose results are there, in the folder where they are now; None where there are none.

    Args:
        own: the stage's place in the chain's folder, which goes before the one that is written down: a chain may have
            been moved since, or be named from another working folder.
    """
    places = [] if record is None else [own, Path(record.folder)]
    place = next((each for each in places if holds_results(stage.kind, each)), None)
    return None if record is None or place is None else record.model_copy(update={"folder": str(place)})


def _to_do(chain: Chain, stage: ChainStage, parent: str | None) -> StageStatus:
    """A stage that this folder doesn't have: taken from the other chain, if it's there and the same; else to be made.

    Raises:
        UserError: there is no such other chain, its folder is taken, or its data or model can't be found: told now, not
            hours later.
    """
    if chain.reuse is not None:
        if not (chain.reuse / RECORD_NAME).is_file():
            hint = "name the folder of a chain that has run, or leave reuse out"
            raise UserError(f"reuse: there is no {RECORD_NAME}, so it is no chain", place=str(chain.reuse), hint=hint)
        there = chain.reuse.absolute()
        other = _found_again(stage, read_records(there).get(stage.name), there / stage.name)
        known = stage.parent is None or parent is not None
        if other is not None and other.result is not None and known and not _told_apart(stage, other, parent):
            return StageStatus(stage, State.DONE, Path(other.folder), other)
    RunFolder(stage.folder).require_free()
    begun(stage, stage.folder, None)
    _require_shapes(chain, stage)
    return StageStatus(stage, State.NEW, stage.folder)


def _require_shapes(chain: Chain, stage: ChainStage) -> None:
    """Make a new model's shapes for the tokenizer that is yet to be trained.

    Raises:
        ConfigError: its preset or an option is unknown or impossible, or its vocabulary too small.
    """
    new = stage.settings.new_model if isinstance(stage.settings, RunSettings) else None
    before = chain[stage.parent].settings if stage.parent is not None else None
    if new is not None and isinstance(before, TokenizerRecipe):
        try:
            new_config(new, before.tokenizer.vocab_size)
        except ConfigError as error:
            raise ConfigError([f"{stage.name}.{problem}" for problem in error.problems], source=chain.source) from None


def _told_apart(stage: ChainStage, record: StageRecord, parent: str | None) -> list[str]:
    """What of a stage isn't as recorded. A parent that is still to be made can't be compared yet."""
    unknown = stage.parent is not None and parent is None
    now = begun(stage, Path(record.folder), record.parent if unknown else parent)
    told = changes(record, now, stage.parent)
    if unknown and record.grew_from not in (None, stage.parent):
        told.append(f"its parent: was {record.grew_from}, is {stage.parent}, which is yet to be made")
    if record.result is not None and result_of(stage.kind, Path(record.folder)) != record.result:
        told.append(f"{record.folder} holds something else than the chain made (trained further, or damaged)")
    return told


def _changed(chain: Chain, problems: list[str]) -> UserError:
    names = list(dict.fromkeys(problem.partition(":")[0] for problem in problems))
    again = ", ".join(dict.fromkeys([*names, *(each for name in names for each in chain.behind(name))]))
    listed = "\n".join(f"  - {problem}" for problem in problems)
    hint = (
        f"undo the change; or make {again} anew in another folder, and take the rest from here: "
        f"--set out=OTHER --set reuse={chain.out}"
    )
    return UserError(f"these stages aren't what the recipe says any more:\n{listed}", place=str(chain.out), hint=hint)


def train_quietly(settings: RunSettings, runtime: Runtime, resume: bool) -> TrainResult:
    """Train a run without an account of its data and model."""
    data = build_data(settings, crew=Crew.of(runtime))
    model = build_model(settings, data.text, runtime)
    return build_trainer(settings, data, model, runtime, resume=resume).train()


def run_chain(
    chain: Chain,
    runtime: Runtime,
    *,
    resume: bool = False,
    until: str | None = None,
    train: TrainStage = train_quietly,
) -> list[StageStatus] | None:
    """Run what is still to be done, in order.

    Args:
        resume: go on with a stage that is half done.
        until: the last stage to run.
        train: trains one stage.

    Returns:
        how far every stage is; None where the user stopped one.

    Raises:
        UserError: a stage has changed, or is half done and `resume` is False.
    """
    crew = Crew.of(runtime)
    wanted = [stage.name for stage in chain.until(until)]
    found = runtime.broadcast_object(crew.together(lambda: look_at(chain) if runtime.is_main else None))
    assert found is not None
    statuses = {status.stage.name: status for status in found}
    _require_resume([statuses[name] for name in wanted], resume)
    crew.together(lambda: _begin_folder(chain) if runtime.is_main else None)
    for place, name in enumerate(wanted, 1):
        head = f"stage {place} of {len(wanted)}: {name}"
        status = statuses[name]
        if status.state is State.DONE:
            _require_same_parent(chain, status, statuses)
            if runtime.is_main:
                _remember(chain, status.record)
                note(f"{head} is done ({status.folder}); skipped")
            continue
        if runtime.is_main:
            note(f"{head}{' (going on)' if status.state is State.HALF else ''}")
        made = _run_stage(chain, status, statuses, runtime, train)
        if made is None:
            return None
        statuses[name] = made
    return list(statuses.values())


def _require_resume(wanted: list[StageStatus], resume: bool) -> None:
    half = next((status for status in wanted if status.state is State.HALF), None)
    if half is not None and not resume:
        hint = "go on with `--resume`, or give another folder with `--set out=…`"
        raise UserError(f"the stage {half.stage.name} is half done", place=str(half.folder), hint=hint)


def _require_same_parent(chain: Chain, status: StageStatus, statuses: Mapping[str, StageStatus]) -> None:
    """Refuse to skip a stage whose parent has just been made anew, and came out otherwise.

    Raises:
        UserError: it has.
    """
    stage, record = status.stage, status.record
    if record is not None and stage.parent is not None and _parent_hash(stage, statuses) != record.parent:
        raise _changed(chain, [f"{stage.name}: {another_parent(stage.parent)}"])


def _begin_folder(chain: Chain) -> None:
    """Keep the recipe where `chatwright train FOLDER --resume` finds it.

    Raises:
        UserError: the folder holds a run.
    """
    if (chain.out / RECIPE_NAME).exists():
        raise UserError("holds a run, and a chain needs a folder of its own", place=str(chain.out), hint="--set out=…")
    chain.out.mkdir(parents=True, exist_ok=True)
    write_whole(chain.out / CHAIN_NAME, yaml.safe_dump(dict(chain.plain), sort_keys=False, allow_unicode=True))


def _run_stage(
    chain: Chain, status: StageStatus, statuses: Mapping[str, StageStatus], runtime: Runtime, train: TrainStage
) -> StageStatus | None:
    """Begin a stage or go on with it, remember it, and tell how far it came; None where the user stopped it."""
    stage, crew = status.stage, Crew.of(runtime)
    parent = statuses[stage.parent] if stage.parent is not None else None
    record = runtime.broadcast_object(
        crew.together(lambda: _begun_now(chain, status, statuses) if runtime.is_main else None)
    )
    assert record is not None
    began = time.monotonic()
    step, tokens, stopped = 0, 0, False
    if isinstance(stage.settings, TokenizerRecipe):
        recipe = stage.settings
        if status.state is not State.HALF:  # else it is there, whole: its folder was renamed into place
            _tell(crew.together(lambda: make_tokenizer(recipe) if runtime.is_main else None))
    else:
        settings = placed(stage.settings, parent.folder if parent is not None else None)
        result = train(settings, runtime, status.state is State.HALF)
        step, tokens, stopped = result.progress.step, result.progress.tokens, result.interrupted
    seconds = record.seconds + time.monotonic() - began
    made = record.model_copy(update={"seconds": seconds, "step": step, "tokens": tokens})
    if not stopped:
        gave = crew.together(lambda: result_of(stage.kind, status.folder) if runtime.is_main else None)
        made = made.model_copy(update={"result": runtime.broadcast_object(gave)})
    if runtime.is_main:
        _remember(chain, made)
        note(f"{stage.name}: {'stopped' if stopped else 'done'} after {duration(seconds)}")
    return None if stopped else StageStatus(stage, State.DONE, status.folder, made)


def _tell(made: TrainedTokenizer | None) -> None:
    """What came of a tokenizer, on the rank that made it."""
    if made is None:
        return
    for each in made.notes:
        warn(each)
    note(f"{made.vocab_size:,} tokens, trained on {made.texts:,} texts of {made.characters:,} characters")
    for row in made.compression:
        ratios = f"{row.bytes_per_token:.3f} bytes a token, {row.bits_per_byte:.3f} bits a byte"
        note(f"{row.tokenizer}, on {row.text}: {ratios}")


def _begun_now(chain: Chain, status: StageStatus, statuses: Mapping[str, StageStatus]) -> StageRecord:
    """The stage's record, remembered before it runs.

    Raises:
        UserError: it was begun from a parent that has been made anew since.
    """
    now = begun(status.stage, status.folder, _parent_hash(status.stage, statuses))
    if status.record is not None:
        told = changes(status.record, now, status.stage.parent)
        if told:
            raise _changed(chain, [f"{status.stage.name}: {each}" for each in told])
        now = now.model_copy(update={"seconds": status.record.seconds})
    _remember(chain, now)
    return now


def _remember(chain: Chain, record: StageRecord | None) -> None:
    assert record is not None
    write_records(chain.out, {**read_records(chain.out), record.name: record})


def placed(settings: RunSettings, parent: Path | None) -> RunSettings:
    """A stage's settings with its parent where it really is (`reuse` may take it from elsewhere)."""
    if parent is None:
        return settings
    if settings.new_model is not None:
        made = settings.new_model.model_copy(update={"tokenizer": str(parent)})
        return settings.model_copy(update={"new_model": made})
    best = BEST if str(settings.model).endswith(BEST) else ""
    return settings.model_copy(update={"model": f"{parent}{best}"})
