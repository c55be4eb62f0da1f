"""MiniMind's recipes: the numbers that its notebook and chapter print, its labels, its system prompts, its faults."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches.packed_batch import PackedBatch
from chatwright.checkpoints.imports import resolve_model
from chatwright.checkpoints.minimind_export import export_minimind
from chatwright.inference.sampling import SamplingSettings
from chatwright.losses.loss_sum import LossSum
from chatwright.recipes.build import build_trainer
from chatwright.recipes.chain_settings import load_chain
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.recipes.showcase import answers
from chatwright.recipes.talking import talk_to
from chatwright.train.objectives import next_token_nll
from shared_files import shared
from training_runs import CPU, Crash, CrashAfter, run_command, train, write_rows

PRINTED_RATES = ["0.00050225", "0.00037725", "0.00022275", "0.00009775", "0.00005000"]
PRINTED_LOSSES = [8.7212, 7.2350, 6.2444, 5.7528, 5.4913]
"""Of MiniMind's notebook, which goes on from weights that nobody has; a new model's fall alike."""
TEN_PROMPTS = [
    "你是一个知识丰富的AI，尽力为用户提供准确的信息。",
    "你是minimind，一个小巧但有用的语言模型。",
    "你是一个专业的AI助手，请提供有价值的回答。",
    "你是minimind，请尽力帮助用户解决问题。",
    "你是一个可靠的AI，请给出准确的回答。",
    "You are a helpful AI assistant.",
    "You are minimind, a lightweight intelligent assistant.",
    "You are a friendly chatbot. Please answer the user's questions carefully.",
    "You are a knowledgeable AI. Try your best to provide accurate information.",
    "You are minimind, a small but useful language model.",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))


def notebook(tmp_path: Path, *overrides: str) -> RunSettings:
    fixed = ["train.device=cpu", "train.dtype=float32", "train.threads=1", f"out={tmp_path / 'run'}"]
    return load_recipe("minimind-notebook", [*fixed, *overrides])


def as_data(settings: RunSettings) -> RunData:
    data = build_data(settings)
    assert isinstance(data, RunData)
    return data


def test_the_notebooks_parameters_and_learning_rates(tmp_path: Path) -> None:
    settings = notebook(tmp_path)
    plan = plan_run(settings, as_data(settings))
    assert plan.parameters == plan.trainable_parameters == 8_915_456  # printed: 8.915
    assert (plan.steps, plan.rows) == (5, 2)
    assert [f"{rate:.8f}" for rate in plan.learning_rates] == PRINTED_RATES


@pytest.mark.slow
def test_the_notebooks_losses_fall_as_printed(tmp_path: Path) -> None:
    """Through the command, about five seconds; the first is a new model's ln 6400 = 8.76, within its spread."""
    out = tmp_path / "run"
    fixed = ["train.device=cpu", "train.threads=1", f"out={out}"]
    run_command("train", "minimind-notebook", *(part for item in fixed for part in ("--set", item)))
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[0] == pytest.approx(math.log(6400), abs=0.4)
    assert [abs(ours - theirs) < 0.3 for ours, theirs in zip(losses, PRINTED_LOSSES, strict=True)] == [True] * 5
    assert [f"{step['learning_rate']:.8f}" for step in steps if "loss" in step] == PRINTED_RATES


def conversation(number: int) -> dict[str, Any]:
    turns = [("user", f"你好，{number % 10}"), ("assistant", f"好的，{number % 10}。")]
    return {"conversations": [{"role": role, "content": text} for role, text in turns]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`CHATWRIGHT_DATA` with MiniMind's tokenizer and rows in its formats."""
    made = tmp_path / "data"
    (made / "tokenizers").mkdir(parents=True)
    (made / "tokenizers/minimind").symlink_to(shared("data/tokenizers/minimind"))
    write_rows(made / "minimind/sft_mini_512.jsonl", [conversation(number) for number in range(320)])
    write_rows(made / "minimind/pretrain_hq.jsonl", [{"text": "学而时习之，不亦说乎？" * 40} for _ in range(4)])
    monkeypatch.setenv("CHATWRIGHT_DATA", str(made))
    return made


SMALL = ["train.device=cpu", "train.dtype=float32", "train.threads=1", "train.max_steps=3", "train.save_every=null"]
NEW = "new_model={preset: minimind, hidden_size: 64, num_layers: 1, tokenizer: $CHATWRIGHT_DATA/tokenizers/minimind}"


def sft(tmp_path: Path, *overrides: str) -> RunSettings:
    return load_recipe("minimind-sft", ["model=null", NEW, f"out={tmp_path / 'sft'}", *overrides])


def test_sft_mini_as_the_chapter_says(folder: Path, tmp_path: Path) -> None:
    settings = sft(tmp_path, "data.0.transforms=[]")
    assert (settings.train.epochs, settings.packing.examples_per_step, settings.max_tokens) == (2, 16, 340)
    assert (settings.optimizer.learning_rate, settings.optimizer.max_grad_norm) == (1e-6, 1.0)
    plan = plan_run(settings, as_data(settings))
    assert plan.steps == 2 * 320 // 16 == 40
    chapter = [1e-6 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 40))) for step in range(1, 41)]
    assert plan.learning_rates == pytest.approx(chapter, rel=1e-9)  # every step has as many tokens here


