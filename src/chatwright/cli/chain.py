"""`chatwright train CHAIN`: its stages in order, then its table."""

from __future__ import annotations

from collections.abc import Sequence

from chatwright.cli.train import INTERRUPTED, prepare, report, run_train
from chatwright.console import note, out, table
from chatwright.errors import ConfigError
from chatwright.preparation.crew import Crew
from chatwright.recipes.chain import StageStatus, run_chain
from chatwright.recipes.chain_settings import REWARD, Chain, is_chain, load_chain
from chatwright.recipes.chain_table import ChainTable, measure_chain, require_tasks
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime, start_runtime
from chatwright.train.trainer import TrainResult


def run_train_command(recipe: str, overrides: Sequence[str], resume: bool, until: str | None) -> None:
    """Train by a run's recipe or a chain's.

    Raises:
        ConfigError: `until` with a recipe that is no chain.
    """
    if is_chain(recipe):
        run_train_chain(recipe, overrides, resume, until)
    elif until is not None:
        raise ConfigError(["--until: names a stage of a chain, and this recipe has no stages"], source=recipe)
    else:
        run_train(recipe, overrides, resume)


def run_train_chain(recipe: str, overrides: Sequence[str], resume: bool, until: str | None) -> None:
    """Run the stages that are still to be done, and measure what they gave; Ctrl-C saves and stops."""
    chain = load_chain(recipe, overrides)
    place = next((stage.settings.train for stage in chain.runs if isinstance(stage.settings, RunSettings)), None)
    runtime = start_runtime(place.device, place.threads) if place is not None else start_runtime()
    measures = until in (None, chain.stages[-1].name)
    try:
        Crew.of(runtime).together(lambda: require_tasks(chain) if measures else None)
        statuses = run_chain(chain, runtime, resume=resume, until=until, train=_train)
        if statuses is not None and measures:
            measured = measure_chain(chain, statuses, runtime)
            if runtime.is_main:
                _finish(chain, statuses, measured)
    finally:
        runtime.close()
    if statuses is None:
        if runtime.is_main:
            rest = f" --until {until}" if until is not None else ""
            note(f"Go on with:  chatwright train {chain.out} --resume{rest}")
        if runtime.world_size == 1:
            raise SystemExit(INTERRUPTED)


def _train(settings: RunSettings, runtime: Runtime, resume: bool) -> TrainResult:
    prepared = prepare(settings, runtime, resume)
    result = prepared.trainer.train()
    if runtime.is_main and not result.interrupted:
        report(prepared, result, settings.out, writes=settings.stage != REWARD)
    return result


def _finish(chain: Chain, statuses: Sequence[StageStatus], measured: ChainTable | None) -> None:
    if measured is not None:
        if not measured.made:
            note("the table was there already")
        out().print(table("what each stage adds", measured.heads, measured.rows))
        for line in measured.notes:
            note(line)
        note(f"also in {chain.out}/table.md and table.json")
    last = [status.folder for status in statuses if status.stage in chain.writers]
    if last:
        out().print(f"Chat with it:  chatwright chat {last[-1]}", soft_wrap=True, markup=False)
