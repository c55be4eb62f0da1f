"""How fast are conversations made into masked, packed, cached tokens, and in how much memory?

Writes `--rows` conversations made from the shared data with variation (about 250 tokens each), then measures each case
in a process of its own: `ours` (from the file to a packing plan over the cached store), `encode_batch` and
`encode_batch_fast` of the `tokenizers` library alone on the same texts in memory, with all cores, and `trl` (the
preparation of TRL's SFTTrainer, packing included). Resident memory is the sum over all processes of a case, sampled.

    python bench/prepare.py --rows 1000000 --cases ours,encode_batch,encode_batch_fast,trl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from chatwright.conversations.sources import load_conversations
from common import REPOSITORY, SHARED, machine_facts, silence_trl

FILES = (
    "data/gsm8k/train.jsonl",
    "data/sft/alpaca_libre_tasks_v1.jsonl",
    "data/sft/alpaca_libre_tasks_v3.jsonl",
    "data/sft/fastchat_dummy_conversation.json",
    "data/preference/kto_en_demo.json",
)
CHARACTERS_PER_ROW = 560
TEXTS_AT_ONCE = 20_000


def real_turns() -> list[tuple[str, str]]:
    """Questions and replies of the real sets."""
    turns: list[tuple[str, str]] = []
    for file in FILES:
        format = "messages" if "kto" in file else "auto"
        for conversation in load_conversations(SHARED / file, format=format, on_bad_row="skip").conversations:
            texts = ["".join(part.text for part in m.parts) for m in conversation.messages if m.role != "system"]
            turns += [
                pair for pair in zip(texts[::2], texts[1::2], strict=False) if all(pair) and sum(map(len, pair)) < 3000
            ]
    return turns


def vary(text: str, rng: random.Random) -> str:
    """The text with other numbers and two words swapped, so that rows differ as real ones do."""
    text = re.sub(r"\d+", lambda found: str(rng.randrange(10 ** len(found[0]))), text)
    words = text.split(" ")
    if len(words) > 8:
        first = rng.randrange(len(words) - 1)
        words[first], words[first + 1] = words[first + 1], words[first]
    return " ".join(words)


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` conversations of about 250 tokens, some with a system prompt."""
    turns = real_turns()
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            messages: list[dict[str, str]] = []
            if rng.random() < 0.2:
                messages.append({"role": "system", "content": "You are a helpful assistant."})
            wanted, size = CHARACTERS_PER_ROW * rng.uniform(0.5, 1.5), 0
            while size < wanted:
                question, reply = rng.choice(turns)
                messages += [
                    {"role": "user", "content": vary(question, rng)},
                    {"role": "assistant", "content": vary(reply, rng)},
                ]
                size += len(question) + len(reply)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def read_texts(path: str, count: int | None) -> Iterator[str]:
    """Each row's contents as one text."""
    with Path(path).open(encoding="utf-8") as file:
        for line in islice(file, count):
            yield "\n".join(message["content"] for message in json.loads(line)["messages"])


def settings_of(case: dict[str, Any]) -> Any:
    """The recipe of our case."""
    from chatwright.recipes.run_settings import RunSettings

    return RunSettings.model_validate(
        {
            "model": case["model"],
            "template": {"format": case["template"]},
            "data": [{"path": case["file"], "format": "messages"}],
            "overflow": "drop",
            "max_tokens": 2048,
            "preparation": {"workers": case["workers"]},
        }
    )


def measure_ours(case: dict[str, Any]) -> dict[str, Any]:
    """From the file to a plan, through a cache of its own."""
    from chatwright.checkpoints.imports import resolve_model
    from chatwright.recipes.data import build_data, prepare_text
    from chatwright.recipes.rendering import data_fingerprint

    settings = settings_of({**case, "model": str(resolve_model(case["model"]).folder)})
    data_fingerprint(settings, prepare_text(settings).template)  # the model is at hand, and imports are done
    with tempfile.TemporaryDirectory(dir=Path(case["file"]).parent) as folder:
        os.environ["CHATWRIGHT_CACHE"] = folder
        began = time.perf_counter()
        data = build_data(settings)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        again = time.perf_counter()
        assert build_data(settings).from_cache
        return {
            "seconds": seconds,
            "rows": data.entries[0].num_rows,
            "tokens": data.store.num_tokens,
            "supervised_tokens": int(data.store.supervised_counts.sum()),
            "packs": data.plan.num_packs,
            "packing_waste": data.plan.waste(data.store.lengths).fraction,
            "cache_bytes": size,
            "seconds_from_cache": time.perf_counter() - again,
        }


