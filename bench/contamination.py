"""How fast rows are compared with the evaluations, and in how much memory: rows made anew from real ones.

    CHATWRIGHT_DATA=… python bench/contamination.py --rows 1000000 --workers 2

Every worker maps the same index, makes its rows batch by batch (outside the time that is reported as `compared`) and
keeps a report of its own; the reports are merged at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.sources import load_conversations
from chatwright.errors import UserError
from chatwright.inspection.contamination import ContaminationSettings
from chatwright.inspection.contamination_report import ContaminationReport
from chatwright.inspection.contamination_store import load_index, prepare_index
from chatwright.inspection.evaluation_texts import collect_evaluations
from chatwright.tasks.registry import make_task

SHARED = Path(os.environ.get("CHATWRIGHT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
FILES = ("alpaca_libre_tasks_v1.jsonl", "alpaca_libre_tasks_v2.jsonl", "glaive_toolcall_en_demo.json")
TASKS = ("gsm8k", "general", "persona")
BATCH = 2_000
PLANTED = 0.001
CHARACTERS = 1_000
"""Of a row, about: 250 tokens."""


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    settings, load = ContaminationSettings(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        evaluations = collect_evaluations()
        collected = time.perf_counter()
        index = prepare_index(evaluations, settings, Path(folder))
        built = time.perf_counter()
        share = options.rows // options.workers
        jobs = [(str(index), number * share, share) for number in range(options.workers)]
        with get_context("spawn").Pool(options.workers) as pool:
            results = pool.map(_measure, jobs)
        wall = time.perf_counter() - built
    report = ContaminationReport.of(evaluations, settings)
    for result in results:
        report.merge(ContaminationReport.from_dict(result["report"]))
    compared = max(result["compared"] for result in results)
    rows = share * options.workers
    figures = {
        "rows": rows,
        "workers": options.workers,
        "characters_per_row": round(sum(result["characters"] for result in results) / rows),
        "evaluation_items": dict(evaluations.items),
        "not_compared_with": dict(evaluations.unchecked),
        "seconds_to_collect": round(collected - began, 2),
        "seconds_to_build": round(built - collected, 2),
        "seconds_with_making_rows": round(wall, 1),
        "seconds_compared": round(compared, 1),
        "rows_per_second": round(rows / compared),
        "cpu_microseconds_per_row": round(sum(result["cpu"] for result in results) / rows * 1e6, 1),
        "load_before": round(load, 2),
        "peak_bytes_of_a_worker": max(result["peak"] for result in results),
        "planted": sum(result["planted"] for result in results),
        "hit": report.num_contaminated,
        "planted_missed": sum(result["missed"] for result in results),
    }
    print(json.dumps(figures, indent=1))


def _measure(job: tuple[str, int, int]) -> dict[str, Any]:
    folder, first, count = job
    settings = ContaminationSettings()
    index = load_index(Path(folder), settings)
    report = ContaminationReport(shown=settings.shown)
    compared, cpu, characters, planted, missed = 0.0, 0.0, 0, 0, 0
    texts = [item.text for item in index.items if item.field == "question" and len(item.text.split()) > 15]
    for batch, marks in _batches(texts, first, count):
        began, cpu_began = time.perf_counter(), time.process_time()
        found = index.matches(batch)
        report.add(index, batch, found)
        compared += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        characters += sum(len(message.text) for row in batch for message in row.messages)
        planted += len(marks)
        missed += sum(not found[mark] for mark in marks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counts = {"characters": characters, "planted": planted, "missed": missed, "peak": peak}
    return {"compared": compared, "cpu": cpu, **counts, "report": report.to_dict()}


def _batches(planted: list[str], first: int, count: int) -> Iterator[tuple[list[Conversation], list[int]]]:
    """Rows of turns of real rows with a word in five replaced, now and then with an evaluation question."""
    rng = random.Random(first)
    turns = list(_turns())
    words = " ".join(turn[1] for turn in turns).split()
    for start in range(first, first + count, BATCH):
        rows, marks = [], []
        for number in range(start, min(start + BATCH, first + count)):
            messages: list[Message] = []
            while sum(len(message.text) for message in messages) < rng.uniform(0.5, 1.3) * CHARACTERS:
                messages += [Message.of(role, _vary(text, words, rng)) for role, text in _both(rng.choice(turns))]
            if rng.random() < PLANTED:
                messages[0] = Message.of("user", f"Please answer. {rng.choice(planted)}")
                marks.append(number - start)
            rows.append(Conversation(tuple(messages), source="made", row=number))
        yield rows, marks


def _both(turn: tuple[str, str]) -> Iterator[tuple[Any, str]]:
    yield "user", turn[0]
    yield "assistant", turn[1]


def _vary(text: str, words: list[str], rng: random.Random) -> str:
    pieces = text.split(" ")
    for place in range(rng.randrange(5), len(pieces), 5):
        pieces[place] = rng.choice(words)
    return " ".join(pieces)


def _turns() -> Iterator[tuple[str, str]]:
    """Question and answer of real rows, as far as they are there."""
    rows: list[Conversation] = []
    for task in TASKS:
        try:
            rows += make_task(task).conversations("train")
        except UserError as error:
            print(f"without {task}: {error.message}")
    for name in FILES:
        if (SHARED / "data/sft" / name).exists():
            rows += load_conversations(SHARED / "data/sft" / name, on_bad_row="skip").conversations
    for row in rows:
        texts = {message.role: message.text for message in row.messages}
        if texts.get("user") and texts.get("assistant"):
            yield texts["user"], texts["assistant"]


if __name__ == "__main__":
    main()
