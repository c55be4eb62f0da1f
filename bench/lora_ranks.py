"""LoRA by rank beside full fine-tuning: what is learned, what is forgotten, and how many directions the change has.

    python bench/lora_ranks.py --threads 2 --out bench/results/lora-ranks.json --svg docs/lora-ranks.svg

SmolLM2-135M-Instruct learns to count letters with the calculator (the `letters` recipe's rows without its replay of
general questions, which would hide what is forgotten), with adapters of rank 1, 4, 16, 64 on every linear layer and in
full, on the same steps. Measured: counts of words that no training row has (the model's own replies, tool in the
loop); the loss on replies to general questions and on a novel's passages, neither trained on. A rank's learning rate is
rank 1's divided by the root of the rank, and each arm is run at half its rate, too: forgetting is to be compared where
as much was learned.

Of full fine-tuning, each sampled weight matrix's singular values: of the matrix itself, of its change, and of the
gradient on held-out rows, at the beginning, in the middle and at the end. What is told of them is the share of the
energy (the sum of squares) in the largest r, and the effective rank: the exponential of the entropy of the normalized
squares (after Roy & Vetterli 2007, who take the values themselves). A Gaussian random matrix of the same shape stands
beside, since no spectrum is flat.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from chatwright.adapters.lora import linear_layers
from chatwright.batches.token_store import TokenStore
from chatwright.conversations.sources import load_conversations
from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.talking import session_for
from chatwright.reports.document import Chart, Series
from chatwright.runtime import start_runtime
from chatwright.tasks.registry import make_task
from chatwright.templates.rendered import ExampleKey, RenderedExample
from chatwright.templates.template import Template
from common import SHARED, machine_facts, silence
from measures import differences, grade_letters, grade_replies, row_losses, write_chart
from spectra import EVERY_LAYER, SHARES, Gradients, spectra_of

MODEL = "smollm2-135m-q4"
TOOLS = {
    "call_start": "<jupyter_code>",
    "call_end": "<jupyter_script>",
    "result_start": "<jupyter_output>",
    "result_end": "<empty_output>",
}
RANKS = (1, 4, 16, 64)
BEFORE, FULL, HALF = "before", "full", ", half rate"
COUNTED, GENERAL, NOVEL, ARC = "letters counted", "loss, general replies", "loss, novel", "ARC-Easy, letters"

Measured = dict[str, np.ndarray]
"""Measure → `[n]` shares, or `[n, 2]` losses (sum, tokens), a row a problem."""


def settings_of(arm: str, seed: int, options: argparse.Namespace, folder: str) -> RunSettings:
    """The recipe of an arm: the same rows, packs, steps and schedule for all."""
    plain: dict[str, Any] = {
        "model": MODEL,
        "template": {"format": "chatml", "tools": TOOLS},
        "data": [{"task": "letter_counting", "stop": options.rows}],
        "max_tokens": 256,
        "packing": {"by": "tokens", "tokens_per_pack": 400},
        "optimizer": {"learning_rate": options.full_rate, "betas": [0.9, 0.95]},
        "schedule": {"name": "linear", "warmup_fraction": 0.1},
        "train": {"epochs": 1, "seed": seed, "threads": options.threads},
        "out": f"{folder}/run",
    }
    kind, factor = kind_of(arm)
    plain["optimizer"]["learning_rate"] *= factor
    if kind not in (BEFORE, FULL):
        rank = int(kind.removeprefix("rank "))
        plain["adapter"] = {"rank": rank, "alpha": 1, "scaling": "raw"}
        plain["optimizer"]["learning_rate"] = factor * options.lora_rate / rank**0.5
    return RunSettings.model_validate(plain)


def kind_of(arm: str) -> tuple[str, float]:
    """`rank 4` or `full`, and the factor on its learning rate: `rank 4, half rate` has ½."""
    return arm.removesuffix(HALF), 0.5 if arm.endswith(HALF) else 1.0


class Material:
    """Held-out problems, replies and passages, the same for all arms."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.letters = make_task("letter_counting").conversations("test", options.words)
        self.arc = make_task("arc").conversations("test", options.arc) if options.arc else []
        path = SHARED / "data/sft/alpaca_libre_tasks_v3.jsonl"
        loaded = load_conversations(path, format="alpaca", on_bad_row="skip").conversations
        usable = [row for row in loaded if row.messages[-1].text.strip() and row.extra.get("status", "ok") == "ok"]
        short = [row for row in usable if sum(len(message.text) for message in row.messages) < 600]
        self.general = [short[at] for at in np.random.default_rng(0).permutation(len(short))[: options.general]]
        novel = (SHARED / "data/text/gutenberg/treasure_island.txt").read_text(encoding="utf-8")
        starts = np.linspace(20_000, len(novel) - 40_000, options.passages).astype(int)
        self.passages = [novel[start : start + 700] for start in starts]

    def replies(self, template: Template) -> TokenStore:
        """General questions; their replies are trained tokens."""
        return TokenStore.from_examples([example for row in self.general for example in template.render(row)])

    def novel(self, template: Template) -> TokenStore:
        """Passages of plain text, every token but the first counted."""
        examples = []
        for row, text in enumerate(self.passages):
            ids = np.array(template.tokenizer.encode_text(text, at_start=True), dtype=np.int32)
            weights = np.ones(len(ids), dtype=np.float32)
            weights[0] = 0.0
            examples.append(RenderedExample(ids, weights, (), ExampleKey("novel", row, 0)))
        return TokenStore.from_examples(examples)

    def counts(self, template: Template) -> TokenStore:
        """Held-out counts with their reference replies, for gradients."""
        return TokenStore.from_examples([example for row in self.letters for example in template.render(row)])


