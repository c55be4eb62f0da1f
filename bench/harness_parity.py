"""The same model, the same rows, in lm-evaluation-harness: its `--model hf` beside `--model chatwright`.

    python bench/harness_parity.py                                  SmolLM2-135M, 100 questions a task
    python bench/harness_parity.py --limit 20 --tasks arc_easy,letters

Needs the extra `harness`, and ARC, MMLU and GSM8K below `CHATWRIGHT_DATA`. lm-eval's data sets come from the hub; here
its tasks are written anew over local rows, with lm-eval's own words and settings for ARC, MMLU and GSM8K, and once more
with ours (`letters`: the chat prompt of `chatwright eval`, the letters as continuations). Both sides run in float32.

Compared, request by request: log-likelihoods (at most --tolerance apart, relative above 1), greedy verdicts and
generated texts, and with them every metric. Then `letters` is asked of `chatwright eval`'s own local subject, whose
log-probabilities must be lm-eval's less that of the line break which lm-eval moves from the end of a chat prompt into
the continuation. Exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from chatwright.checkpoints.imports import resolve_model
from chatwright.conversations.schema import Conversation
from chatwright.tasks.registry import make_task
from chatwright.tasks.task_data import data_folder
from common import machine_facts, silence

Json = dict[str, Any]
LETTERS = "ABCDE"
_CHOICE = re.compile(r"^- (.*?)=([A-E])$", re.MULTILINE | re.DOTALL)
_QUESTION = re.compile(r"Multiple Choice question: (.*?)\n- ", re.DOTALL)


# Rows and tasks


def questions(task: str, count: int, **options: Any) -> list[Json]:
    """The first `count` questions of a task in an order of its own: their words, choices and right answer."""
    return [question_row(each) for each in make_task(task, **options).conversations("test", count, seed=0)]


def question_row(conversation: Conversation) -> Json:
    """One question taken apart, and whole as Chatwright asks it."""
    asked = conversation.messages[0].text
    match = _QUESTION.search(asked)
    assert match is not None, asked
    letters = conversation.extra["letters"]
    choices = [choice for choice, _ in _CHOICE.findall(asked)]
    assert len(choices) == len(letters), asked
    gold = letters.index(conversation.extra["answer"])
    return {"question": match[1], "choices": choices, "gold": gold, "asked": asked, "letters": list(letters)}


def gsm8k_rows(count: int) -> list[Json]:
    """GSM8K's questions and answers as they are."""
    folder = data_folder()
    assert folder is not None
    lines = (folder / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line) for line in lines]


def text_rows(count: int) -> list[Json]:
    """Stretches of WikiText-2's test set of about 3,000 characters: longer than a short context."""
    folder = data_folder()
    assert folder is not None
    text = (folder / "text" / "wikitext2_test.txt").read_text(encoding="utf-8")
    return [{"page": text[start : start + 3000]} for start in range(0, 3000 * count, 3000)]


