"""The command line of `chatwright eval`: many options, so they have a file; it loads nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer


def eval_(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL…", help="Models in the order of their columns.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", "-t", help="arc,gsm8k,mmlu:anatomy …; chatcore or all for many.")
    ] = None,
    heldout: Annotated[
        list[str] | None,
        typer.Option("--heldout", help="Loss and bits per byte on data, task:NAME, or what a recipe or run holds out."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="At most so many problems of each.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="In place of each task's own, which is test.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the problems' order and of what is drawn.")] = 0,
    samples: Annotated[int, typer.Option("--samples", "-k", help="Replies to a problem, for pass@k.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="0 = the likeliest token each time. (0 if not given; 0.8 for several samples)")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this share.")] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest reply, in place of each task's own.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    choice_by: Annotated[
        str, typer.Option("--choice-by", help="Letters by their logprobs, or read from the text of a reply.")
    ] = "logprobs",
    batch_rows: Annotated[int | None, typer.Option(help="Replies generated at once, at most.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps or npu.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bfloat16, float32 …; if not given, float32 on a CPU, else auto.")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="packed; or int8, to measure what its rounding costs (in bfloat16).")
    ] = "packed",
    examples: Annotated[
        str | None,
        typer.Option(
            "--examples", help="The folder of the results. (evals/ if not given, in the run where there is one)"
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where there are results already.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the scores as JSON; - prints them.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="URL of an OpenAI-compatible server.")] = None,
    endpoint_model: Annotated[str | None, typer.Option("--endpoint-model", help="Its name for the model.")] = None,
    endpoint_key: Annotated[
        str, typer.Option("--endpoint-key", metavar="VARIABLE", help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    endpoint_tools: Annotated[
        bool, typer.Option("--endpoint-tools", help="Offer the calculator as an OpenAI tool.")
    ] = False,
    concurrency: Annotated[int, typer.Option(help="Requests to the server at a time.")] = 8,
    allow_unsafe_code: Annotated[
        bool, typer.Option("--allow-unsafe-code", help="Run code even where nothing isolates it: as you, unprotected.")
    ] = False,
) -> None:
    """Measure models on tasks and held-out data, side by side; a stopped evaluation goes on where it was."""
    from chatwright.cli.eval import Endpoint, EvalRequest, run_eval

    drawn = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "system": system}
    settings = {"limit": limit, "split": split, "seed": seed, "samples": samples, **drawn}
    server = Endpoint(endpoint, endpoint_model, endpoint_key, concurrency, endpoint_tools) if endpoint else None
    names, sets = tuple(models or ()), tuple(heldout or ())
    how = (choice_by, batch_rows, device, dtype, weights, examples, fresh, json_file, allow_unsafe_code)
    run_eval(EvalRequest(names, tasks, sets, settings, server, *how))