def test_a_fifth_of_the_rows_get_one_of_the_ten_prompts(folder: Path, tmp_path: Path) -> None:
    settings = sft(tmp_path)
    (transform,) = settings.data[0].transforms
    assert list(transform.prompts) == TEN_PROMPTS  # type: ignore[union-attr]
    stages = load_chain("minimind")
    assert stages["full_sft"].settings.data[0].transforms == (transform,)
    data = as_data(settings)
    texts = [data.text.tokenizer.decode(data.store.example(row)[0], with_control=True) for row in range(320)]
    begun = [text for text in texts if text.startswith("<|im_start|>system\n")]
    assert 0.13 < len(begun) / 320 < 0.27
    prompts = {text.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0] for text in begun}
    assert prompts <= set(TEN_PROMPTS) and len(prompts) >= 8
    again, other = (as_data(sft(tmp_path, f"train.seed={seed}")) for seed in (42, 43))
    assert again.store.ids.tolist() == data.store.ids.tolist() != other.store.ids.tolist()


def test_the_chain_goes_from_nothing_to_dpo(folder: Path) -> None:
    chain = load_chain("minimind")
    assert [(stage.name, stage.parent) for stage in chain.stages] == [
        ("pretrain", None),
        ("full_sft", "pretrain"),
        ("dpo", "full_sft"),
    ]
    for name, stage in (("minimind-pretrain", "pretrain"), ("minimind-sft", "full_sft"), ("minimind-dpo", "dpo")):
        alone, chained = load_recipe(name).model_dump(), chain[stage].settings.model_dump()
        differ = {key for key in alone if alone[key] != chained[key]} - {"out", "model", "template", "overflow"}
        assert not differ, (name, differ)
    rates = [load_recipe(name).optimizer.learning_rate for name in ("minimind-pretrain", "minimind-sft")]
    assert rates[0] == 500 * rates[1]


def test_pretraining_cuts_long_texts_into_parts_and_loses_none(folder: Path, tmp_path: Path) -> None:
    settings = load_recipe("minimind-pretrain", [f"out={tmp_path / 'pretrain'}", "data.0.stop=1"])
    data = as_data(settings)
    assert plan_run(settings, data).parameters == 25_829_888  # "25.8 M"
    lengths = data.store.lengths.tolist()
    assert max(lengths) <= 340 and len(lengths) > 1
    text = "".join(data.text.tokenizer.decode(data.store.example(part)[0]) for part in range(len(lengths)))
    assert text == "学而时习之，不亦说乎？" * 40


def test_labels_are_minimind_s_through_a_recipe_and_shifted_once(folder: Path, tmp_path: Path) -> None:
    """Ids and labels of its own code, from the rows to what the model's states must predict."""
    goldens = [json.loads(line) for line in shared("goldens/minimind-labels.jsonl").read_text().splitlines() if line]
    rows = [{"conversations": golden["conversations"]} for golden in goldens]
    write_rows(folder / "minimind/sft_mini_512.jsonl", rows)
    longer = ["max_tokens=2048", "packing.tokens_per_pack=32768", "packing.examples_per_step=64"]
    data = as_data(sft(tmp_path, "data.0.transforms=[]", *longer))
    assert len(data.store) == len(goldens)
    (batch,) = next(iter(data.steps(0, CPU, None))).packs
    starts = batch.layout.cu_q.tolist()
    real = [(segment, key) for segment, key in enumerate(batch.keys) if key is not None]  # the other one is padding
    assert len(real) == len(goldens)
    for segment, key in real:
        golden = goldens[key.row]
        begin, end = starts[segment], starts[segment + 1]
        assert batch.input_ids[begin:end].tolist() == golden["ids"]
        assert batch.labels()[begin:end].tolist() == golden["labels"]
    assert torch.equal(batch.targets, batch.input_ids[batch.supervised_index + 1])


def test_the_older_template_through_a_recipe(tmp_path: Path) -> None:
    row = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    path = write_rows(tmp_path / "toy.jsonl", [{"conversations": row}])
    data = as_data(notebook(tmp_path, f"data=[{{path: '{path}', format: minimind}}]"))
    ids, weights = data.store.example(0)
    tokenizer = data.text.tokenizer
    assert tokenizer.decode(ids, with_control=True) == "<s>user\n你好</s>\n<s>assistant\n你好！</s>\n"
    trained = [index for index, weight in zip(ids, weights, strict=True) if weight]
    assert tokenizer.decode(trained, with_control=True) == "你好！</s>\n"
    assert tokenizer.vocab_size == 259 and tokenizer.control_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.slow