_ACC = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
_ARC: Json = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": _ACC,
}
_MMLU: Json = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
    "D. {{choices[3]}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "{{gold}}",
    "metric_list": _ACC[:1],
}
TASKS: dict[str, tuple[Callable[[int], list[Json]], Json]] = {
    "arc_easy": (lambda count: questions("arc", count, subset="ARC-Easy"), _ARC),
    "arc_challenge": (lambda count: questions("arc", count, subset="ARC-Challenge"), _ARC),
    "mmlu": (lambda count: questions("mmlu", count), _MMLU),
    "mmlu_fewshot": (
        lambda count: questions("mmlu", max(8, count // 4), subset="world_religions"),
        {**_MMLU, "num_fewshot": 3, "fewshot_config": {"sampler": "first_n"}, "fewshot_split": "test"},
    ),
    "letters": (
        lambda count: questions("arc", count, subset="ARC-Easy") + questions("mmlu", count),
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{asked}}",
            "doc_to_choice": "{{letters}}",
            "doc_to_target": "{{gold}}",
            "metric_list": _ACC[:1],
        },
    ),
    "wikitext": (
        lambda count: text_rows(max(1, count // 20)),
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
    ),
    "gsm8k": (
        lambda count: gsm8k_rows(max(1, count // 5)),
        {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 64},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
}
"""Task → its rows, and what lm-eval does with them."""


def write_tasks(names: list[str], limit: int, folder: Path) -> None:
    """Rows and task files for lm-eval's `--include_path`."""
    for name in names:
        rows, task = TASKS[name]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(limit)), encoding="utf-8")
        local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
        whole = {"task": f"local_{name}", **local, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole), encoding="utf-8")


# Runs


def load(kind: str, folder: Path, context: int | None) -> Any:
    """lm-eval's model of that name."""
    from lm_eval.api.registry import get_model

    import chatwright.recipes.harness_model  # noqa: F401 - registers `chatwright`

    arguments = {"pretrained": str(folder), "dtype": "float32", **({"max_length": context} if context else {})}
    return get_model(kind).create_from_arg_obj(arguments, {"batch_size": 16, "device": "cpu"})


def evaluate(lm: Any, names: list[str], folder: Path) -> tuple[Json, dict[str, float]]:
    """lm-eval's results, and the CPU seconds of each task; `letters` goes through the chat template."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results: Json = {"results": {}, "samples": {}}
    seconds: dict[str, float] = {}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    for name in names:
        began = time.process_time()
        found = lm_eval.simple_evaluate(
            lm,
            tasks=[f"local_{name}"],
            task_manager=manager,
            bootstrap_iters=0,
            apply_chat_template=name == "letters",
        )
        seconds[name] = time.process_time() - began
        assert found is not None
        results["results"][name] = found["results"][f"local_{name}"]
        results["samples"][name] = found["samples"][f"local_{name}"]
    return results, seconds


def compare(name: str, ours: Json, hf: Json) -> Json:
    """One task's answers on both sides, request by request."""
    apart = 0.0
    verdicts = texts = requests = 0
    for mine, theirs in zip(ours["samples"][name], hf["samples"][name], strict=True):
        for (left,), (right,) in zip(mine["resps"], theirs["resps"], strict=True):
            requests += 1
            if isinstance(left, str):
                texts += left != right
                continue
            value, expected = (each[0] if isinstance(each, tuple | list) else each for each in (left, right))
            apart = max(apart, abs(value - expected) / max(1.0, abs(expected)))
            if isinstance(left, tuple | list):
                verdicts += left[1] != right[1]
    metrics = {}
    for metric, value in hf["results"][name].items():
        if "," in metric and "stderr" not in metric and isinstance(value, float):
            metrics[metric.partition(",")[0]] = [ours["results"][name][metric], value]
    return {
        "requests": requests,
        "largest_difference": apart,
        "greedy_verdicts_apart": verdicts,
        "texts_apart": texts,
        "metrics": metrics,
    }


def equal(result: Json, tolerance: float) -> bool:
    """Numbers within the tolerance; verdicts, texts and what is counted from them (`acc`) exactly."""
    apart = [abs(mine - hf) / max(1.0, abs(hf)) for mine, hf in result["metrics"].values()]
    odd = result["greedy_verdicts_apart"] + result["texts_apart"]
    return odd == 0 and max([result["largest_difference"], *apart]) <= tolerance


def compare_letters(lm: Any, limit: int) -> Json:
    """`chatwright eval`'s letters beside lm-eval's, on the same prompts."""
    from lm_eval.api.instance import Instance

    from chatwright.evals.local import LocalSubject
    from chatwright.evals.trials import asked
    from chatwright.inference.responder import Responder

    rows = make_task("arc", subset="ARC-Easy").conversations("test", limit, 0) + make_task("mmlu").conversations(
        "test", limit, 0
    )
    letters = [conversation.extra["letters"] for conversation in rows]
    subject = LocalSubject("bench", Responder(lm.engine, lm.text.template), "bench")
    own = dict(subject.choose([asked(conversation) for conversation in rows], letters))
    apart, breaks, same = 0.0, 0.0, 0
    for number, conversation in enumerate(rows):
        prompt = lm.apply_chat_template([{"role": "user", "content": conversation.messages[0].text}])
        asks = [Instance("loglikelihood", {}, (prompt, each), 0) for each in ("", *letters[number])]
        glue, *found = [value for value, _ in lm.loglikelihood(asks)]
        mine = list(own[number])  # type: ignore[arg-type]
        apart = max(apart, *(abs(value - glue - each) for value, each in zip(found, mine, strict=True)))
        breaks = min(breaks, glue)
        same += found.index(max(found)) == mine.index(max(mine))
    return {"questions": len(rows), "largest_difference": apart, "same_letter": same, "least_line_break": breaks}


def main() -> None:
    """Run, print, write, and fail where something differs."""
    silence()
    options = parse_options()
    names = options.tasks.split(",")
    folder = resolve_model(options.model).folder
    with tempfile.TemporaryDirectory() as work:
        write_tasks(names, options.limit, Path(work))
        lms = {kind: load(kind, folder, options.context) for kind in ("chatwright", "hf")}
        runs = {kind: evaluate(lm, names, Path(work)) for kind, lm in lms.items()}
        (ours, our_seconds), (hf, hf_seconds) = runs["chatwright"], runs["hf"]
        found = {name: compare(name, ours, hf) for name in names}
        letters = compare_letters(lms["chatwright"], options.limit) if "letters" in names else None
    for name, result in found.items():
        result |= {"cpu_seconds": [round(our_seconds[name], 1), round(hf_seconds[name], 1)]}
        result["same"] = equal(result, options.tolerance)
    if letters:
        letters["same"] = letters["same_letter"] == letters["questions"] and letters["largest_difference"] <= 1e-4
    show(found, letters)
    same = all(result["same"] for result in found.values()) and (letters is None or letters["same"])
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        report = {"same": same, "tasks": found, "eval_letters": letters, "settings": settings}
        report["lm_eval"] = metadata.version("lm_eval")
        options.json.write_text(json.dumps({**report, "machine": machine_facts()}, indent=1) + "\n")
    print("the same" if same else "NOT the same")
    sys.exit(0 if same else 1)


def show(found: dict[str, Json], letters: Json | None) -> None:
    """The table."""
    from chatwright.console import out, table

    lines = []
    for name, result in found.items():
        apart = f"{result['largest_difference']:.1e}"
        ours, hf = result["cpu_seconds"]
        head: tuple[Any, ...] = (name, result["requests"], apart, f"{ours:.0f} / {hf:.0f}")
        for metric, (mine, theirs) in result["metrics"].items():
            lines.append((*head, metric, f"{mine:.5g}", f"{theirs:.5g}"))
            head = ("", None, "", "")
        odd = (result["greedy_verdicts_apart"], result["texts_apart"])
        if any(odd):
            lines.append((f"  {odd[0]} verdicts, {odd[1]} texts apart", None, "", "", "", "", ""))
    heads = ("task", "asked", "apart", "CPU s", "metric", "ours", "hf")
    out().print(table("lm-eval: --model chatwright beside --model hf", heads, lines))
    if letters:
        print(
            f"chatwright eval's letters beside lm-eval's: {letters['same_letter']} of {letters['questions']} the same, "
            f"log-probabilities at most {letters['largest_difference']:.1e} apart "
            f"(the line break taken off is at least {letters['least_line_break']:.1e})"
        )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--limit", type=int, default=100, help="questions a task; fewer where it takes long")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--context", type=int, default=512, help="tokens of the context, so that long texts are rolled")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a log-likelihood, relative above 1")
    parser.add_argument("--json", type=Path, help="write all differences to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
