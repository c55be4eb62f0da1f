"""What a user is told of a chain: where its models are, how to go on, and what a damaged record is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chain_recipes import RUNS, Trains, chain_plain, run, write_chain

from chatwright.checkpoints.imports import resolve_model
from chatwright.cli.chain import run_train_command
from chatwright.cli.report import run_report_command
from chatwright.cli.trace import run_trace
from chatwright.errors import CheckpointError, UserError
from chatwright.recipes.ancestry import ancestry
from chatwright.recipes.chain_record import RECORD_NAME, read_records
from chatwright.recipes.chain_settings import make_chain
from chatwright.recipes.chain_table import measure_chain
from training_runs import CPU


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and new models of each test stay apart; relative names are the test's own."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def told(name: str) -> list[str]:
    """What is said to a folder by all that wants a model or a run."""
    ways = (
        lambda: resolve_model(name),
        lambda: resolve_model(f"{name}:best"),
        lambda: ancestry(name),
        lambda: run_report_command([name], None, False),
        lambda: run_trace(name, 1, False),
    )
    found = []
    for way in ways:
        with pytest.raises(UserError) as error:
            way()
        found.append(str(error.value.hint))
    return found


def test_a_chain_given_for_a_model_names_its_models(tmp_path: Path) -> None:
    plain = chain_plain(tmp_path)
    run(plain, until="tokenizer")
    nothing = "this is a chain, and no stage of it has saved a model yet: chatwright train chain --resume"
    assert set(told("chain")) == {nothing}
    run(plain)
    names = ", ".join(f"chain/{name}" for name in RUNS)
    assert set(told("chain")) == {f"this is a chain; its models are {names}"}
    run({**plain, "out": str(tmp_path / "other"), "reuse": str(tmp_path / "chain")})  # all of it is taken from there
    assert set(told("other")) == {f"this is a chain; its models are {names}"}
    (tmp_path / "chain" / RECORD_NAME).write_text("{")  # then by their names
    assert set(told("chain")) == {"this is a chain; its models are chain/base, chain/chat, chain/middle"}
    shutil.rmtree(tmp_path / "chain" / "base")
    assert set(told("chain")) == {"this is a chain; its models are chain/chat, chain/middle"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "EOF"),
        ("", "EOF"),
        ("[]", "object"),
        ('{"stages": {"base": {"name": "base"}}}', "stages.base.stage: "),
        ("\udcff", "JSON"),
    ],
)
def test_a_damaged_record_gets_one_clear_message(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError) as error:
        read_records(tmp_path)
    full = error.value.full_text()
    assert full.startswith(f"{tmp_path / RECORD_NAME}: is damaged") and reason in full and "--set out=…" in full
    assert "pydantic" not in full and "_Records" not in full and len(full.splitlines()) == 2, full


@pytest.mark.parametrize(("until", "rest"), [("base", " --until base"), (None, "")])
def test_what_goes_on_stops_where_it_was_to_stop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    until: str | None,
    rest: str,
) -> None:
    monkeypatch.setattr("chatwright.cli.chain._train", Trains(stop="base"))
    file = write_chain(chain_plain(tmp_path, out="chain"), tmp_path / "chain.yaml")
    with pytest.raises(SystemExit):
        run_train_command(str(file), [], False, until)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"Go on with:  chatwright train chain --resume{rest}"


def test_a_table_of_cut_replies_names_the_recipes_key(tmp_path: Path) -> None:
    tasks = [{"task": "spelling", "limit": 2, "max_new_tokens": 1}]
    plain = chain_plain(tmp_path, evaluate={"tasks": tasks, "stages": ["chat"]})
    statuses = run(plain)
    assert statuses is not None
    table = measure_chain(make_chain(plain, "test"), statuses, CPU)
    assert table is not None
    cut = [note for note in table.notes if "cut off" in note]
    assert len(cut) == 1 and "evaluate.tasks" in cut[0] and "--max" not in cut[0], table.notes
