"""SmolLM2-135M-Instruct on real questions: letters as transformers weighs them, and whole evaluations that repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.errors import ModelError
from chatwright.evals.run import EvalSettings, Session, evaluate_heldout, evaluate_task
from chatwright.evals.scores import scores_of
from chatwright.evals.selection import select_tasks
from chatwright.recipes.subjects import heldout_set, open_subject
from shared_files import shared

MODEL = "smollm2-135m-q4"
QUIET = Session(show_progress=False)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> ResolvedModel:
    try:
        return resolve_model(MODEL, Path.home() / ".cache" / "chatwright")
    except ModelError as error:
        pytest.skip(str(error))


def test_arc_by_letters_is_what_transformers_would_choose(
    found: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data")))
    (task,) = select_tasks("arc:ARC-Easy")
    subject = open_subject(str(found.folder), device="cpu").subject
    result = evaluate_task(subject, task, EvalSettings(limit=36), QUIET)
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32).eval()
    problems = task.problems("test", 36, 0)
    for record, problem in zip(result.records, problems, strict=True):
        asked = [{"role": "user", "content": problem.messages[0].text}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.inference_mode():
            weighed = torch.log_softmax(theirs(ids).logits[0, -1].float(), dim=-1)
        expected = {letter: float(weighed[tokenizer.encode(letter)[0]]) for letter in problem.extra["letters"]}
        assert record.details["logprobs"] == pytest.approx(expected, abs=2e-3)
        assert record.details["chosen"] == max(expected, key=lambda letter: expected[letter])
        assert record.score == float(record.details["chosen"] == problem.extra["answer"])


def test_replies_are_the_same_in_other_batches(found: ResolvedModel) -> None:
    (task,) = select_tasks("letter_counting")
    settings = EvalSettings(limit=6, samples=2, max_new_tokens=24)
    results = []
    for rows in (1, 5, 64):
        subject = open_subject(str(found.folder), device="cpu", batch_rows=rows).subject
        records = evaluate_task(subject, task, settings, QUIET).records
        results.append([replace(record, seconds=0.0) for record in records])
    assert results[0] == results[1] == results[2]


def test_bits_per_byte_of_plain_english_is_low(found: ResolvedModel) -> None:
    """A model that has read the web needs about one bit for a byte of a plain reply, far from the 8 of no model."""
    subject = open_subject(str(found.folder), device="cpu").subject
    chosen = heldout_set(str(shared("data/sft/self_instruct_seed_tasks.jsonl")))
    loss, bits = scores_of(evaluate_heldout(subject, chosen, QUIET, limit=24))
    assert 0.3 < bits.estimate.value < 2.5 and 0.5 < loss.estimate.value < 5.0