def measure(model: Any, template: Template, material: Material) -> Measured:
    """Everything that is compared for an arm."""
    session = session_for(model, template, SamplingSettings(max_new_tokens=48))
    found = {
        COUNTED: grade_replies(session, make_task("letter_counting"), material.letters).right,
        GENERAL: row_losses(model, material.replies(template)),
        NOVEL: row_losses(model, material.novel(template)),
    }
    if material.arc:
        found[ARC] = grade_letters(model, template, material.arc)
    return found


# Runs


def run_arm(arm: str, seed: int, options: argparse.Namespace, material: Material) -> tuple[Measured, dict[str, Any]]:
    """Train one arm with one seed and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(arm, seed, options, folder)
        runtime = start_runtime(settings.train.device, options.threads)
        data = build_data(settings)
        assert isinstance(data, RunData)
        model = build_model(settings, data.text, runtime)
        template = data.text.template
        facts: dict[str, Any] = {
            "arm": arm,
            "seed": seed,
            "trainable": sum(p.numel() for p in model.trainable.values()),
        }
        names = [name for name in linear_layers(model.model) if int(name.split(".")[2]) % EVERY_LAYER == 0]
        looked = options.spectra and arm == FULL
        stores = {"letters": material.counts(template), "general": material.replies(template)}
        look = Gradients(model.model, names, stores, options.gradient_tokens)
        before = {f"{n}.weight": model.model.get_submodule(n).weight.detach().clone() for n in names if looked}
        trainer = build_trainer(settings, data, model, runtime, hooks=[look] if looked else [], show_progress=False)
        trainer.trainer.save = None  # only what training does to the model counts
        began = time.perf_counter()
        if arm != BEFORE:
            result = trainer.train()
            facts |= {"steps": result.progress.step, "tokens": result.progress.tokens}
            facts["train_seconds"] = round(time.perf_counter() - began - look.seconds, 1)
        if looked:
            facts["spectra"] = spectra_of(names, before, trainer.trainer.optimizer.master_state())
            facts["gradients"] = look.found
        found = measure(model.model, template, material)
    facts["measures"] = {name: round(_mean(values), 4) for name, values in found.items()}
    return found, facts


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.ndim == 1 else float(values[:, 0].sum() / values[:, 1].sum())


def pairs_of(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each arm against the model before, and each against full."""
    arms = [arm for arm in measured if arm != BEFORE]
    return [(BEFORE, arm) for arm in arms] + [(FULL, arm) for arm in arms if arm != FULL]


# What is shown


