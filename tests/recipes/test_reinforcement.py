"""Reinforcement from recipe to checkpoint: what is drawn, what it got, what was trained, and how a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.cli.train import run_train
from chatwright.conversations.schema import Message
from chatwright.errors import ConfigError, UserError
from chatwright.evals.trials import asked
from chatwright.inspection.ledger import Stage
from chatwright.recipes.build import build_trainer
from chatwright.recipes.data import build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.reinforcement import NO_SIGNAL, NOT_TRAINED, RolloutData
from chatwright.recipes.reinforcement_settings import RlSettings
from chatwright.recipes.rollouts import Problem, Rollout, Sampler, sampling_of
from chatwright.recipes.run_settings import RunSettings
from chatwright.reports.run_document import run_report
from chatwright.reports.run_record import read_run
from chatwright.tasks.registry import TASKS, make_task
from rewarded_task import STOPS, LetterGame, NoGame, rl_recipe
from training_runs import CPU, Crash, CrashAfter, differing_bits, prepare, recipe, train, write_recipe, write_rows


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(TASKS, LetterGame.name, LetterGame)
    monkeypatch.setitem(TASKS, NoGame.name, NoGame)
    yield


def sampler(model: Path, out: Path, dtype: torch.dtype = torch.float32, **rl: Any) -> tuple[Sampler, list[Problem]]:
    settings = rl_recipe(model, out, rl={"samples": 4, "max_new_tokens": 12, "stop": STOPS, **rl})
    data = build_data(settings)
    assert isinstance(data, RolloutData)
    loaded = build_model(settings, data.text, CPU).model.to(dtype)
    return Sampler(loaded, data.text.template, settings.reinforcement, 3), list(data.problems)


def draw(made: Sampler, step: int, problems: list[Problem], places: range | list[int]) -> list[Rollout]:
    return made.draw(step, [(place, problems[place]) for place in places])


def ids_of(rollouts: list[Rollout]) -> list[list[int]]:
    return [each.ids for rollout in rollouts for each in rollout.rounds]


def test_prompts_replies_and_rewards_are_the_templates_the_models_and_the_tasks(
    tiny_model: Path, tmp_path: Path
) -> None:
    made, problems = sampler(tiny_model, tmp_path, max_new_tokens=6, stop=STOPS[:2])
    rollouts = draw(made, 0, problems, range(3))
    assert [(each.place, each.sample) for each in rollouts] == [(p, s) for p in range(3) for s in range(4)]
    game = make_task("letter_game")
    for each in rollouts:
        (round_,) = each.rounds
        conversation = problems[each.place].conversation
        assert round_.prompt == made.template.render_prompt(asked(conversation))
        assert 1 <= len(round_.ids) <= 6 and all(value is not None for value in round_.logprobs)
        said = made.template.parse_reply(round_.ids).text
        cut = min((said.find(stop) for stop in STOPS[:2] if stop in said), default=len(said))
        reward = float(game.grade(conversation, Message.of("assistant", said[:cut])))
        assert each.reward == (reward if each.finished else 0.0)
    assert {each.finished for each in rollouts} == {True, False}
    assert len({each.reward for each in rollouts}) > 1


def test_draws_depend_on_seed_step_place_and_sample_alone(tiny_model: Path, tmp_path: Path) -> None:
    made, problems = sampler(tiny_model, tmp_path, torch.float64)
    whole = draw(made, 0, problems, range(4))
    shared = [*draw(made, 0, problems, [0, 2]), *draw(made, 0, problems, [1, 3])]  # as two ranks draw them
    shared.sort(key=lambda each: (each.place, each.sample))
    assert ids_of(shared) == ids_of(whole)
    assert [each.reward for each in shared] == [each.reward for each in whole]
    assert ids_of(draw(made, 1, problems, range(4))) != ids_of(whole)
    same = made.draw(0, [(0, problems[0]), (1, problems[0])])  # one problem, drawn twice by the mixture
    assert ids_of(same[:4]) != ids_of(same[4:])
    apart = [made.draw(0, [(place, problems[0])]) for place in (0, 1)]  # the same on two ranks
    assert ids_of([*apart[0], *apart[1]]) == ids_of(same)
    assert len({tuple(ids) for ids in ids_of(same[:4])}) > 1


def test_the_trainer_sees_the_log_probabilities_that_tokens_were_drawn_by(tiny_model: Path, tmp_path: Path) -> None:
    run = train(rl_recipe(tiny_model, tmp_path / "run"))
    gaps = [line["drawn_gap"] for line in run.steps if line["groups_with_signal"]]
    assert len(gaps) == 5 and max(gaps) < 2e-6


def test_a_run_counts_what_it_drew_trained_and_left_out(tiny_model: Path, tmp_path: Path) -> None:
    settings = rl_recipe(tiny_model, tmp_path / "run", eval={"tasks": [{"task": "letter_game", "limit": 3}]})
    run = train(settings)
    assert isinstance(run.data, RolloutData)
    assert run.result.progress.step == 5 and len(run.steps) == 5
    for line in run.steps:
        assert 0 <= line["reward"] <= 1 and line["reply_tokens"] <= 12 and line["rollout_seconds"] <= line["seconds"]
    ledger = run.data.ledger_after(5)
    ledger.check(finished=True)
    entries = {(entry.stage, entry.reason): entry for entry in ledger.entries()}
    trained, silent = entries[Stage.TRAINED, None], entries.get((Stage.UNPLACED, NO_SIGNAL))
    assert trained.rows + (silent.rows if silent else 0) == 5 * 4 * 6
    assert trained.tokens == run.result.progress.tokens
    assert entries[Stage.UNPLACED, NOT_TRAINED].rows == 20
    assert [line["step"] for line in run.trainer.run.read_metrics() if "scores" in line] == [0, 5]
    report = run_report(read_run(tmp_path / "run", RunSettings))
    curves = {series.name: series.points for section in report.sections for c in section.charts for series in c.series}
    assert curves["reward"] == tuple((line["step"], line["reward"]) for line in run.steps)
    assert (
        f"{run.steps[0]['reward']:.3f} → {run.steps[-1]['reward']:.3f}",
        "reward of a step's replies",
    ) in report.tiles
    figures = dict(report.sections[0].tables[0].rows)
    assert figures["reward, first step logged"] == f"{run.steps[0]['reward']:.4f}"
    assert figures["reward, last step logged"] == f"{run.steps[-1]['reward']:.4f}"


def test_steps_without_a_signal_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    settings = rl_recipe(tiny_model, tmp_path / "run", "no_game", optimizer={"weight_decay": 0.1})
    trainer, _, _ = prepare(settings)
    before = {name: value.clone() for name, value in trainer.trainer.optimizer.master_state().items()}
    result = trainer.train()
    assert result.progress.step == 5 and result.progress.tokens == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.trainer.optimizer.master_state().items())
    lines = trainer.run.read_metrics()
    assert [(line["loss"], line["grad_norm"], line["reward"], line["groups_with_signal"]) for line in lines] == [
        (0.0, 0.0, 0.0, 0.0)
    ] * 5


@pytest.mark.parametrize(("task", "told"), [("no_game", 1), ("letter_game", 0)])
def test_a_run_without_any_signal_says_what_to_do(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, told: int
) -> None:
    settings = rl_recipe(tiny_model, tmp_path / "run", task, train={"max_steps": 2})
    recipe_file = write_recipe(settings, tmp_path / "rl.yaml")
    for resume in (False, True):  # a run that is over says it again
        run_train(str(recipe_file), [], resume)
        printed = capsys.readouterr().err
        assert printed.count("warning: no step had a signal") == told
        assert ("rl.samples, now 6" in printed) == bool(told)


def test_a_killed_run_goes_on_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    def settings(name: str) -> RunSettings:
        return rl_recipe(tiny_model, tmp_path / name, train={"save_every": 2})

    train(settings("whole"))
    killed = settings("killed")
    with pytest.raises(Crash):
        train(killed, hooks=[CrashAfter(3)])
    resumed = train(killed, resume=True)
    assert resumed.trainer.start.step == 2
    assert differing_bits(tmp_path / "whole", tmp_path / "killed") == []


def test_an_adapter_is_trained_by_rewards_too(tiny_model: Path, tmp_path: Path) -> None:
    adapter = {"rank": 4, "alpha": 4, "targets": ["all-linear"]}
    run = train(rl_recipe(tiny_model, tmp_path / "run", adapter=adapter, train={"max_steps": 2}))
    assert run.weights and all("lora" in name for name in run.weights)
    assert all(line["drawn_gap"] < 2e-6 and line["grad_norm"] > 0 for line in run.steps)


def test_resuming_with_other_samples_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    train(rl_recipe(tiny_model, tmp_path / "run"))
    other = rl_recipe(tiny_model, tmp_path / "run", rl={"samples": 7, "max_new_tokens": 12, "stop": STOPS})
    with pytest.raises(UserError, match=r"rl\.samples: was 6, is 7"):
        train(other, resume=True)
    with pytest.raises(UserError, match=r"rl: was \{\"samples\": 6"):
        train(other.model_copy(update={"rl": None}), resume=True)


def test_held_out_loss_and_pass_at_k_are_measured_beside_the_rewards(tiny_model: Path, tmp_path: Path) -> None:
    class RightOrWrong(LetterGame):
        name = "right_or_wrong"

        def grade(self, conversation: Any, reply: Message) -> bool:
            return len(reply.text) % 2 == 0

    TASKS[RightOrWrong.name] = RightOrWrong
    try:
        task = {"task": "right_or_wrong", "limit": 4, "samples": 3, "temperature": 1.0, "max_new_tokens": 4}
        settings = rl_recipe(
            tiny_model,
            tmp_path / "run",
            train={"max_steps": 1},
            heldout={"data": [{"task": "letter_game", "split": "test", "stop": 4}]},
            eval={"tasks": [task]},
        )
        found = train(settings).result.evaluation
    finally:
        del TASKS[RightOrWrong.name]
    assert found is not None
    assert found.values["heldout_loss"] > 0
    assert found.scores["right_or_wrong"].mean <= found.scores["right_or_wrong pass@3"].mean <= 1


CANT = {
    "no grade": ({"data": [{"path": "rows.jsonl"}]}, "has no grade for a reply: name a task"),
    "only trains": ({"data": [{"task": "smoltalk"}]}, "has no right answers to grade by"),
    "no such task": ({"data": [{"task": "gsm9k"}]}, "did you mean 'gsm8k'"),
    "by tokens": ({"packing": {"by": "tokens"}}, "set packing.by: examples"),
    "streamed": ({"streaming": True, "train": {"max_steps": 2}}, "remove streaming"),
    "one sample": ({"rl": {"samples": 1}}, "rl.samples"),
    "greedy": ({"rl": {"temperature": 0}}, "rl.temperature"),
    "unknown tool": ({"rl": {"tools": ["abacus"]}}, "there is no tool 'abacus'"),
    "another stage": ({"stage": "sft"}, "rl belongs to stage: rl"),
}


@pytest.mark.parametrize("name", CANT)
def test_what_cant_be_is_refused_by_the_recipe(name: str, tiny_model: Path, tmp_path: Path) -> None:
    changes, message = CANT[name]
    with pytest.raises(ConfigError) as caught:
        rl_recipe(tiny_model, tmp_path, **changes)
    assert message in str(caught.value)


def test_rows_in_memory_and_objectives_of_ones_own_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    settings = rl_recipe(tiny_model, tmp_path / "run")
    with pytest.raises(UserError, match="rows in memory have no grade"):
        build_data(settings, {"mine": [{"messages": []}]})
    data = build_data(settings)
    model = build_model(settings, data.text, CPU)
    own = build_trainer(settings, data, model, CPU, objective=lambda model, batch: None, show_progress=False)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="there is no model to draw replies from"):
        own.train()


def test_a_prompt_that_fills_the_context_is_refused_before_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rl_recipe(tiny_model, tmp_path / "run")
    monkeypatch.setattr("chatwright.recipes.reinforcement.context_length", lambda text: 40)
    assert isinstance(build_data(settings), RolloutData)  # a long reference reply is no problem
    monkeypatch.setattr("chatwright.recipes.reinforcement.context_length", lambda text: 20)
    with pytest.raises(UserError, match=r"its prompt has \d+ tokens, and the model's context is 20"):
        build_data(settings)


def test_filters_choose_problems_as_they_choose_rows(tiny_model: Path, tmp_path: Path) -> None:
    entries = [
        {"task": "letter_game", "start": 5, "stop": 9, "name": "some"},
        {"task": "letter_game", "stop": 12, "filters": [{"kind": "pattern", "match": r"question 1[01]?\?"}]},
    ]
    data = build_data(rl_recipe(tiny_model, tmp_path / "run", data=entries))
    assert isinstance(data, RolloutData)
    numbers = [each.conversation.extra["number"] for each in data.problems]
    assert numbers == [5, 6, 7, 8, 1, 10, 11]
    for index, problem in enumerate(data.problems):
        assert data.store.key(index).row == problem.conversation.row


def test_the_defaults_are_on_policy() -> None:
    sampling = sampling_of(RlSettings())
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, None, 1.0)


def test_preference_data_has_no_grade(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [])
    with pytest.raises(ConfigError, match="has no grade"):
        recipe(tiny_model, rows, tmp_path, stage="rl", packing={"by": "examples"})
