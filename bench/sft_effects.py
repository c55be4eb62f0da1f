"""What the choices of supervised fine-tuning do, on real data: loss mask, replay of general data, learning rate.

    python bench/sft_effects.py --threads 2 --out bench/results/effects.json

Seven ways to train SmolLM2-135M-Instruct on about the same number of tokens, each with several seeds:

- *mask* (`replies only`, `all tokens`): to chat by nanochat's template, whose nine control tokens are new to the model:
  it must learn from this data alone where a reply ends and whose turn it is. Rows: general questions, dialogues.
- *replay* (`without replay`, `with replay`) and *learning rate* (`1e-6`, `3e-4` = `with replay`, `3e-3`): to count
  letters with the calculator, by its own ChatML; and `LoRA`, the same with an adapter.

Measured on rows and problems that no training row shares. Of every measure the table shows the mean over seeds with
their lowest and highest; differences are of the means over seeds, problem by problem, with the interval of the
paired bootstrap over problems.
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

from chatwright.batches.token_store import TokenStore
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import load_conversations
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.showcase import answers
from chatwright.recipes.talking import session_for
from chatwright.runtime import start_runtime
from chatwright.tasks.registry import make_task
from chatwright.templates.base import Template, TrainOn
from common import SHARED, machine_facts, silence
from measures import differences, questions, row_losses

MODEL = "smollm2-135m-q4"
REPLY_TOKENS = 64
USABLE = [{"kind": "field", "field": "status", "allow": ["ok"]}, {"kind": "empty_reply"}]
TOOLS = {
    "call_start": "<jupyter_code>",
    "call_end": "<jupyter_script>",
    "result_start": "<jupyter_output>",
    "result_end": "<empty_output>",
}
GENERAL = {
    "path": str(SHARED / "data/sft/alpaca_libre_tasks_v2.jsonl"),
    "format": "alpaca",
    "on_bad_row": "skip",
    "filters": USABLE,
}
DIALOGUES = {"path": str(SHARED / "data/dialogue/chatterbot/english"), "on_bad_row": "skip"}
LETTERS = {"task": "letter_counting"}
CHAT = {
    "template": {"format": "nanochat"},
    "data": [{"task": "general"}, {**DIALOGUES, "max_rows": 300}, {**GENERAL, "max_rows": 100}],
    "optimizer": {"learning_rate": 3e-4, "betas": [0.9, 0.95]},
}
COUNT = {
    "template": {"format": "chatml", "tools": TOOLS},
    "data": [{**LETTERS, "stop": 300}],
    "optimizer": {"learning_rate": 3e-4, "betas": [0.9, 0.95]},
}
REPLAY = {**COUNT, "data": [{**LETTERS, "stop": 120}, {"task": "general", "stop": 150}, {**GENERAL, "max_rows": 60}]}


def _rate(arm: Mapping[str, Any], rate: float) -> dict[str, Any]:
    return {**arm, "optimizer": {**arm["optimizer"], "learning_rate": rate}}


ARMS: dict[str, dict[str, Any]] = {
    "replies only": CHAT,
    "all tokens": {**CHAT, "template": {"format": "nanochat", "train_on": "everything"}},
    "without replay": COUNT,
    "with replay": REPLAY,
    "learning rate 1e-6": _rate(REPLAY, 1e-6),
    "learning rate 3e-3": _rate(REPLAY, 3e-3),
    "LoRA": {**_rate(REPLAY, 2e-3), "adapter": {"rank": 16, "alpha": 16, "targets": ["all-linear"]}},
}
BEFORE = {"before, nanochat": CHAT, "before, ChatML": REPLAY}
"""The model as it comes, under each template."""
MASK_ARMS = ("replies only", "all tokens", "before, nanochat")
PAIRS = (
    ("before, nanochat", "replies only"),
    ("before, ChatML", "with replay"),
    ("before, ChatML", "without replay"),
    ("before, ChatML", "learning rate 3e-3"),
    ("replies only", "all tokens"),
    ("with replay", "without replay"),
    ("with replay", "learning rate 1e-6"),
    ("with replay", "learning rate 3e-3"),
    ("with replay", "LoRA"),
)
"""(first, second): differences say how far the second is above the first."""

Measured = dict[str, np.ndarray]
"""Measure → `[n]`, one number a problem; losses `[n, 2]`, sum and tokens of each row."""


def settings_of(arm: Mapping[str, Any], seed: int, steps: int, folder: str, threads: int | None) -> RunSettings:
    """The recipe of an arm: the same packs, steps and schedule for all."""
    return RunSettings.model_validate(
        {
            "model": MODEL,
            "max_tokens": 384,
            "overflow": "drop",
            "packing": {"by": "tokens", "tokens_per_pack": 384, "packs_per_step": 1},
            "schedule": {"name": "linear", "warmup_fraction": 0.1},
            "train": {"epochs": 100, "max_steps": steps, "seed": seed, "threads": threads},
            "out": f"{folder}/run",
            **arm,
        }
    )


class Material:
    """The held-out problems and rows, drawn once for all arms."""

    def __init__(self, rows: int) -> None:
        path = SHARED / "data/sft/alpaca_libre_tasks_v3.jsonl"
        loaded = load_conversations(path, format="alpaca", on_bad_row="skip").conversations
        usable = [row for row in loaded if row.messages[-1].text.strip() and row.extra.get("status", "ok") == "ok"]
        short = [row for row in usable if sum(len(message.text) for message in row.messages) < 600]
        self.rows = [short[at] for at in np.random.default_rng(0).permutation(len(short))[:rows]]
        self.general = make_task("general").conversations("test")
        self.letters = make_task("letter_counting").conversations("test", 50)

    def prompts(self) -> list[Conversation]:
        """What is asked to see whether replies end, and end as replies."""
        return questions([*self.general, *self.rows[:40]])


def measure(arm: str, model: Any, template: Template, material: Material) -> Measured:
    """Everything that is compared for an arm."""
    found: Measured = {}
    general = session_for(model, template, SamplingSettings(max_new_tokens=REPLY_TOKENS))
    replies = answers(general, [problem.messages[0].text for problem in material.general])
    grade = make_task("general").grade
    pairs = zip(material.general, replies, strict=True)
    found["general questions right"] = np.array([float(grade(problem, reply)) for problem, reply in pairs])
    found["loss on replies"] = row_losses(model, _store(template, material.rows, TrainOn.ASSISTANT))
    if arm in MASK_ARMS:
        found |= _turns(model, template, material)
        found["loss on everything"] = row_losses(model, _store(template, material.rows, TrainOn.EVERYTHING))
    else:
        letters = make_task("letter_counting")
        counted = general.reply_many(questions(material.letters))
        outcomes = zip(material.letters, counted, strict=True)
        found["letters counted right"] = np.array([float(letters.grade(problem, reply)) for problem, reply in outcomes])
    return found


def _store(template: Template, rows: Sequence[Conversation], policy: TrainOn) -> TokenStore:
    return TokenStore.from_examples([example for row in rows for example in template.render(row, policy)])


def _turns(model: Any, template: Template, material: Material) -> Measured:
    """Ends of replies: within the limit, without another turn's tokens before, and what comes after the end."""
    own = {*template.stop_ids, *(template.grammar.token_ids().values() if template.grammar else ())}
    control = set(template.tokenizer.control_names) - own
    engine = make_engine(model, template)
    prompts = [template.render_prompt(question) for question in material.prompts()]
    drawn = engine.generate(prompts, SamplingSettings(max_new_tokens=REPLY_TOKENS))
    user_start = template.tokenizer.control_ids["<|user_start|>"]
    ended = [example.ids.tolist() for row in material.rows for example in template.render(row)]
    after = engine.generate(ended, SamplingSettings(max_new_tokens=1))
    return {
        "replies that end": np.array([float(reply.stop_reason == "stop") for reply in drawn]),
        "replies with another turn's token": np.array([float(bool(control & set(reply.ids))) for reply in drawn]),
        "goes on as the user": np.array([float(reply.ids[0] == user_start) for reply in after]),
    }