def test_training_goes_on_from_a_pth_file_is_resumed_and_goes_out_again(folder: Path, tmp_path: Path) -> None:
    """`--from_weight pretrain`, `--from_resume 1`, and `out/full_sft_64.pth` at the end."""
    shapes = ["new_model.hidden_size=64", "new_model.num_layers=1", "packing.examples_per_step=4", "max_tokens=64"]
    made = train(load_recipe("minimind-pretrain", [*shapes, *SMALL, f"out={tmp_path / 'pretrain'}"]))
    export_minimind(resolve_model(made.trainer.run.path), tmp_path / "out")
    changes = [f"model={tmp_path / 'out/pretrain_64.pth'}", *SMALL]
    whole = train(load_recipe("minimind-sft", [*changes, f"out={tmp_path / 'whole'}"]))
    halved = load_recipe("minimind-sft", [*changes, f"out={tmp_path / 'halved'}", "train.save_every=1"])
    with pytest.raises(Crash):
        train(halved, hooks=[CrashAfter(2)])
    resumed = train(halved, resume=True)
    assert resumed.trainer.resumed_from is not None
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())
    report = export_minimind(resolve_model(tmp_path / "halved"), tmp_path / "out")
    assert (report.folder / "full_sft_64.pth").is_file()
    replies = answers(
        talk_to(tmp_path / "out/full_sft_64.pth", SamplingSettings(max_new_tokens=4), device="cpu"), ["你好"]
    )
    assert len(replies) == 1 and replies[0].role == "assistant"


# What its notebook does otherwise


def trained(settings: RunSettings, objective: Any) -> tuple[float, str]:
    """Train the toy rows; (the loss of the next token afterwards, the token that the model puts after <s>assistant)."""
    data = as_data(settings)
    model = build_model(settings, data.text, CPU)
    trainer = build_trainer(settings, data, model, CPU, objective=objective, show_progress=False)
    trainer.train()
    (batch,) = next(iter(data.steps(0, CPU, None))).packs
    with torch.no_grad():
        after = next_token_nll(model.model, batch)
        logits = model.model.logits(batch.input_ids, batch.position_ids, batch.layout)
    first = int(batch.supervised_index[0])
    return float(after.total) / float(after.weight), data.text.tokenizer.token_text(int(logits[first].argmax()))


def shifted_twice(model: Any, batch: PackedBatch) -> LossSum:
    """The notebook's loss: its dataset shifts the labels, and its loop shifts them again."""
    inside = batch.supervised_index + 2 < batch.input_ids.shape[0]
    index = batch.supervised_index[inside]
    moved = replace(
        batch,
        supervised_index=index,
        targets=batch.input_ids[index + 2],
        weights=batch.weights[inside],
        segment_of_target=batch.segment_of_target[inside],
    )
    return next_token_nll(model, moved)


def test_labels_shifted_twice_teach_the_token_after_the_next(tmp_path: Path) -> None:
    """A fault of the notebook that isn't copied: its loss falls, but a model so trained can't continue a text."""
    row = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "xyz"}]
    path = write_rows(tmp_path / "toy.jsonl", [{"conversations": row}])
    changes = [
        f"data=[{{path: '{path}', format: minimind}}]", "new_model.hidden_size=64",
        "new_model.num_layers=1", "new_model.vocab_size=259",
        "packing.examples_per_step=1", "optimizer.learning_rate=1e-2", "train.epochs=15",
    ]  # fmt: skip
    right = trained(notebook(tmp_path, *changes, f"out={tmp_path / 'right'}"), next_token_nll)
    wrong = trained(notebook(tmp_path, *changes, f"out={tmp_path / 'wrong'}"), shifted_twice)
    assert right[0] < 0.1 and right[1] == "x"
    assert wrong[0] > 2.0 and wrong[1] == "y"


def test_accumulation_changes_nothing_where_the_notebook_divides_twice(tmp_path: Path) -> None:
    """The other fault: with k batches a step it divides by k twice, and multiplies the printed loss by k once."""
    found: dict[int, tuple[float, float]] = {}
    for count, per_pack in ((1, 4096), (2, 128)):
        sizes = [f"packing.tokens_per_pack={per_pack}", "max_tokens=128", "train.max_steps=1"]
        settings = notebook(tmp_path, "new_model.hidden_size=64", *sizes, f"out={tmp_path / str(count)}")
        data = as_data(settings)
        batches = next(iter(data.steps(0, CPU, None))).packs
        assert len(batches) == count
        model = build_model(settings, data.text, CPU)
        with torch.no_grad():
            losses = [next_token_nll(model.model, batch) for batch in batches]
        means = [float(loss.total) / float(loss.weight) for loss in losses]
        trainer = build_trainer(settings, data, model, CPU, show_progress=False)
        trainer.train()
        step = next(line for line in trainer.run.read_metrics() if "loss" in line)
        found[count] = (step["loss"], step["grad_norm"])
        printed = means[-1] / count / count * count  # loss: current_loss
        assert printed == pytest.approx(step["loss"] / count, rel=0.05)
    assert found[2] == pytest.approx(found[1], rel=1e-5)
