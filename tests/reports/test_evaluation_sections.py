"""The report on evaluations: every score with its interval, the best step, the marks, sample replies made harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chatwright.cli.report import run_report_command
from chatwright.recipes.run_settings import RunSettings
from chatwright.reports.document import Document
from chatwright.reports.markdown import markdown
from chatwright.reports.page import page
from chatwright.reports.run_document import comparison, run_report
from chatwright.reports.run_record import RunRecord, read_run
from tiny_model import make_tiny_model
from training_runs import conversations, recipe, train, write_rows

NASTY = "<script>alert(1)</script>|`x`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was evaluated five times."""
    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATWRIGHT_CACHE", str(root / "cache"))
        make_tiny_model(root / "model")
        rows = write_rows(root / "rows.jsonl", conversations(24))
        tasks = [
            {"task": "general", "limit": 4, "max_new_tokens": 2},
            {"task": "persona", "limit": 3, "max_new_tokens": 2, "name": "who"},
        ]
        train(
            recipe(
                root / "model",
                rows,
                root / "run",
                heldout={"share": 0.2},
                contamination={"evaluations": ["general"]},
                train={"max_steps": 4},
                eval={"every": 1, "tasks": tasks, "prompts": ["Who?", NASTY], "prompt_tokens": 2, "best": "general"},
            )
        )
    return root / "run"


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of it, with scores of our own in place of a tiny model's zeros."""
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scored = [line for line in lines if "scores" in line]
    for points, line in zip((0, 1, 3, 4, 2), scored, strict=True):
        line["scores"]["general"]["points"] = points
        line["seconds"] = 0.5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path / "run"


def read(path: Path) -> RunRecord:
    return read_run(path, RunSettings)


def section(document: Document, name: str) -> list[tuple[str, ...]]:
    (found,) = (each for each in document.sections if each.name == name)
    return [found.tables[0].heads, *found.tables[0].rows]


def test_scores_stand_by_step_with_their_intervals(run: Path) -> None:
    """Wilson's intervals of 0, 1, 3, 4 and 2 of 4, worked out elsewhere (statsmodels' proportion_confint)."""
    heads, *rows = section(run_report(read(run)), "evaluations")
    assert heads == ("step", "held-out loss", "bits per byte", "general", "who", "time")
    intervals = ["0.0 (0.0–49.0)", "25.0 (4.6–69.9)", "75.0 (30.1–95.4)", "100.0 (51.0–100.0)", "50.0 (15.0–85.0)"]
    assert [row[3] for row in rows[:5]] == intervals
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row[1]) for row in rows[:5]] == pytest.approx(
        [line["heldout_loss"] for line in logged if "scores" in line], abs=1e-4
    )
    assert rows[5] == ("met in training", "", "", "no rows", "not compared", "")
    (lead,) = (each.lead for each in run_report(read(run)).sections if each.name == "evaluations")
    assert "5 evaluations took 2 s, " in lead and "problems: general 4, who 3" in lead


def test_the_best_step_is_marked(run: Path) -> None:
    """The first of equals: nothing is right in the tiny model's own replies."""
    _, *rows = section(run_report(read(run)), "evaluations")
    assert [row[0] for row in rows if "best" in row[0]] == ["1 (best)"]
    _, *saved = section(run_report(read(run)), "checkpoints")
    assert saved[0][0] == "step-000001 (best)" and saved[0][3] == "general 0.0000"


def test_samples_stand_side_by_side_and_harmless(run: Path) -> None:
    heads, *rows = section(run_report(read(run)), "samples")
    assert heads == ("prompt", "step 0", "step 1", "step 3", "step 4"), "the first, the last, and two between"
    told = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0][1:] == tuple(each["reply"] for each in told if each["prompt"] == "Who?" and each["step"] != 2)
    assert rows[1][0] == NASTY
    document = run_report(read(run))
    assert "<script>" not in page(document) and "&lt;script&gt;" in page(document)
    assert "\\<script\\>" in markdown(document) and "## Sample replies" in markdown(document)


def test_the_page_draws_scores_and_tells_them_first(run: Path) -> None:
    document = run_report(read(run))
    assert ("0% → 50%", "general") in document.tiles
    assert "Scores (percent of the points)" in page(document)


def test_two_runs_are_compared_by_their_last_scores(run: Path, folder: Path) -> None:
    document = comparison(read(folder), read(run))
    (result,) = (each for each in document.sections if each.name == "result")
    assert result.tables[1].rows[0] == ("general", "0.0 (0.0–49.0)", "50.0 (15.0–85.0)")


def test_json_holds_every_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_report_command([str(run)], None, True)
    told = json.loads(capsys.readouterr().out)["runs"][0]["evaluations"]
    assert [each["scores"]["general"]["points"] for each in told] == [0, 1, 3, 4, 2]


def test_a_run_of_an_older_version_is_still_read(run: Path) -> None:
    """Its evaluations are losses alone, and there are no samples."""
    (run / "samples.jsonl").unlink()
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    old = [{"step": e["step"], "heldout_loss": e["heldout_loss"]} if "scores" in e else e for e in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    document = run_report(read(run))
    heads, *rows = section(document, "evaluations")
    assert heads == ("step", "held-out loss", "bits per byte", "time") and len(rows) == 5
    assert not any(each.name == "samples" for each in document.sections)
