"""`chatwright train`: run a recipe, print what will happen first, say how to go on at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chatwright.adapters.quantized import num_weights
from chatwright.cli.plan_parts import short_name, sparkline
from chatwright.cli.stream_plan import print_stream_in_short
from chatwright.console import duration, note, out, table, warn
from chatwright.models.config import DecoderConfig, active_parameters
from chatwright.optim.param_groups import MUON, rates_in_words
from chatwright.preparation.crew import Crew
from chatwright.recipes.build import RunTrainer, build_trainer
from chatwright.recipes.data import build_data
from chatwright.recipes.model import ModelSetup, build_model
from chatwright.recipes.planning import plan_run
from chatwright.recipes.reinforcement import RolloutData
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.recipes.streaming import StreamedData, TrainingData
from chatwright.run_folder import RunFolder
from chatwright.runtime import Runtime, start_runtime
from chatwright.settings import dump_yaml
from chatwright.train.trainer import TrainResult

INTERRUPTED = 130
"""The exit status of a run that Ctrl-C stopped, as shells have it."""


def run_train(recipe: str, overrides: Sequence[str], resume: bool) -> None:
    """Train by a recipe; with `resume`, go on from the newest complete checkpoint."""
    settings = load_recipe(recipe, overrides)
    runtime = start_runtime(settings.train.device, settings.train.threads)
    try:
        if runtime.is_main:
            text = dump_yaml(settings, only_changed=True)  # the whole of it is saved with the run
            out().print(text.rstrip(), style="dim", markup=False, highlight=False)
        prepared = prepare(settings, runtime, resume)
        result = prepared.trainer.train()
        if runtime.is_main:
            report(prepared, result, recipe, writes=settings.stage != "reward")
    finally:
        runtime.close()
    if result.interrupted and runtime.world_size == 1:  # so that `train … && export …` stops here
        raise SystemExit(INTERRUPTED)


class Prepared(NamedTuple):
    """A run that is ready to train."""

    trainer: RunTrainer
    data: TrainingData
    model: ModelSetup


def prepare(settings: RunSettings, runtime: Runtime, resume: bool) -> Prepared:
    """Data, model and trainer, with a short account of each on the main rank."""
    crew = Crew.of(runtime)
    crew.together(lambda: RunFolder(settings.out).require_free() if runtime.is_main and not resume else None)
    data = build_data(settings, crew=crew)
    if runtime.is_main:
        _print_data(settings, data)
    model = build_model(settings, data.text, runtime)
    trained = sum(p.numel() for p in model.trainable.values())
    prepared = build_trainer(settings, data, model, runtime, resume=resume)
    if runtime.is_main:
        total = num_weights(model.model)
        note(f"{total:,} parameters, {trained:,} trained, on {runtime.device} with {runtime.world_size} rank(s)")
        config = getattr(model.model, "config", None)
        if isinstance(config, DecoderConfig) and config.moe is not None:
            note(f"experts: a token goes through {active_parameters(config):,} of the parameters")
        if len(groups := prepared.trainer.optimizer.groups) > 1 and settings.optimizer.name == MUON:
            note(f"learning rates, before the schedule: {rates_in_words(groups)}")
        if model.adapted:
            note(f"adapter on {len(model.adapted)} layers: {_short(model.adapted)}")
        if model.fresh_rows:
            names = [data.text.tokenizer.control_names[i] for i in model.fresh_rows]
            note(f"new token rows, trained: {' '.join(names)}")
        if resume and prepared.resumed_from is None:
            note(f"{settings.out} holds no complete checkpoint: starting from the beginning")
        if prepared.resumed_from is not None:
            note(f"resuming from {prepared.resumed_from} (step {prepared.start.step})")
    return Prepared(prepared, data, model)


def _short(names: Sequence[str]) -> str:
    """Layer names without their numbers: `self_attn.q_proj, …`."""
    kinds = dict.fromkeys(".".join(name.split(".")[-2:]) for name in names)
    return ", ".join(kinds)


def _print_data(settings: RunSettings, data: TrainingData) -> None:
    if isinstance(data, StreamedData):
        print_stream_in_short(settings, data)
        return
    figures = plan_run(settings, data)
    columns = ("source", "format", "rows", "examples", "tokens", "supervised")
    body = [
        (short_name(s.name), s.format, s.rows, s.examples, s.tokens, f"{s.supervised_share:.0%}")
        for s in figures.sources
    ]
    out().print(table("data" + (" (tokens from the cache)" if data.from_cache else ""), columns, body))
    for warning in figures.warnings:
        warn(warning)
    lost = [e for e in data.ledger.entries() if e.reason]
    for entry in lost:
        note(f"{entry.source}: {entry.rows:,} rows {entry.stage}: {entry.reason}")
    note(figures.contamination)
    note(
        f"{figures.steps:,} steps of about {figures.mean_tokens_per_step:,.0f} tokens, "
        f"{figures.supervised_share:.0%} supervised; "
        f"packing leaves {figures.packing_waste:.1%} empty; learning rate {sparkline(figures.learning_rates[::3])}"
    )


def report(prepared: Prepared, result: TrainResult, recipe: str, *, writes: bool = True) -> None:
    """How the run ended, and what to type next; `writes`: the model writes replies, and doesn't score them."""
    run = prepared.trainer
    folder = run.run.path
    speed = result.progress.supervised_tokens / max(result.seconds, 1e-9) if run.start.step == 0 else None
    note(f"{result.reason}: step {result.progress.step} of {run.trainer.num_steps}, {duration(result.seconds)}")
    if speed:
        tokens = result.progress.tokens / max(result.seconds, 1e-9)
        note(f"{tokens:,.0f} tokens/s, {speed:,.0f} supervised tokens/s, evaluation and saving included")
    if result.evaluation is not None:
        for name, value in result.evaluation.values.items():
            note(f"{name} {value:.4f}")
        part = result.evaluation_seconds / max(result.seconds, 1e-9)
        note(f"evaluating took {duration(result.evaluation_seconds)}, {part:.0%} of the run's time")
    if isinstance(prepared.data, RolloutData) and prepared.data.without_signal:
        warn(_nothing_learned(prepared.data.settings))
    if result.interrupted:
        out().print(f"Saved. Go on with:  chatwright train {folder} --resume", soft_wrap=True)
    elif writes:
        out().print(f"Chat with it:  chatwright chat {folder}", soft_wrap=True)
    else:
        out().print(f"Score replies with it:  chatwright reward {folder} FILE", soft_wrap=True)


def _nothing_learned(settings: RunSettings) -> str:
    """That all replies to each problem of an `rl` run got the same reward, and what to do."""
    rl = settings.reinforcement
    return (
        "no step had a signal: all replies to a problem got the same reward each time, so nothing was learned "
        f"and the weights are those of {settings.model_name}\n"
        "  → give an easier task (data), a model that already gets some of it right (model: train it on rows of the "
        f"task first, stage: sft), more replies to each problem (rl.samples, now {rl.samples}), or, if replies are "
        f"cut off, more room (rl.max_new_tokens, now {rl.max_new_tokens})"
    )