def tables(found: Mapping[str, Any]) -> list[list[list[str]]]:
    """Measures by arm, differences, spectra: rows of cells, the first of each its heading."""
    names = list(found["runs"][0]["measures"])
    arms = [["arm", "trained parameters", "seconds", *names]]
    for arm in dict.fromkeys(run["arm"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["arm"] == arm]
        cells = []
        for name in names:
            values = [run["measures"][name] for run in runs]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        trained = arm != BEFORE
        seconds = f"{np.mean([run.get('train_seconds', 0) for run in runs]):.0f}" if trained else ""
        arms.append([arm, f"{runs[0]['trainable']:,}" if trained else "", seconds, *cells])
    changes = [["from", "to", "measure", "change", "95 % interval", "beyond chance"]]
    for each in found["differences"]:
        interval = f"{each['low']:+.3f} to {each['high']:+.3f}"
        told_ = [each["first"], each["second"], each["measure"], f"{each['value']:+.3f}", interval]
        changes.append([*told_, "yes" if each["significant"] else "no"])
    return [arms, changes, _spectra_table(found)]


def _spectra_table(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["of", *(f"first {r}" for r in SHARES), "effective rank"]]
    runs = [run for run in found["runs"] if "spectra" in run]
    kinds = [(kind, [run["spectra"][kind] for run in runs]) for kind in ("noise", "weights", "change")]
    for kind in ("letters", "general"):
        for step in runs[0]["gradients"][kind] if runs else ():
            kinds.append((f"gradient, {kind}, step {step}", [run["gradients"][kind][step] for run in runs]))
    for name, values in kinds if runs else ():
        shares = [f"{np.mean([value['share'][str(r)] for value in values]):.1%}" for r in SHARES]
        rows.append([name, *shares, f"{np.mean([value['effective_rank'] for value in values]):.0f}"])
    return rows


def chart_of(found: Mapping[str, Any]) -> Chart | None:
    """Share of energy in the first r directions: noise, weights, change, gradients. None without spectra."""
    rows = _spectra_table(found)[1:]
    if not rows:
        return None
    wanted = {"noise": "noise", "weights": "weights", "change": "change of weights"}
    wanted |= {"gradient, letters, step 0": "gradient, before"}
    series = tuple(
        Series(wanted[row[0]], tuple((r, float(cell.rstrip("%"))) for r, cell in zip(SHARES, row[1:-1], strict=True)))
        for row in rows
        if row[0] in wanted
    )
    return Chart("energy in the largest singular values", "%", series, along="singular values (of 192 to 576)")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables for a document."""
    blocks = []
    for rows in tables(found):
        lines = [f"| {' | '.join(row)} |" for row in rows]
        blocks.append("\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]))
    return "\n\n".join(blocks) + "\n"


def jobs(arms: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """(arm, seed) in the order of their worth: all arms at their own rate first, then one seed at half of it."""
    own = [
        (arm, seed) for seed in range(seeds) for arm in arms if not arm.endswith(HALF) and (arm != BEFORE or not seed)
    ]
    return own + [(arm, 0) for arm in arms if arm.endswith(HALF)]


def main() -> None:
    """Read the options, run every arm with every seed, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arms = (FULL, *(f"rank {r}" for r in RANKS))
    parser.add_argument("--arms", default=";".join((BEFORE, *arms, *(f"{arm}{HALF}" for arm in arms))))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200, help="training rows of 40 tokens")
    parser.add_argument("--words", type=int, default=50, help="held-out words to count")
    parser.add_argument("--general", type=int, default=50, help="held-out general questions")
    parser.add_argument("--passages", type=int, default=25, help="of a novel, 700 characters each")
    parser.add_argument("--arc", type=int, default=0, help="ARC-Easy problems; the model is at guessing there")
    parser.add_argument("--full-rate", type=float, default=3e-4)
    parser.add_argument("--lora-rate", type=float, default=1e-2, help="of rank 1; of rank r, by its root less")
    parser.add_argument("--gradient-tokens", type=int, default=1200)
    parser.add_argument("--no-spectra", dest="spectra", action="store_false")
    parser.add_argument("--minutes", type=float, default=11.5, help="begin no further run after this")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", help="write the result as JSON")
    parser.add_argument("--markdown", help="write the tables for a document")
    parser.add_argument("--svg", help="write the picture")
    options = parser.parse_args()
    silence()
    began = time.perf_counter()
    material = Material(options)
    measured: dict[str, list[Measured]] = {}
    runs, left_out = [], []
    for arm, seed in jobs(options.arms.split(";"), options.seeds):
        if time.perf_counter() - began > 60 * options.minutes:
            left_out.append(f"{arm}, seed {seed}")
            continue
        values, facts = run_arm(arm, seed, options, material)
        measured.setdefault(arm, []).append(values)
        runs.append(facts)
        brief = {key: value for key, value in facts.items() if key not in ("spectra", "gradients")}
        print(f"{time.perf_counter() - began:6.0f} s  {json.dumps(brief)}", flush=True)
    given = {name: value for name, value in vars(options).items() if name not in ("out", "markdown", "svg")}
    found = {"bench": "lora_ranks", "options": given, "model": MODEL, "runs": runs, "left_out": left_out}
    found |= {"differences": differences(measured, pairs_of(measured)), "machine": machine_facts()}
    console = Console(highlight=False, width=170)
    for rows in tables(found):
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        Path(options.markdown).write_text(markdown(found), encoding="utf-8")
    chart = chart_of(found)
    if options.svg and chart is not None:
        write_chart(options.svg, chart)


if __name__ == "__main__":
    main()
