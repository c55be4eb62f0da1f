"""Reward models: trained on pairs, saved as transformers' classifiers, scoring as those do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches.pairs import collate_pairs
from chatwright.cli.reward import run_reward
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import ConfigError, DataError, ModelError, UserError
from chatwright.layouts import SegmentLayout
from chatwright.losses.settings import RewardSettings
from chatwright.models.families import config_from_hf
from chatwright.models.foreign import load_any
from chatwright.models.reward_model import CLASSIFIED_FAMILIES, RewardModel, reward_config, with_score
from chatwright.models.weights import init_model, read_config, save_weights
from chatwright.recipes.reward_scoring import RewardScorer, score_file
from chatwright.train.pair_objectives import RewardObjective
from pair_examples import pair_store, plain_sides
from training_runs import (
    Crash,
    CrashAfter,
    differing_bits,
    preference_pairs,
    prepare,
    recipe,
    run_command,
    train,
    write_rows,
)

PAIRS = [(9, 4, 7), (1, 3, 2), (12, 9, 9)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_pairs(24))


@pytest.fixture
def trained(tiny_model: Path, rows: Path, tmp_path: Path) -> Path:
    """The folder of a reward run."""
    train(recipe(tiny_model, rows, tmp_path / "reward", stage="reward", train={"epochs": 3}))
    return tmp_path / "reward"


def tiny_reward(folder: Path, **changes: Any) -> RewardModel:
    config = config_from_hf({**read_config(folder), "vocab_size": 320, **changes})
    return with_score(init_model(config, seed=4).double(), seed=5)


def test_scores_are_read_at_the_last_token_of_each_side(tiny_model: Path) -> None:
    model, store = tiny_reward(tiny_model), pair_store(PAIRS)
    found = RewardObjective(RewardSettings(margin=0.5))(model, collate_pairs(store, range(3), pad_to=64))
    losses = []
    for index in range(3):
        scores = []
        for ids, _ in plain_sides(store, index):
            x = torch.tensor(ids).long()
            hidden, _ = model(x, torch.arange(len(x)), SegmentLayout.from_lengths([len(x)]))
            scores.append(float(hidden[-1].detach() @ model.score.weight[0].detach()))
        losses.append(math.log1p(math.exp(-(scores[0] - scores[1] - 0.5))))
    assert found.total.item() == pytest.approx(sum(losses), rel=1e-12)
    assert found.weight == 3.0
    sums = torch.zeros(3, dtype=torch.float64).index_add_(
        0, collate_pairs(store, range(3)).segment_of_target % 3, found.per_token.double()
    )
    assert sums.tolist() == pytest.approx(losses, rel=1e-5), "the trace shows each pair's own loss"


def test_scores_are_not_rounded_to_the_models_dtype(tiny_model: Path) -> None:
    """Two replies whose scores fall on one bf16 value are told apart."""
    model = tiny_reward(tiny_model).bfloat16()
    hidden = torch.zeros(2, model.config.hidden_size, dtype=torch.bfloat16)
    hidden[:, 0], hidden[1, 1] = 1.0, 2.0**-12
    with torch.no_grad():
        model.score.weight[0, :2] = 1.0
        better, worse = model.scores(hidden).flip(0).tolist()
    assert better - worse == 2.0**-12


def test_a_split_step_has_the_gradient_of_the_whole(tiny_model: Path) -> None:
    model, store = tiny_reward(tiny_model), pair_store(PAIRS)
    gradients = []
    for groups in ([[0, 1, 2]], [[2], [], [0, 1]]):
        model.zero_grad()
        for group in groups:
            RewardObjective(RewardSettings())(model, collate_pairs(store, group, pad_to=64)).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-12


def test_held_out_pairs_are_told_apart_after_training(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = recipe(tiny_model, rows, tmp_path / "out", stage="reward", heldout={"share": 0.2}, train={"epochs": 3})
    run = train(settings)
    measured = [line for line in run.trainer.run.read_metrics() if "heldout_loss" in line]
    assert measured[-1]["heldout_accuracy"] == 1.0 > measured[0]["heldout_loss"] - measured[-1]["heldout_loss"] > 0
    assert {"accuracy", "margin", "score_chosen", "score_rejected"} <= set(run.steps[0])


def test_transformers_loads_it_and_scores_alike(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    scorer = RewardScorer.load(str(trained))
    folder = sorted(trained.glob("step-*"))[-1]
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "LlamaForSequenceClassification" and theirs.config.num_labels == 1
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    asked = Message.of("user", "Tell me?")
    replies = ["Yes.", "No, never, and never again.", "Yes, so so so."]
    talks = [Conversation((asked, Message.of("assistant", text)), row=row) for row, text in enumerate(replies)]
    rendered = [scorer.template.render(each)[0] for each in talks]
    ids = [each.ids[: each.weights.nonzero()[0][-1] + 1].tolist() for each in rendered]
    padding, longest = theirs.config.pad_token_id, max(map(len, ids))
    assert padding not in scorer.template.stop_ids
    padded = torch.tensor([each + [padding] * (longest - len(each)) for each in ids])
    with torch.no_grad():
        logits = theirs(padded, attention_mask=(padded != padding).long()).logits[:, 0]
    assert scorer.score(talks) == pytest.approx(logits.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", CLASSIFIED_FAMILIES)
def test_every_named_family_has_such_a_classifier(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    shapes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
    config = config_from_hf({"model_type": family, "head_dim": 8, **shapes, **more, **experts})
    model = with_score(init_model(config, seed=0), seed=1)
    save_weights(dict(model.named_parameters()), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(reward_config(model.config, (2,), (0, 2))), encoding="utf-8")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([5, 9, 33, 2])
    with torch.no_grad():
        hidden, _ = model(ids, torch.arange(4), SegmentLayout.from_lengths([4]))
        logits = theirs(ids[None]).logits[0, 0]
    assert model.scores(hidden)[-1].item() == pytest.approx(float(logits), rel=1e-4, abs=1e-5)


def test_going_on_from_a_reward_model_keeps_its_score(trained: Path, rows: Path, tmp_path: Path) -> None:
    before = RewardScorer.load(str(trained)).model.score.weight
    settings = recipe(trained, rows, tmp_path / "more", stage="reward", optimizer={"learning_rate": 1e-9})
    train(settings)
    after = RewardScorer.load(str(tmp_path / "more")).model.score.weight
    assert torch.allclose(before, after, atol=1e-6)


def test_stopped_and_resumed_is_never_stopped(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes = {"stage": "reward", "train": {"save_every": 2}}
    train(recipe(tiny_model, rows, tmp_path / "whole", **changes))
    with pytest.raises(Crash):
        prepare(recipe(tiny_model, rows, tmp_path / "cut", **changes), hooks=[CrashAfter(3)])[0].train()
    train(recipe(tiny_model, rows, tmp_path / "cut", **changes), resume=True)
    assert differing_bits(tmp_path / "whole", tmp_path / "cut") == []


def test_files_of_pairs_and_of_conversations_are_scored(trained: Path, rows: Path, tmp_path: Path) -> None:
    scorer = RewardScorer.load(str(trained))
    found = score_file(scorer, str(rows), stop=5)
    assert [row.row for row in found] == [0, 1, 2, 3, 4]
    assert all(row.rejected is not None and row.score > row.rejected for row in found)
    talk = {"messages": [{"role": "user", "content": "Tell me 0?"}, {"role": "assistant", "content": "Yes, 0."}]}
    [alone] = score_file(scorer, str(write_rows(tmp_path / "talk.jsonl", [talk])))
    assert alone.rejected is None and alone.score == pytest.approx(found[0].score, rel=1e-5)
    asked = write_rows(tmp_path / "asked.jsonl", [{"messages": [*talk["messages"], {"role": "user", "content": "?"}]}])
    with pytest.raises(DataError, match="doesn't end in a reply"):
        score_file(scorer, str(asked))


def test_bad_rows_of_a_scored_file_are_an_error_or_left_out_and_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"prompt": "Tell me 1?", "chosen": "", "rejected": "No."}
    file = write_rows(tmp_path / "some.jsonl", [*preference_pairs(2), bad, *preference_pairs(3)])
    with pytest.raises(DataError, match="row 2"):
        run_reward(str(trained), str(file), None, "error", "cpu", as_json=True)
    capsys.readouterr()
    run_reward(str(trained), str(file), None, "skip", "cpu", as_json=True)
    told = capsys.readouterr()
    assert [json.loads(line)["row"] for line in told.out.splitlines()] == [0, 1, 3, 4, 5]
    assert "1 bad rows are left out" in told.err and "row 2" in told.err
    with pytest.raises(UserError, match="choose error or skip"):
        run_reward(str(trained), str(file), None, "drop", "cpu", as_json=True)


@pytest.mark.parametrize("side", ["chosen", "rejected", "talk"])
def test_rows_longer_than_the_context_are_an_error_or_left_out_and_told(
    side: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = preference_pairs(3)
    given[1] = {**given[1], side: "so " * 1000}
    if side == "talk":
        said = ["Yes.", "so " * 1000, "No."]
        messages = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in said]
        given = [{"messages": each} for each in messages]
    file = write_rows(tmp_path / "some.jsonl", given)
    with pytest.raises(DataError, match=r"row 1: has [\d,]+ tokens[\s\S]*--on-bad-row skip"):
        run_reward(str(trained), str(file), None, "error", "cpu", as_json=True)
    capsys.readouterr()
    run_reward(str(trained), str(file), None, "skip", "cpu", as_json=True)
    told = capsys.readouterr()
    assert [json.loads(line)["row"] for line in told.out.splitlines()] == [0, 2]
    assert "1 row that can't be scored is left out" in " ".join(told.err.split()) and "row 1" in told.err
    with pytest.raises(DataError, match="row 0: has"):
        score_file(RewardScorer.load(str(trained)), str(write_rows(tmp_path / "b.jsonl", given[1:2])), None, "skip")


def test_plain_text_has_nothing_to_score(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time.")
    with pytest.raises(DataError, match=r"is plain text, which has no replies[\s\S]*conversations or of preference"):
        score_file(RewardScorer.load(str(trained)), str(tmp_path / "book.txt"))


@pytest.mark.slow
def test_the_command_prints_scores(trained: Path, rows: Path) -> None:
    printed = run_command("reward", trained, rows, "--stop", "3", "--json")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [line["row"] for line in lines] == [0, 1, 2] and "100.0% of 3 pairs" in printed
    assert "scores of 3 rows" in run_command("reward", trained, rows, "--stop", "3")


def test_models_of_another_kind_say_so(trained: Path, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = sorted(trained.glob("step-*"))[-1]
    with pytest.raises(ModelError, match="scores replies and writes none"):
        load_any(folder)
    with pytest.raises(ModelError, match="writes replies and scores none"):
        RewardScorer.load(str(tiny_model))
    with pytest.raises(ConfigError, match="remove adapter"):
        recipe(tiny_model, rows, tmp_path / "x", stage="reward", adapter={"rank": 2})
    with pytest.raises(ConfigError, match="writes no replies"):
        recipe(tiny_model, rows, tmp_path / "x", stage="reward", eval={"prompts": ["hello"]})