def measure_tokenizers(case: dict[str, Any]) -> dict[str, Any]:
    """The tokenizers library alone: texts at hand, ids thrown away."""
    from tokenizers import Tokenizer

    from chatwright.checkpoints.imports import resolve_model

    tokenizer = Tokenizer.from_file(str(resolve_model(case["model"]).text_folder / "tokenizer.json"))
    encode = getattr(tokenizer, case["case"])
    texts = read_texts(case["file"], case["baseline_rows"])
    rows = tokens = 0
    seconds = 0.0
    while batch := list(islice(texts, TEXTS_AT_ONCE)):
        began = time.perf_counter()
        encoded = encode(batch, add_special_tokens=False)
        seconds += time.perf_counter() - began
        rows += len(batch)
        tokens += sum(len(each) for each in encoded)
    return {"seconds": seconds, "rows": rows, "tokens": tokens}


def measure_trl(case: dict[str, Any]) -> dict[str, Any]:
    """What TRL does before its first step: chat template, tokens, assistant mask where its template has one, packs."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from chatwright.checkpoints.imports import resolve_model

    silence_trl()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(case["model"]).text_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with tempfile.TemporaryDirectory() as folder:
        with Path(case["file"]).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, case["trl_rows"])]
        table = datasets.Dataset.from_list(rows)
        options = SFTConfig(
            output_dir=folder, packing=True, max_length=2048, dataset_num_proc=case["workers"] or 2, use_cpu=True,
            bf16=False, report_to="none",
        )  # fmt: skip
        began = time.perf_counter()
        trainer = SFTTrainer(
            model=LlamaForCausalLM(config), args=options, train_dataset=table, processing_class=tokenizer
        )
        seconds = time.perf_counter() - began
        tokens = sum(map(len, trainer.train_dataset["input_ids"]))
    return {"seconds": seconds, "rows": len(rows), "tokens": tokens, "note": "its own defaults: every token trained"}


MEASURES = {
    "ours": measure_ours,
    "encode_batch": measure_tokenizers,
    "encode_batch_fast": measure_tokenizers,
    "trl": measure_trl,
}


class MemoryWatch:
    """The most resident memory of a process and all below it, sampled: all, and what isn't mapped files."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self.peak_anonymous, self.stopped = pid, 0, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stopped.wait(0.2):
            pids, total, anonymous = [self.pid], 0, 0
            while pids:
                pid = pids.pop()
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    for task in Path(f"/proc/{pid}/task").iterdir():
                        pids += map(int, (task / "children").read_text().split())
                except OSError:
                    continue
                total += _kib(status, "VmRSS")
                anonymous += _kib(status, "RssAnon")
            self.peak, self.peak_anonymous = max(self.peak, total), max(self.peak_anonymous, anonymous)

    def stop(self) -> dict[str, int]:
        """The peaks in bytes."""
        self.stopped.set()
        self.thread.join()
        return {"peak_bytes": self.peak * 1024, "peak_anonymous_bytes": self.peak_anonymous * 1024}


def _kib(status: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else 0


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", json.dumps(case)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    watch = MemoryWatch(child.pid)
    output, _ = child.communicate()
    memory = watch.stop()
    if child.returncode:
        raise SystemExit(f"the case {case['case']} failed")
    return {**json.loads(output.splitlines()[-1]), **memory}


def main() -> None:
    """Write the rows, measure the cases, print a table, store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--baseline-rows", type=int, default=200_000, help="most rows for the tokenizers library alone")
    parser.add_argument("--trl-rows", type=int, default=50_000)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--template", default="auto", help="auto: the model's own; or a native one, such as chatml")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cases", default="encode_batch,encode_batch_fast,ours")
    parser.add_argument("--folder", type=Path, help="where the rows are written; kept, and used again")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case = json.loads(options.child)
        print(json.dumps(MEASURES[case["case"]](case)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chatwright-prepare-"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rows-{options.rows}.jsonl"
    if not file.exists():
        write_rows(file, options.rows)
    case = {name: getattr(options, name) for name in ("model", "template", "workers", "baseline_rows", "trl_rows")}
    figures = {
        "machine": machine_facts(),
        "rows": options.rows,
        "template": options.template,
        "bytes": file.stat().st_size,
        "cases": {name: run_case({**case, "case": name, "file": str(file)}) for name in options.cases.split(",")},
    }
    for name, each in figures["cases"].items():
        print(
            f"{name:18} {each['rows']:>9,} rows {each['tokens']:>12,} tokens {each['seconds']:8.1f} s "
            f"{each['rows'] / each['seconds']:8,.0f} rows/s {each['tokens'] / each['seconds']:10,.0f} tokens/s "
            f"peak {each['peak_bytes'] / 2**30:.2f} GiB ({each['peak_anonymous_bytes'] / 2**30:.2f} not mapped files)"
        )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