def run_arm(arm: str, seed: int, options: argparse.Namespace, material: Material) -> tuple[Measured, dict[str, Any]]:
    """Train one arm with one seed and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of((ARMS | BEFORE)[arm], seed, options.steps, folder, options.threads)
        runtime = start_runtime(settings.train.device, options.threads)
        data = build_data(settings)
        assert isinstance(data, RunData)
        model = build_model(settings, data.text, runtime)
        trainer = build_trainer(settings, data, model, runtime, show_progress=False)
        trainer.trainer.save = None  # only what training does to the model counts
        began = time.perf_counter()
        facts: dict[str, Any] = {"arm": arm, "seed": seed}
        if arm not in BEFORE:
            result = trainer.train()
            facts |= {"tokens": result.progress.tokens, "supervised_tokens": result.progress.supervised_tokens}
            facts["train_seconds"] = round(time.perf_counter() - began, 1)
        found = measure(arm, model.model, data.text.template, material)
    facts["measures"] = {name: round(_mean(values), 4) for name, values in found.items()}
    return found, facts


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.ndim == 1 else float(values[:, 0].sum() / values[:, 1].sum())


def summary(found: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Every arm's measures, and the differences, as rows of cells; the first row of each is its heading."""
    names = list(dict.fromkeys(name for run in found["runs"] for name in run["measures"]))
    arms = [["arm", *names]]
    for arm in dict.fromkeys(run["arm"] for run in found["runs"]):
        cells = []
        for name in names:
            values = [run["measures"][name] for run in found["runs"] if run["arm"] == arm and name in run["measures"]]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "")
        arms.append([arm, *cells])
    changes = [["from", "to", "measure", "change", "95 % interval", "beyond chance"]]
    for each in found["differences"]:
        interval = f"{each['low']:+.3f} to {each['high']:+.3f}"
        told = [each["first"], each["second"], each["measure"], f"{each['value']:+.3f}", interval]
        changes.append([*told, "yes" if each["significant"] else "no"])
    return arms, changes


