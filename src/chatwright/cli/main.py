"""The command line: one thin file a command, loaded when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chatwright import __version__
from chatwright.cli.eval_options import eval_
from chatwright.cli.tokenizer import tokenizer_app
from chatwright.errors import UserError

app = typer.Typer(
    name="chatwright",
    help="Turn a base language model into a chat assistant: exact, fast and clear fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MISTAKE = 2
"""The exit status after a user's mistake, whether in the command line, a recipe or the data."""

Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: a.b=value (may be repeated).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
AllowUnsafe = Annotated[
    bool, typer.Option("--allow-unsafe-code", help="Run code even where nothing isolates it: as you, unprotected.")
]
DropContaminated = Annotated[
    bool, typer.Option("--drop-contaminated", help="Leave out, and count, rows that hold what an evaluation asks.")
]


def _without_contaminated(overrides: list[str] | None, drop: bool) -> list[str]:
    return [*(overrides or []), *(["contamination.on_hit=drop"] if drop else [])]


def _with_contamination(overrides: list[str] | None, check: bool) -> list[str]:
    asked = any(each.startswith("contamination") for each in overrides or [])
    return [*(overrides or []), *(["contamination.on_hit=report"] if check and not asked else [])]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chatwright {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="A data file, folder, glob or hub:owner/name/split.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model to start from.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The recipe to write.")] = "recipe.yaml",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a recipe from what is found in the data."""
    from chatwright.cli.init import run_init

    run_init(data, model, out, force)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, a run folder, or a shipped name such as `demo`.")],
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest complete checkpoint.")] = False,
    drop_contaminated: DropContaminated = False,
    until: Annotated[str | None, typer.Option("--until", help="Of a chain: the last stage to run.")] = None,
) -> None:
    """Train by a recipe, or by a chain of stages; Ctrl-C saves and says how to go on."""
    from chatwright.cli.chain import run_train_command

    run_train_command(recipe, _without_contaminated(set_, drop_contaminated), resume, until)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a shipped name.")],
    set_: Overrides = None,
    as_json: AsJson = False,
    drop_contaminated: DropContaminated = False,
    device_tflops: Annotated[
        float | None, typer.Option("--device-tflops", help="Tell hours: one device's peak (H100: 989, A100: 312).")
    ] = None,
    devices: Annotated[int | None, typer.Option("--devices", help="So many of them (1).")] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="The share of the peak that training reaches (0.4).")
    ] = None,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Read no data: what the recipe and its model alone say.")
    ] = False,
) -> None:
    """Show what a run would do without touching a weight: rows, tokens, steps, memory; of a chain, all its stages."""
    from chatwright.cli.plan import run_plan
    from chatwright.recipes.hardware import named_hardware

    hardware = named_hardware(device_tflops, devices, mfu)
    run_plan(recipe, _without_contaminated(set_, drop_contaminated), as_json, hardware, without_data)


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a shipped name.")],
    set_: Overrides = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that render.")] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Render in a Ray cluster: its address, auto, or local for one here.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Keep the tokens there, too: s3://bucket/tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the tokens of a recipe ahead of training, or say where they are."""
    from chatwright.cli.prepare import run_prepare

    chosen = {"workers": workers, "ray": ray, "store": to}
    given = [f"preparation.{name}={value}" for name, value in chosen.items() if value is not None]
    run_prepare(recipe, [*(set_ or []), *given], as_json)


