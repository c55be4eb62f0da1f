"""The report: every figure from the run's files, what is absent named, text of strangers harmless, one clear error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatwright.checkpoints.manifest import read_manifest
from chatwright.checkpoints.store import latest_checkpoint, list_checkpoints
from chatwright.cli.main import main
from chatwright.errors import UserError
from chatwright.inspection.ledger import Ledger
from chatwright.recipes.run_settings import RunSettings
from chatwright.reports.charts import curve_svg, round_ticks, thinned
from chatwright.reports.document import Chart, Document, Section, Series, Table
from chatwright.reports.figures import differing_settings, final_figures
from chatwright.reports.markdown import markdown
from chatwright.reports.page import page
from chatwright.reports.run_document import comparison, run_report
from chatwright.reports.run_record import RunRecord, read_run
from chatwright.train.hooks import Hook, StepRecord
from tiny_model import make_tiny_model
from training_runs import conversations, prepare, recipe, train, write_rows

NASTY = "<script>alert(1)</script>|`x`*[a](b)&\x1b[31m\u202e\n# head"
SILENT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over two sources, one with a name that HTML and Markdown could trip over and a row lost."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATWRIGHT_CACHE", str(root / "cache"))
        make_tiny_model(root / "model")
        first = write_rows(root / "a.jsonl", conversations(24))
        second = write_rows(root / "b <i>|*.jsonl", [*conversations(12, 100), SILENT])
        settings = recipe(
            root / "model",
            first,
            root / "run",
            data=[{"path": str(first), "weight": 2}, {"path": str(second), "weight": 1, "on_bad_row": "skip"}],
            heldout={"share": 0.1},
            train={"save_every": 3, "keep_last": 2},
            eval={"every": 2},
        )
        train(settings)
    return root / "run"


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to harm."""
    return shutil.copytree(folder, tmp_path / "run")