def print_result(found: Mapping[str, Any]) -> None:
    """Both tables on the terminal."""
    console = Console(highlight=False, width=170)
    for rows in summary(found):
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)


def markdown(found: Mapping[str, Any]) -> str:
    """Both tables for a document."""
    blocks = []
    for rows in summary(found):
        lines = [f"| {' | '.join(row)} |" for row in rows]
        blocks.append("\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]))
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Read the options, run every arm with every seed, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=";".join((*BEFORE, *ARMS)), help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=18, help="of about 370 tokens")
    parser.add_argument("--rows", type=int, default=100, help="held-out general rows for the losses")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", help="write the result as JSON")
    parser.add_argument("--markdown", help="write the tables for a document")
    options = parser.parse_args()
    silence()
    material = Material(options.rows)
    measured: dict[str, list[Measured]] = {}
    runs = []
    for arm in options.arms.split(";"):
        for seed in range(1 if arm in BEFORE else options.seeds):
            values, facts = run_arm(arm, seed, options, material)
            measured.setdefault(arm, []).append(values)
            runs.append(facts)
            print(json.dumps(facts, ensure_ascii=False), flush=True)
    given = {name: value for name, value in vars(options).items() if name not in ("out", "markdown")}
    found = {"bench": "sft_effects", "options": given, "model": MODEL, "runs": runs}
    found |= {"differences": differences(measured, PAIRS), "machine": machine_facts()}
    print_result(found)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.markdown:
        Path(options.markdown).write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
