"""`chatwright import-recipe` as a user types it."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from chatwright.cli.main import main
from chatwright.recipes.run_settings import load_recipe
from tiny_model import make_tiny_model


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["chatwright", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_configuration_is_imported_and_its_recipe_can_be_loaded(command, tmp_path):
    config = {"model_name_or_path": "m/n", "dataset_name": "a/b", "assistant_only_loss": True, "mystery": "yes"}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = command("import-recipe", "sft.yaml")
    assert code == 0 and "TRL → recipe" in out and "mystery" in out and "chatwright plan recipe.yaml" in out
    assert load_recipe("recipe.yaml").data[0].path == "hub:a/b/train"
    assert "#   mystery: yes  (not known to the importer)" in (tmp_path / "recipe.yaml").read_text()
    code, _, err = command("import-recipe", "sft.yaml")
    assert code != 0 and "exists already" in err
    code, out, _ = command("import-recipe", "sft.yaml", "--force", "--json")
    assert code == 0 and json.loads(out)["recipe"]["model"] == "m/n"
    for asked in ("plan", "train"):
        code, _, err = command(asked, "sft.yaml")
        assert code != 0 and "chatwright import-recipe sft.yaml" in err


def test_a_file_that_is_no_configuration_is_named(command, tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    code, _, err = command("import-recipe", "a.yaml")
    assert code != 0 and "a.yaml" in err and not (tmp_path / "recipe.yaml").exists()


def test_init_says_which_rows_are_skipped(command, tmp_path):
    make_tiny_model(tmp_path / "model")
    row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    (tmp_path / "a.jsonl").write_text(row + "{oops\n" + row)
    code, out, err = command("init", "a.jsonl", "--model", "model")
    assert code == 0 and "row 1 of a.jsonl" in out + err
