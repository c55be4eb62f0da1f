"""Supervised fine-tuning beside TRL: tokens a second and peak memory, on the same rows, one after the other.

    python bench/sft_throughput.py --against trl
    python bench/sft_throughput.py --only ours --mode lora --rows short --seconds 10

Every case runs in a process of its own: a model is loaded, the first step is left out as a warm-up, and the steps
after it are timed from the end of one step to the end of the next, data loading included, until --steps or
--seconds is reached. Nothing is saved or evaluated. Systems:

    ours          Chatwright's defaults: packs of 2,048 tokens, one a step, bf16 where the machine multiplies it
    ours-halves   the same step in two packs of 1,024 tokens: less memory, the same gradient
    ours-8rows    the same with TRL's step: 8 rows
    ours-float32  ours in float32
    trl           TRL's defaults: 8 rows a step, float32 weights under bf16 autocast, gradient checkpointing
    trl-float32   TRL with bf16=False
    trl-tuned     TRL without gradient checkpointing, bf16 weights: what its documentation advises where memory allows

TRL's warm-up step gets the shortest rows, so that no minute is lost on it. A case takes at least one timed step.
Supervised tokens are those a label trains. Tokens leave padding out for both. Peak memory is the largest resident
set of the process, from start to end, libraries included (on a GPU: the largest allocation). Close other programs:
both cores are needed, and the load before the run is recorded with the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from chatwright.console import print_error
from chatwright.errors import UserError
from common import (
    LONG_FILE,
    REPOSITORY,
    SHARED,
    TRL_BATCH,
    StepClock,
    bench_rows,
    label_rows,
    machine_facts,
    peak_memory,
    resident_memory,
    silence,
    silence_trl,
    supervised,
    trl_config,
    trl_trainer,
)

SYSTEMS = ("ours", "ours-halves", "ours-8rows", "ours-float32", "trl", "trl-float32", "trl-tuned")
SPEED_BAR, MEMORY_BAR = 4.0, 0.5
LORA_RANK, LORA_ALPHA = 16, 32
CASE_LIMIT_SECONDS = 600


def our_settings(case: dict[str, Any], out: str) -> Any:
    """The recipe of one of our cases."""
    from chatwright.recipes.run_settings import RunSettings

    by_rows = case["system"] == "ours-8rows"
    changes: dict[str, Any] = {"packing": {"by": "examples", "examples_per_step": TRL_BATCH}} if by_rows else {}
    if case["system"] == "ours-halves":
        changes["packing"] = {"tokens_per_pack": 1024, "packs_per_step": 2}
    if case["mode"] == "lora":
        changes["adapter"] = {"rank": LORA_RANK, "alpha": LORA_ALPHA, "targets": ["all-linear"]}
    train = {"dtype": "float32" if case["system"] == "ours-float32" else "auto", "threads": case["threads"]}
    return RunSettings.model_validate(
        {
            "model": case["model"],
            "max_tokens": case["max_tokens"],
            "overflow": "drop",
            "train": {**train, "epochs": 1000, "max_steps": case["steps"] + 1},
            "out": out,
            **changes,
        }
    )


def measure_ours(case: dict[str, Any]) -> dict[str, Any]:
    """Chatwright through its own five build lines."""
    from chatwright.recipes.build import build_trainer
    from chatwright.recipes.data import build_data
    from chatwright.recipes.model import build_model
    from chatwright.runtime import compute_dtype, start_runtime
    from chatwright.train.hooks import Hook, StepRecord

    with tempfile.TemporaryDirectory() as folder:
        settings = our_settings(case, f"{folder}/run")
        runtime = start_runtime(threads=case["threads"])
        data = build_data(settings, {"bench": bench_rows(case["rows"], case["count"])})
        model = build_model(settings, data.text, runtime)
        clock = StepClock(case["steps"], case["seconds"])
        records: list[StepRecord] = []

        class Watch(Hook):
            """Ticks the clock, and stops the run in time."""

            def on_step(self, record: StepRecord) -> None:
                records.append(record)
                run.trainer.stop_requested = clock.tick()

        run = build_trainer(settings, data, model, runtime, hooks=[Watch()], show_progress=False)
        run.trainer.save = None  # a checkpoint at the end is no part of the measurement
        before = resident_memory()
        clock.began = time.perf_counter()
        run.train()
        return {
            **clock.result([record.tokens for record in records], [record.supervised_tokens for record in records]),
            "peak_bytes": peak_memory(),
            "bytes_before_training": before,
            "settings": {
                "dtype": str(compute_dtype(settings.train.dtype, runtime.device)).removeprefix("torch."),
                "packing": settings.packing.model_dump(mode="json"),
                "trained_parameters": sum(parameter.numel() for parameter in model.trainable.values()),
                "rows": len(data.store),
                "last_loss": records[-1].loss,
            },
        }


def measure_trl(case: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer with its defaults, on the tokens that Chatwright rendered."""
    import torch
    from transformers import TrainerCallback

    silence_trl()
    if case["threads"]:
        torch.set_num_threads(case["threads"])
    rows = json.loads(Path(case["tokens"]).read_text())
    clock = StepClock(case["steps"], case["seconds"])

    class Watch(TrainerCallback):
        """Ticks the clock, and stops the run in time."""

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> Any:
            control.should_training_stop = clock.tick()
            return control

    changes: dict[str, Any] = {"trl-float32": {"bf16": False}, "trl-tuned": {"gradient_checkpointing": False}}.get(
        case["system"], {}
    )
    if case["system"] == "trl-tuned":
        changes["model_init_kwargs"] = {"dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        config = trl_config(folder, max_steps=case["steps"] + 1, num_train_epochs=1000, **changes)
        adapter = {}
        if case["mode"] == "lora":
            from peft import LoraConfig

            lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
            adapter = {"peft_config": lora}
        trainer = trl_trainer(config, case["folder"], case["folder"], rows, callbacks=[Watch()], **adapter)
        before = resident_memory()
        clock.began = time.perf_counter()
        trainer.train()
    return {
        **clock.result(*_tokens_of_steps(rows, len(clock.ends))),
        "peak_bytes": peak_memory(),
        "bytes_before_training": before,
        "settings": {
            "weights": str(next(iter(trainer.model.parameters())).dtype).removeprefix("torch."),
            "bf16_autocast": config.bf16,
            "gradient_checkpointing": config.gradient_checkpointing,
            "rows_per_step": config.per_device_train_batch_size * config.gradient_accumulation_steps,
            "optimizer": str(getattr(config.optim, "value", config.optim)),
            "attention": trainer.model.config._attn_implementation,
            "packing": config.packing,
            "max_length": config.max_length,
            "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "rows": len(rows),
        },
    }


def _tokens_of_steps(rows: list[dict[str, list[int]]], steps: int) -> tuple[list[int], list[int]]:
    """Tokens and supervised tokens of each step of `TRL_BATCH` rows, in order, epoch after epoch."""
    batches = [rows[start : start + TRL_BATCH] for start in range(0, len(rows), TRL_BATCH)]
    tokens = [sum(len(row["input_ids"]) for row in batch) for batch in batches]
    trained = [sum(map(supervised, batch)) for batch in batches]
    return [tokens[i % len(batches)] for i in range(steps)], [trained[i % len(batches)] for i in range(steps)]


def render_for_trl(case: dict[str, Any], path: Path) -> tuple[Path, dict[str, Any]]:
    """Write the rows as tokens and labels; returns the model's folder and what the rows are like."""
    from chatwright.recipes.data import build_data

    data = build_data(our_settings({**case, "system": "ours", "mode": "full"}, "unused"), {"bench": case["made"]})
    rows = label_rows(data.store)
    warmup = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))[:TRL_BATCH]
    rest = [index for index in range(len(rows)) if index not in warmup]
    path.write_text(json.dumps([rows[index] for index in (*warmup, *rest)]))
    lengths = data.store.lengths
    facts = {
        "rows": len(lengths),
        "tokens_mean": round(float(lengths.mean()), 1),
        "tokens_max": int(lengths.max()),
        "supervised_share": round(float(data.store.supervised_counts.sum() / lengths.sum()), 3),
    }
    return data.text.resolved.folder, facts