def read(path: Path) -> RunRecord:
    return read_run(path, RunSettings)


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_figure_equals_the_files(folder: Path) -> None:
    record, newest = read(folder), latest_checkpoint(folder)
    assert newest is not None
    manifest, figures = read_manifest(newest), final_figures(record)
    steps = [line for line in logged(folder) if "loss" in line]
    evaluated = [line for line in logged(folder) if "scores" in line]
    heldout = [line["heldout_loss"] for line in evaluated]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["plan"]
    seconds = sum(line["seconds"] for line in steps)
    assert record.finished and not record.missing
    assert figures == {
        "steps": manifest.step,
        "planned_steps": plan["steps"],
        "tokens": sum(line["tokens"] for line in steps),
        "supervised_tokens": sum(line["supervised_tokens"] for line in steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "reward_first": None,
        "reward_last": None,
        "heldout_first": heldout[0],
        "heldout_last": heldout[-1],
        "heldout_best": min(heldout),
        "heldout_bits_first": evaluated[0]["heldout_bits_per_byte"],
        "heldout_bits_last": evaluated[-1]["heldout_bits_per_byte"],
        "seconds": pytest.approx(seconds, abs=1e-3),
        "evaluation_seconds": pytest.approx(sum(line["seconds"] for line in evaluated), abs=1e-3),
        "tokens_per_second": pytest.approx(manifest.tokens / seconds),
        "supervised_tokens_per_second": pytest.approx(manifest.supervised_tokens / seconds),
        "packing_waste": plan["packing_waste"],
        "parameters": plan["parameters"],
        "trainable_parameters": plan["trainable_parameters"],
    }
    tables = {section.name: section.tables for section in run_report(record).sections}
    assert [row[4] for row in tables["data"][0].rows] == [f"{source['tokens']:,}" for source in plan["sources"]]
    sizes = [sum(file.stat().st_size for file in each.iterdir()) for each in list_checkpoints(folder)]
    sealed = [(each / "manifest.json").stat().st_size for each in list_checkpoints(folder)]
    assert [each.bytes for each in record.checkpoints] == [a - b for a, b in zip(sizes, sealed, strict=True)]
    assert sum(each.best for each in record.checkpoints) == 1


def test_each_checkpoint_holds_a_balanced_ledger(folder: Path) -> None:
    record = read(folder)
    for saved in record.checkpoints:
        assert saved.ledger is not None and saved.manifest is not None
        saved.ledger.check(reached="trained", finished=saved.step == record.plan.steps)
        assert saved.ledger.tokens("trained") == saved.manifest.tokens
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    packed = Ledger.from_dict(plan["ledger"]).tokens("packed")
    assert record.ledger.tokens("packed") == record.ledger.tokens("trained") == packed == plan["plan"]["tokens"]


def test_what_was_lost_and_that_the_sums_hold_is_said(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| dropped | 1 | 8 | nothing to train |" in text and "sums balance, in rows and in tokens" in text
    assert text == markdown(run_report(read(folder)))


def test_a_ledger_that_does_not_balance_is_shown_as_such(run: Path) -> None:
    path = latest_checkpoint(run) / "training_state.json"
    text = path.read_text(encoding="utf-8")
    wrong = re.sub(r'("stage": "read",\s+"reason": null,\s+"rows": )24', r"\g<1>25", text)
    assert wrong != text and len(wrong) == len(text)
    path.write_text(wrong, encoding="utf-8")
    document = run_report(read(run))
    assert "1 sums don't balance." in markdown(document) and "read 25 ≠ skipped 0 + converted 24" in markdown(document)
    assert "read 25 ≠ skipped 0 + converted 24 ✗" in page(document)


class StopAfter(Hook):
    """Asks the trainer to stop as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step, self.trainer = step, None

    def on_step(self, record: StepRecord) -> None:
        """Ask."""
        if record.step == self.step:
            self.trainer.stop_requested = True


def stopped(tiny_model: Path, tmp_path: Path, hook: Hook, **changes: object) -> Path:
    """A run of 24 conversations under a hook."""
    rows = write_rows(tmp_path / "rows.jsonl", conversations(24))
    trainer, _, _ = prepare(recipe(tiny_model, rows, tmp_path / "run", **changes), hooks=(hook,))
    hook.trainer = trainer.trainer
    trainer.train()
    return tmp_path / "run"


def test_an_interrupted_run_says_how_far_it_came_and_how_to_go_on(tiny_model: Path, tmp_path: Path) -> None:
    run = stopped(tiny_model, tmp_path, StopAfter(2))
    record = read(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert not record.finished and record.ledger.rows("trained") < record.ledger.rows("packed")
    assert f"Not finished: step 2 of {record.plan.steps} is saved." in text
    assert f"chatwright train {run} --resume" in text
    assert "sums balance" in text


def test_a_run_that_fails_before_its_first_checkpoint_has_a_report(tiny_model: Path, tmp_path: Path) -> None:
    class Breaks(Hook):
        """Fails at the second step."""

        def on_step(self, record: StepRecord) -> None:
            """Fail."""
            if record.step == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped(tiny_model, tmp_path, Breaks())
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "No checkpoint can be used; 2 steps were logged." in text
    assert "no complete checkpoint: device, versions" in text and "before training" in text


def test_a_report_that_fails_does_not_fail_the_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Damages(Hook):
        """Spoils plan.json while the run goes on."""

        def on_step(self, record: StepRecord) -> None:
            """Spoil it."""
            (tmp_path / "run" / "plan.json").write_text("{", encoding="utf-8")

    run = stopped(tiny_model, tmp_path, Damages())
    assert not (run / "report.md").exists() and latest_checkpoint(run) is not None
    assert "report.md was not written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["recipe.yaml", "plan.json", "metrics.jsonl", "checkpoint"])
def test_what_is_missing_is_named_and_not_guessed(run: Path, name: str) -> None:
    if name == "checkpoint":
        for each in list_checkpoints(run):
            (each / "model.safetensors").unlink()
    else:
        (run / name).unlink()
    record = read(run)
    document = run_report(record)
    assert [name in each for each in record.missing] == [True]
    assert name in markdown(document) and name in page(document)
    gone = {
        "recipe.yaml": set(),
        "plan.json": {"planned_steps", "packing_waste", "parameters", "trainable_parameters"},
        "checkpoint": {"steps", "tokens", "supervised_tokens"},
    }
    empty = {key for key, value in final_figures(record).items() if value is None}
    expected = gone.get(
        name, {"first_loss", "last_loss", "seconds", "tokens_per_second", "supervised_tokens_per_second"}
    )
    measured = {"heldout_first", "heldout_last", "heldout_best", "heldout_bits_first", "heldout_bits_last"}
    assert empty - measured - {"evaluation_seconds", "reward_first", "reward_last"} == expected
    assert ("model.safetensors: missing" in markdown(document)) == (name == "checkpoint")


DAMAGE = {
    "plan.json": "{",
    "metrics.jsonl": '{"step": 1}\nnonsense\n{"step": 2}\n',
    "recipe.yaml": "a: [",
    "best.json": "[]",
    "metrics.jsonl ": '{"step": 1, "loss": "low"}\n',
    "plan.json ": '{"plan": {"steps": 3}, "ledger": {"entries": []}}',
    " plan.json": '{"plan": {"steps": 3, "packing_waste": 0.1, "sources": []}, "ledger": {"entries": [{"rows": 2}]}}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_in_one_message(run: Path, name: str) -> None:
    (run / name.strip()).write_text(DAMAGE[name], encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(name.strip())):
        read(run)


def test_a_recipe_of_another_version_is_shown_whole(run: Path) -> None:
    with (run / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("from_the_future: 1\n")
    assert "from_the_future: 1" in markdown(run_report(read(run)))


def test_settings_changed_on_resuming_are_told(run: Path) -> None:
    path = run / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("keep_last: 2", "keep_last: 7"), encoding="utf-8")
    assert "| train.keep_last | 7 | 2 |" in markdown(run_report(read(run)))


class Elements(HTMLParser):
    """Every tag and attribute of a page, and whether all of it is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(folder: Path) -> None:
    text = page(run_report(read(folder)))
    found = Elements(text).found
    links = [attributes[name] for _, attributes in found for name in ("src", "href", "action") if name in attributes]
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert all(link.startswith("#") and link[1:] in ids for link in links) and len(set(ids)) == len(ids)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in found}
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert sum(tag == "svg" and attributes["class"] == "curve" for tag, attributes in found) == 4
    assert {"result", "curves", "evaluations", "run", "data", "ledger", "checkpoints", "recipe", "next"} == set(ids)
    assert "b &lt;i&gt;|*.jsonl" in text and "<i>|" not in text


def test_text_of_strangers_can_do_nothing() -> None:
    chart = Chart(NASTY, NASTY, (Series(NASTY, ((1, 1.0),)), Series(NASTY, ((1, 2.0), (2, 1.0)))))
    section = Section("x", NASTY, NASTY, (Table((NASTY,), ((NASTY,),)),), (chart,), (NASTY,), "```\n" + NASTY)
    document = Document(NASTY, NASTY, ((NASTY, NASTY),), (section,))
    html, text = page(document), markdown(document)
    assert not {"script", "img"} & {tag for tag, _ in Elements(html).found}
    outside = text[: text.index("````")]
    assert not re.search(r"(?<!\\)[<`*\[]", outside)
    assert outside.count("\n# head") == 0 and "\x1b" not in text + html and "\u202e" not in text + html
    assert all(line.count("|") - line.count("\\|") == 2 for line in outside.splitlines() if line[:2] == "| ")


def test_curves_of_any_length_and_height() -> None:
    for values in ([1.0], [0.0, 0.0], [-3.0, 5.0], [1e-9, 2e-9], [1e12, 1.0], [float(n % 7) for n in range(2000)]):
        for from_zero in (True, False):
            points = tuple((step, value) for step, value in enumerate(values, start=5))
            text = curve_svg(Chart("c", "u", (Series("s", points), Series("none", ())), from_zero))
            assert "nan" not in text and "inf" not in text
            marks = re.findall(r'points="([^"]+)"', text)
            places = [tuple(map(float, pair.split(","))) for mark in marks for pair in mark.split()]
            assert places and all(0 <= x <= 520 and 0 <= y <= 240 for x, y in places)
    assert round_ticks(0.0, 9.0) == [0, 2, 4, 6, 8, 10] and round_ticks(3.0, 3.0)[0] <= 3.0
    long = thinned([(step, float(step % 2)) for step in range(1, 1001)])
    assert len(long) <= 300 and long[0] == (2.5, 0.5, 0.0, 1.0)


def test_two_runs_side_by_side(folder: Path, run: Path) -> None:
    path = run / "recipe.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("learning_rate: 0.001", "learning_rate: 0.5"), encoding="utf-8"
    )
    first, second = read(folder), read(run)
    assert differing_settings(first.recipe, second.recipe) == [("optimizer.learning_rate", "0.001", "0.5")]
    document = comparison(first, second)
    assert "| optimizer.learning_rate | 0.001 | 0.5 |" in markdown(document)
    Elements(page(document))
    assert differing_settings({"adapter": None, "data": [{"path": "a"}], "b": [1]}, {"adapter": {"rank": 8}}) == [
        ("adapter", "null", "–"),
        ("data.0.path", "a", "–"),
        ("b", "[1]", "–"),
        ("adapter.rank", "–", "8"),
    ]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`chatwright report …` in this process: its exit status, and all that it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["chatwright", "report", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_command(folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    code, printed = command(folder)
    assert code == 0 and "Finished: all" in printed and "sums balance" in printed
    assert f"chatwright chat {folder}\n" in printed
    plain = json.loads(command(folder, folder, "--json")[1])
    assert plain["runs"][0]["balances"] and plain["differing_settings"] == []
    assert "open it in a browser" in command(folder, "--html", tmp_path / "page.html")[1]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page(run_report(read(folder)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "holds no run"),
        (("FOREIGN",), "holds no run"),
        (("a", "b", "c"), "3 runs were given"),
        (("RUN", "--json", "--html", "x.html"), "exclude each other"),
        (("RUN", "--html", "no/such/page.html"), "no/such/page.html"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x\n", encoding="utf-8")  # a recipe lies here, but no run
    places = {"FOREIGN": str(tmp_path), "RUN": str(folder)}
    code, printed = command(*(places.get(each, each) for each in arguments))
    assert code == 2 and words in printed and printed.count("error:") == 1 and "Traceback" not in printed


def test_a_report_needs_no_torch(folder: Path) -> None:
    code = f"import sys; sys.argv = ['chatwright', 'report', {str(folder)!r}]\nfrom chatwright.cli.main import app\n"
    code += "app(standalone_mode=False)\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
