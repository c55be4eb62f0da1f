"""Training teaches what it should: the reply, and its end. In float32, in bfloat16 with masters, and with LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chatwright.conversations.schema import Conversation, Message
from chatwright.inference.responder import make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.recipes import data as recipe_data
from chatwright.recipes.talking import talk_to
from chatwright.recipes.template_record import serving_template
from tiny_model import make_tiny_model
from training_runs import conversations, recipe, train, with_weights, write_rows

PAIRS = {"Who are you?": "I am a tiny model.", "Name a colour.": "Blue.", "Two and three?": "Five, of course."}
ROWS = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS.items()]
OVERFIT: dict[str, Any] = {
    "packing": {"tokens_per_pack": 256},
    "schedule": {"name": "constant"},
    "train": {"epochs": 60},
}
KINDS: dict[str, dict[str, Any]] = {
    "float32": {"optimizer": {"learning_rate": 1e-2}},
    "bfloat16": {"optimizer": {"learning_rate": 1e-2}, "train": {"epochs": 60, "dtype": "bfloat16"}},
    "lora": {"adapter": {"rank": 16}, "optimizer": {"learning_rate": 1e-2}, "train": {"epochs": 100}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_overfitted_model_replies_and_stops(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """PITFALL 6: the end of turn is learned, so greedy generation ends where the reply does."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    if kind == "lora":  # the embeddings stay as they are: they must be far enough from each other
        tiny_model = make_tiny_model(tmp_path / "model", initializer_range=0.4)
    run = train(recipe(tiny_model, rows, tmp_path / "run", **{**OVERFIT, **KINDS[kind]}))
    assert run.result.loss < 0.1, run.result
    template = run.data.text.template
    engine = make_engine(run.model.model, template)  # type: ignore[arg-type]
    prompts = [template.render_prompt(Conversation((Message.of("user", question),))) for question in PAIRS]
    replies = engine.generate(prompts, SamplingSettings(max_new_tokens=40))
    assert [reply.stop_reason for reply in replies] == ["stop"] * 3
    assert [template.parse_reply(reply.ids).text for reply in replies] == list(PAIRS.values())
    assert all(reply.ids[-1] in template.stop_ids for reply in replies)

    session = talk_to(tmp_path / "run", SamplingSettings(max_new_tokens=40), device="cpu")
    assert [session.ask(question).text for question in list(PAIRS)[:1]] == ["I am a tiny model."]
    assert serving_template(run.folder).identity == template.identity


def test_without_the_end_of_turn_it_does_not_stop(tiny_model: Path, tmp_path: Path) -> None:
    """The test above would see it: weights of the stop token set to 0, the model runs on."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    settings = recipe(tiny_model, rows, tmp_path / "run", **{**OVERFIT, **KINDS["float32"]})
    original = recipe_data.find_tokens

    def without_end(settings: Any, template: Any, *rest: Any) -> Any:
        tokens = original(settings, template, *rest)
        store = tokens.rendered.store
        ends = np.isin(store.ids, template.stop_ids) & (store.weights > 0)
        assert ends.sum() == len(store), "one trained end of turn a conversation"
        changed = with_weights(store, np.where(ends, 0, store.weights))
        return replace(tokens, rendered=replace(tokens.rendered, store=changed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_data, "find_tokens", without_end)
        run = train(settings, {"rows": ROWS})
    template = run.data.text.template
    prompts = [template.render_prompt(Conversation((Message.of("user", question),))) for question in PAIRS]
    engine = make_engine(run.model.model, template)  # type: ignore[arg-type]
    replies = engine.generate(prompts, SamplingSettings(max_new_tokens=40))
    assert [reply.stop_reason for reply in replies] == ["length"] * 3


def test_bfloat16_with_masters_follows_float32(tiny_model: Path, tmp_path: Path) -> None:
    """100 steps: every loss of the curve within 1 % (of the smoothed curve; single steps within 3 %)."""
    rows = write_rows(tmp_path / "rows.jsonl", conversations(24))
    curves = {}
    for dtype in ("float32", "bfloat16"):
        options = {"epochs": 100, "max_steps": 100, "dtype": dtype}
        run = train(recipe(tiny_model, rows, tmp_path / dtype, packing={"tokens_per_pack": 512}, train=options))
        curves[dtype] = torch.tensor([line["loss"] for line in run.steps])
        masters = run.weights.values()
        assert {tensor.dtype for tensor in masters} == {torch.float32}
        assert {p.dtype for p in run.model.model.parameters()} == {getattr(torch, dtype)}
    exact, low = curves["float32"], curves["bfloat16"]
    assert len(exact) == 100 and exact[-10:].mean() < 0.8 * exact[:10].mean()
    smooth = [curve.unfold(0, 5, 1).mean(1) for curve in (exact, low)]
    assert float(((smooth[1] - smooth[0]) / smooth[0]).abs().max()) < 0.01
    assert float(((low - exact) / exact).abs().max()) < 0.03


def test_bfloat16_begins_from_the_full_precision_weights(tiny_model: Path, tmp_path: Path) -> None:
    """The masters are what the file holds, not its rounding; small updates are not lost (PITFALL 17)."""
    rows = write_rows(tmp_path / "rows.jsonl", conversations(8))
    options = {"epochs": 1, "max_steps": 1, "dtype": "bfloat16"}
    run = train(recipe(tiny_model, rows, tmp_path / "run", optimizer={"learning_rate": 1e-7}, train=options))
    before, after = load_file(tiny_model / "model.safetensors"), load_file(run.folder / "model.safetensors")
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert all(0 < distance < 2e-7 for distance in moved.values()), moved