@app.command("import-recipe")
def import_recipe(
    config: Annotated[str, typer.Argument(help="A training file of LLaMA-Factory, TRL or Axolotl.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The recipe to write.")] = "recipe.yaml",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a recipe from another system's configuration, and list what has no place in it."""
    from chatwright.cli.import_recipe import run_import

    run_import(config, out, force, as_json)


@app.command()
def inspect(
    data: Annotated[
        str, typer.Argument(help="A data file, folder, glob, task:NAME, a recipe (.yaml) or a run folder.")
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model whose template renders.")] = None,
    rows: Annotated[str | None, typer.Option("--rows", help="Which rows: 7, or 0:5 (the default).")] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="So many rows, drawn over all data.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sample: same seed, same rows.")] = 0,
    html: Annotated[str | None, typer.Option("--html", help="Write one self-contained page to this file.")] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="A run folder: the page shows each token's loss before and after it.")
    ] = None,
    contamination: Annotated[
        bool, typer.Option("--contamination", help="Compare the rows with the evaluations, and show hits side by side.")
    ] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """See which tokens are trained, and what was dropped or cut."""
    from chatwright.cli.inspect import run_inspect, wanted_rows

    wanted = wanted_rows(rows, sample, seed, as_json=as_json, page=html, run=run)
    run_inspect(data, model, wanted, _with_contamination(set_, contamination), as_json=as_json, page=html, run=run)


@app.command()
def convert(
    sources: Annotated[list[str], typer.Argument(metavar="SRC…", help="Files, folders, globs, hub:owner/name/split.")],
    out: Annotated[str, typer.Argument(help="The file to write; its ending tells the kind: .jsonl or .parquet.")],
    to: Annotated[str, typer.Option("--to", help="messages, sharegpt, alpaca or preference.")],
    file_format: Annotated[str | None, typer.Option("--format", help="jsonl or parquet.")] = None,
    from_: Annotated[str, typer.Option("--from", help="The rows' format; found by itself when not given.")] = "auto",
    on_bad_row: Annotated[str, typer.Option("--on-bad-row", help="error, or skip: leave out and count.")] = "error",
    lossy: Annotated[bool, typer.Option("--lossy", help="Keep what the target can hold of a row, and count.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write data in another format, and say what that format can't hold."""
    from chatwright.cli.convert import run_convert

    run_convert(sources, out, to, file_format, from_, on_bad_row, lossy, force)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A model: folder, hub name, run, checkpoint, GGUF or .pth file.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and exit.")] = None,
    compare: Annotated[str | None, typer.Option("--compare", help="A second model, answering side by side.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 = the most likely token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many of the likeliest tokens (0 = all).")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same words.")] = 0,
    tools: Annotated[
        str | None, typer.Option("--tools", help="calculator, python (in the sandbox), both with a comma, or none.")
    ] = None,
    allow_unsafe_code: AllowUnsafe = False,
    weights: Annotated[
        str, typer.Option("--weights", help="packed; or int8: on a CPU, half the memory and faster, a little off.")
    ] = "packed",
) -> None:
    """Chat with a model, or ask it one thing."""
    from chatwright.cli.chat import run_chat

    options = (temperature, top_p, top_k, max_new_tokens, seed)
    run_chat(model, prompt, compare, system, options, tools, allow_unsafe_code, weights)


@app.command()
def sandbox(
    file: Annotated[str | None, typer.Argument(help="A Python program to run (- for standard input).")] = None,
    code: Annotated[str | None, typer.Option("-c", help="The program itself.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Let it read this command's standard input.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time that the program may take.")] = 10.0,
    as_json: AsJson = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Run untrusted Python in isolation; alone: try to break out, and show what is enforced on this machine.

    Exit status: 0 well, 1 the program failed, 2 a mistake or refused, 3 nothing isolates here, 4 beyond a limit.
    """
    from chatwright.cli.sandbox import run_sandbox

    how = {"pass_stdin": stdin, "as_json": as_json, "allow_unsafe": allow_unsafe_code}
    raise typer.Exit(run_sandbox(file, code, seconds=seconds, **how))


@app.command()
def reward(
    model: Annotated[str, typer.Argument(help="A reward model: a run of stage reward, or a folder.")],
    data: Annotated[str, typer.Argument(help="Conversations or preference pairs: a file, folder, glob or hub data.")],
    stop: Annotated[int | None, typer.Option("--stop", min=1, help="The row after the last to score.")] = None,
    on_bad_row: Annotated[str, typer.Option("--on-bad-row", help="error, or skip: leave out and count.")] = "error",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps or npu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score replies with a reward model; of pairs, tell how often the better one scores higher."""
    from chatwright.cli.reward import run_reward

    run_reward(model, data, stop, on_bad_row, device, as_json)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Models in the order of their columns.")],
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="A prompt a line, or probes (.yaml); the built-in ones if not given."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Measure these too: arc:ARC-Easy,gsm8k; as `eval` takes them.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many problems of each task.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps or npu.")] = "auto",
    html: Annotated[str | None, typer.Option("--html", help="Write one self-contained page to this file.")] = None,
    as_json: AsJson = False,
    allow_unsafe_code: AllowUnsafe = False,
) -> None:
    """Answers of several models side by side, each marked for brevity, format, tool use and keeping to its turn."""
    from chatwright.cli.compare import Request, run_compare

    run_compare(Request(models, prompts, max_new_tokens, device, html, as_json, tasks, limit, allow_unsafe_code))


app.command("eval")(eval_)
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run or checkpoint folder (or any model).")],
    out: Annotated[str | None, typer.Argument(help="The folder to write.")] = None,
    folder: Annotated[str | None, typer.Option("--out", "-o", help="The same, as an option.")] = None,
    to: Annotated[
        str, typer.Option("--to", help="huggingface, minimind, minimind-notebook or nanochat.")
    ] = "huggingface",
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base model.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16; by default bfloat16, for MiniMind float16, for nanochat float32."
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="MiniMind's file name, or nanochat's source, if not by the stage.")
    ] = None,
) -> None:
    """Write a clean Hugging Face folder, or the files that MiniMind or nanochat loads."""
    from chatwright.cli.export import run_export

    run_export(model, (out, folder), to, merge, dtype, prefix)


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="A run or checkpoint folder (or any model).")],
    as_json: AsJson = False,
) -> None:
    """Show the trainings that made a model: stage, recipe, data and parent of each, by their hashes."""
    from chatwright.cli.lineage import run_lineage

    run_lineage(model, as_json)


