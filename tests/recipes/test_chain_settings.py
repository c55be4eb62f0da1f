"""How a chain's recipe is read: shared settings, parents, overrides by stage, and every mistake told at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_recipes import chain_plain, stage_in, write_chain

from chatwright.cli.inspect import is_recipe
from chatwright.errors import ConfigError, UserError
from chatwright.recipes.chain_settings import is_chain, load_chain, make_chain, titles
from chatwright.recipes.run_settings import RunSettings, find_recipe, load_recipe, shipped_recipes
from chatwright.recipes.stages import STAGES

Change = Callable[[dict[str, Any]], object]


def settings_of(plain: dict[str, Any], name: str) -> RunSettings:
    found = make_chain(plain, "test")[name].settings
    assert isinstance(found, RunSettings)
    return found


def test_shared_settings_lie_under_each_stages_own(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    stage_in(plain, "chat")["train"] = {"max_steps": 7}
    chain = make_chain(plain, "test")
    assert [stage.parent for stage in chain.stages] == [None, "tokenizer", "base", "middle"]
    assert [stage.folder for stage in chain.stages] == [
        tmp_path / "chain" / n for n in ("tokenizer", "base", "middle", "chat")
    ]
    chat, middle = settings_of(plain, "chat"), settings_of(plain, "middle")
    assert (chat.train.max_steps, middle.train.max_steps) == (7, 2)
    assert chat.train.dtype == middle.train.dtype == "float32"
    assert chat.model == str(tmp_path / "chain" / "middle")
    base = settings_of(plain, "base").new_model
    assert base is not None and base.tokenizer == str(tmp_path / "chain" / "tokenizer")
    assert chain.behind("base") == ["middle", "chat"]
    assert titles(chain.runs) == ["Base", "Mid", "SFT"]


def test_two_stages_of_one_kind_keep_their_names(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    stage_in(plain, "base")["heldout"] = {"share": 0.1}
    plain["stages"].append({**stage_in(plain, "chat"), "name": "chat2", "from": "base:best"})
    chain = make_chain(plain, "test")
    assert titles(chain.runs) == ["base", "middle", "chat", "chat2"]
    assert chain["chat2"].parent == "base"
    assert settings_of(plain, "chat2").model == f"{tmp_path / 'chain' / 'base'}:best"


def test_overrides_reach_one_stage_or_all(tmp_path: Path) -> None:
    file = write_chain(chain_plain(tmp_path), tmp_path / "chain.yaml")
    chain = load_chain(str(file), ["chat.train.max_steps=9", "train.seed=5", f"out={tmp_path}/other"])
    runs = {stage.name: stage.settings for stage in chain.runs}
    assert {name: each.train.max_steps for name, each in runs.items()} == {"base": 2, "middle": 2, "chat": 9}  # type: ignore[union-attr]
    assert {each.train.seed for each in runs.values()} == {5}  # type: ignore[union-attr]
    assert runs["chat"].out == f"{tmp_path}/other/chat"


MISTAKES: dict[str, tuple[Change, str]] = {
    "unknown stage": (lambda p: stage_in(p, "chat").update(stage="sff"), "stages.3.stage: unknown stage 'sff'.*'sft'"),
    "no stage": (lambda p: stage_in(p, "chat").pop("stage"), "stages.3.stage: required"),
    "no name": (lambda p: stage_in(p, "chat").pop("name"), "stages.3.name: every stage needs a name"),
    "two names": (lambda p: stage_in(p, "chat").update(name="base"), "two stages are called base"),
    "a setting's name": (lambda p: stage_in(p, "chat").update(name="train"), "train is the name of a setting"),
    "from a later one": (lambda p: stage_in(p, "middle").update({"from": "chat"}), "middle.from: chat stands later"),
    "from itself": (lambda p: stage_in(p, "middle").update({"from": "middle"}), "can't grow from itself"),
    "from nobody": (lambda p: stage_in(p, "chat").update({"from": "midle"}), "chat.from: .*'midle'.*'middle'"),
    "from a tokenizer": (lambda p: stage_in(p, "chat").update({"from": "tokenizer"}), "a tokenizer is no model"),
    "from a reward model": (
        lambda p: (stage_in(p, "middle").update(stage="reward"), stage_in(p, "chat").update({"from": "middle"})),
        "chat.from: middle: a reward model, which writes no replies, is no model to go on from",
    ),
    "from a best that nothing tells": (
        lambda p: stage_in(p, "chat").update({"from": "previous:best"}),
        "chat.from: middle measures nothing that tells its best checkpoint",
    ),
    "a whole model from an adapter": (
        lambda p: stage_in(p, "middle").update(adapter={"rank": 4, "alpha": 2}),
        "chat.adapter: middle gives an adapter of rank 4 and scale 0.5; write the same here",
    ),
    "model and from": (lambda p: stage_in(p, "chat").update({"from": "base", "model": "x"}), "say two things"),
    "first without parent": (lambda p: p.update(stages=[stage_in(p, "chat")]), "chat.from: no trained model"),
    "new without tokenizer": (lambda p: p.update(stages=[stage_in(p, "base")]), "base.from: no tokenizer stage"),
    "a wrong setting": (
        lambda p: stage_in(p, "chat").update(optimizer={"learning_rat": 1}),
        "chat.optimizer.learning_rat: unknown setting.*'learning_rate'",
    ),
    "a setting of the room that has the stage's name": (
        lambda p: stage_in(p, "chat").update(name="rl", samples=4),
        r"rl.samples: unknown setting; did you mean rl\.rl\.samples\?",
    ),
    "no data": (lambda p: stage_in(p, "chat").update(data=[]), "chat.data: there is nothing to train on"),
    "no folder": (lambda p: p.update(out=None), "out: must be the name of a folder"),
    "no folder to reuse": (lambda p: p.update(reuse=[1]), "reuse: must be the name of a folder"),
    "a wrong shared one": (lambda p: p.update(evalute={}), "evalute: unknown setting.*'evaluate'"),
    "a model for all": (lambda p: p.update(model="x"), "model: belongs to a stage"),
    "an own out": (lambda p: stage_in(p, "chat").update(out="x"), "stages.3.out: .*remove it"),
    "another device": (lambda p: stage_in(p, "chat").update(train={"threads": 2}), "train.threads: must be the same"),
    "no list": (lambda p: p.update(stages={}), "stages: must be a list"),
    "an ungradable task": (lambda p: p.update(evaluate={"tasks": [{"task": "smoltalk"}]}), "evaluate.tasks.0"),
    "an unknown column": (
        lambda p: p.update(evaluate={"tasks": [{"task": "spelling"}], "stages": ["chatt"]}),
        "evaluate.stages: no stage 'chatt'.*'chat'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_their_place(name: str, tmp_path: Path) -> None:
    change, told = MISTAKES[name]
    plain = chain_plain(tmp_path)
    change(plain)
    with pytest.raises(ConfigError) as found:
        make_chain(plain, "test")
    assert re.search(told, found.value.full_text(), re.DOTALL), found.value.full_text()


def test_mistakes_of_all_stages_come_at_once(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    stage_in(plain, "base")["max_tokenz"] = 1
    stage_in(plain, "chat")["epochs"] = 1
    with pytest.raises(ConfigError) as found:
        make_chain(plain, "test")
    assert [problem.split(":")[0] for problem in found.value.problems] == ["base.max_tokenz", "chat.epochs"]


def test_a_chain_is_no_single_run(tmp_path: Path) -> None:
    file = write_chain(chain_plain(tmp_path), tmp_path / "chain.yaml")
    assert is_chain(str(file))
    assert not is_chain("letters")
    with pytest.raises(UserError, match="chain of stages"):
        load_recipe(str(file))


def test_hyphens_find_shipped_recipes() -> None:
    assert find_recipe("gsm8k-calculator") == find_recipe("gsm8k_calculator") == shipped_recipes()["gsm8k_calculator"]
    assert is_recipe("gsm8k-calculator") and is_recipe("gsm8k_calculator") and not is_recipe("gsm8k")


def test_every_kind_of_stage_may_give_a_stage_its_name(tmp_path: Path) -> None:
    for kind in STAGES:
        plain = chain_plain(tmp_path)
        stage_in(plain, "chat")["name"] = kind
        assert make_chain(plain, "test")[kind].parent == "middle"