def run_case(case: dict[str, Any]) -> dict[str, Any] | None:
    """Measure one case in a fresh process; None, and its last words printed, where it failed."""
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__)), "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"  {case['mode']} {case['system']}: FAILED, not done after {CASE_LIMIT_SECONDS} s", flush=True)
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode != 0 or not lines:
        print(f"  {case['mode']} {case['system']}: FAILED\n{done.stderr[-2000:]}", flush=True)
        return None
    named = {name: case[name] for name in ("system", "mode", "rows")}
    return {**named, **json.loads(lines[-1]), "process_seconds": round(time.perf_counter() - began, 1)}


def measure_all(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every case asked for, row set by row set, with the systems beside each other."""
    facts = machine_facts()
    if facts["load_before"] and facts["load_before"] > 0.5:
        print(f"warning: the load is {facts['load_before']}; close other programs for figures that count")
    report: dict[str, Any] = {"date": date.today().isoformat(), "machine": facts, "rows": {}, "cases": []}
    for kind in options.rows:
        base = {
            name: getattr(options, name) for name in ("model", "max_tokens", "steps", "seconds", "threads", "count")
        }
        tokens = work / "tokens.json"
        made = bench_rows(kind, options.count)
        folder, row_facts = render_for_trl({**base, "made": made}, tokens)
        report["rows"][kind] = row_facts
        print(f"rows {kind}: {row_facts}", flush=True)
        for mode in options.mode:
            for system in options.systems:
                case = {**base, "system": system, "mode": mode, "rows": kind}
                result = run_case({**case, "tokens": str(tokens), "folder": str(folder)})
                if result is not None:
                    report["cases"].append(result)
                    print(f"  {mode} {system}: {line(result)}", flush=True)
    return report


def line(result: dict[str, Any]) -> str:
    """One case in words."""
    return (
        f"{result['supervised_tokens_per_second']:.1f} supervised, {result['tokens_per_second']:.1f} tokens/s, "
        f"peak {result['peak_bytes'] / 2**30:.2f} GiB ({result['timed_steps']} steps in "
        f"{result['timed_seconds']:.0f} s, warm-up {result['warmup_seconds']:.0f} s)"
    )


def show(report: dict[str, Any]) -> None:
    """Print the table, the settings used, and whether the bar is met."""
    from chatwright.console import out, table

    rows, notes = [], []
    for case in report["cases"]:
        peer = _find(report, case, "trl")
        speed = memory = "—"
        if peer is not None and peer is not case:
            ratio = case["supervised_tokens_per_second"] / peer["supervised_tokens_per_second"]
            share = case["peak_bytes"] / peer["peak_bytes"]
            speed, memory = f"{ratio:.2f} ×", f"{share:.2f} ×"
            if case["system"] == "ours":
                met = "met" if ratio >= SPEED_BAR and share <= MEMORY_BAR else "not met"
                notes.append(
                    f"{case['mode']}, {case['rows']}: {met} (at least {SPEED_BAR:g} × TRL's speed at "
                    f"{MEMORY_BAR:g} × its peak memory; measured {ratio:.2f} × and {share:.2f} ×)"
                )
        rates = (case["supervised_tokens_per_second"], case["tokens_per_second"])
        peak = f"{case['peak_bytes'] / 2**30:.2f}"
        steps = f"{case['timed_steps']} / {case['timed_seconds']:.0f} s"
        names = (case["rows"], case["mode"], case["system"])
        rows.append((*names, f"{rates[0]:.1f}", f"{rates[1]:.1f}", peak, speed, memory, steps))
    heads = (
        "rows",
        "mode",
        "system",
        "supervised tok/s",
        "tokens/s",
        "peak GiB",
        "× TRL speed",
        "× TRL memory",
        "steps",
    )
    out().print(table("supervised fine-tuning, " + report["machine"]["cpu"], heads, rows))
    for system in dict.fromkeys(case["system"] for case in report["cases"]):
        used = next(case["settings"] for case in report["cases"] if case["system"] == system)
        out().print(f"{system}: " + ", ".join(f"{name} {value}" for name, value in used.items()), soft_wrap=True)
    for note in notes:
        out().print(note, soft_wrap=True)


def _find(report: dict[str, Any], case: dict[str, Any], system: str) -> dict[str, Any] | None:
    same = (system, case["mode"], case["rows"])
    return next((c for c in report["cases"] if (c["system"], c["mode"], c["rows"]) == same), None)


def save(report: dict[str, Any], folder: Path) -> Path:
    """Write the JSON under a name that says when and where; an earlier result is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = report["machine"]["gpu"] or report["machine"]["cpu"]
    words = "".join(letter if letter.isalnum() else " " for letter in machine.lower()).split()
    stem = f"{report['date']}-{'-'.join(words)}"
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default="trl", help="the peer; there is one")
    parser.add_argument("--only", choices=["ours", "trl"], help="measure one side")
    parser.add_argument("--mode", action="append", choices=["full", "lora"], help="default: both")
    parser.add_argument("--rows", action="append", help="short, long, or a file of chats; default: short and long")
    parser.add_argument("--systems", default="ours,trl", help=f"comma-separated, of {', '.join(SYSTEMS)}")
    parser.add_argument("--model", default="smollm2-135m-q4", help="folder, hub name or alias")
    parser.add_argument("--count", type=int, default=640, help="most rows of each set")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer rows are left out (TRL's max_length)")
    parser.add_argument("--steps", type=int, default=30, help="most timed steps a case")
    parser.add_argument("--seconds", type=float, default=30.0, help="a case ends with the step that reaches this")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results", help="folder for the JSON")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    long_is_there = (SHARED / LONG_FILE).exists()
    options.rows = options.rows or (["short", "long"] if long_is_there else ["short"])
    options.mode = options.mode or ["full", "lora"]
    chosen = [name.strip() for name in options.systems.split(",")]
    unknown = [name for name in chosen if name not in SYSTEMS]
    if unknown:
        parser.error(f"unknown system {unknown[0]!r}; known: {', '.join(SYSTEMS)}")
    options.systems = [name for name in chosen if options.only is None or name.startswith(options.only)]
    return options


def main() -> None:
    """Measure, print, save; or, as a child, measure one case."""
    silence()
    options = parse_options()
    if options.case:
        measure = measure_ours if options.case["system"].startswith("ours") else measure_trl
        print(json.dumps(measure(options.case)))
        return
    try:
        with tempfile.TemporaryDirectory() as work:
            report = measure_all(options, Path(work))
    except UserError as error:
        print_error(error)
        sys.exit(1)
    if report["cases"]:
        show(report)
        if not options.no_save:
            print(f"saved: {save(report, options.out)}")
    wanted = len(options.rows) * len(options.mode) * len(options.systems)
    sys.exit(0 if len(report["cases"]) == wanted else 1)


if __name__ == "__main__":
    main()