@app.command()
def trace(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    step: Annotated[int, typer.Option("--step", help="The step, counted from 1.")],
    as_json: AsJson = False,
) -> None:
    """List the examples that made a step, with their losses."""
    from chatwright.cli.trace import run_trace

    run_trace(run, step, as_json)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN [RUN_B]", help="A run folder, or two to compare.")],
    html: Annotated[str | None, typer.Option("--html", help="Write one self-contained page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run was, how it went and what it lost on the way; or two runs side by side."""
    from chatwright.cli.report import run_report_command

    run_report_command(runs, html, as_json)


@app.command()
def selftest(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a shipped name.")],
    set_: Overrides = None,
    full: Annotated[bool, typer.Option("--full", help="More rows, more splits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove the exactness laws on your own recipe, model and data."""
    from chatwright.cli.selftest import run_selftest

    run_selftest(recipe, set_ or [], full, as_json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def harness(context: typer.Context) -> None:
    """Run lm-evaluation-harness on a model: its own options, with `--model chatwright`."""
    from chatwright.cli.harness import run_harness

    run_harness(context.args)


@app.command()
def demo(
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted demo.")] = False,
) -> None:
    """Fine-tune a small model on this machine and compare before and after."""
    from chatwright.cli.demo import run_demo

    run_demo(set_ or [], resume)


def main() -> None:
    """The console script: a `UserError` becomes one clear message and exit status `MISTAKE`."""
    debug = "--debug" in sys.argv
    if debug:  # wherever it stands
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        here = str(Path.cwd())
        if here not in sys.path:  # a recipe may name functions of modules that stand here; libraries come first
            sys.path.append(here)
        app()
    except UserError as error:
        if debug:
            raise
        from chatwright.console import print_error

        print_error(error)
        sys.exit(MISTAKE)
    except OSError as error:  # a folder that can't be written, a full disk: the user's to mend
        if debug or isinstance(error, BrokenPipeError):
            raise
        from chatwright.console import print_error

        hint = "check that it exists, that you may read and write it, and that the disk has room"
        print_error(UserError(error.strerror or str(error), place=str(error.filename or "files"), hint=hint))
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
