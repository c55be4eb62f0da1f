"""Settings: YAML numbers, dotted overrides, and every problem at once with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatwright.errors import ConfigError
from chatwright.recipes.chain_settings import is_chain, load_chain
from chatwright.recipes.run_settings import RunSettings, load_recipe, shipped_recipes
from chatwright.recipes.tokenizer_recipe import TokenizerRecipe
from chatwright.settings import apply_overrides, build, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("2.0e-4", 2e-4),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("12", 12),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_numbers_are_what_users_of_learning_rates_expect(text: str, value: object) -> None:
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_reach_nested_settings_and_list_items() -> None:
    data = {"model": "m", "data": [{"path": "a"}, {"path": "b"}], "train": {"seed": 1}}
    changed = apply_overrides(data, ["train.seed=7", "data.1.path=c", "optimizer.learning_rate=1e-4"])
    assert changed["train"]["seed"] == 7
    assert changed["data"][1]["path"] == "c"
    assert changed["optimizer"]["learning_rate"] == 1e-4
    assert data["train"]["seed"] == 1, "the original stays as it was"


def test_every_problem_is_reported_at_once_with_the_nearest_name() -> None:
    raw = {
        "model": "m",
        "data": [{"path": "a"}],
        "optimizer": {"learning_rte": 1e-4},
        "train": {"epochs": -1, "sed": 3},
    }
    with pytest.raises(ConfigError) as caught:
        build(RunSettings, raw, "recipe.yaml")
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "optimizer.learning_rte: unknown setting; did you mean 'learning_rate'?" in text
    assert "train.sed: unknown setting; did you mean 'seed'?" in text
    assert "train.epochs" in text and "greater than 0" in text
    assert "recipe.yaml" in text


@pytest.mark.parametrize("override", ["train.seed", "=3", "model.name=3"])
def test_a_wrong_override_is_named(override: str) -> None:
    with pytest.raises(ConfigError, match="model" if "model" in override else "write it as name=value"):
        apply_overrides({"model": "m"}, [override])


def test_impossible_combinations_are_refused() -> None:
    raw = {"model": "m", "data": [{"path": "a"}], "max_tokens": 4096, "packing": {"tokens_per_pack": 1024}}
    with pytest.raises(ConfigError, match="an example must fit a pack"):
        build(RunSettings, raw, "r")
    raw = {"model": "m", "data": [{"path": "a"}], "eval": {"every": 5}}
    with pytest.raises(ConfigError, match="no held-out data"):
        build(RunSettings, raw, "r")


def test_a_recipe_written_out_reads_back_the_same(tmp_path: Path) -> None:
    for name in shipped_recipes():
        runs = [load_recipe(name, ["train.seed=5"])] if not is_chain(name) else []
        runs += [stage.settings for stage in (load_chain(name).runs if is_chain(name) else ())]
        for settings in runs:
            path = tmp_path / f"{name}.yaml"
            path.write_text(dump_yaml(settings), encoding="utf-8")
            assert load_recipe(str(path)) == settings


def test_broken_files_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\n  data: [\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="shipped recipes are"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="did you mean nano_cpu"):
        load_recipe("nano-cpi")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"filters": [{"kind": "exact_dupes"}]}, "filters.0: unknown filter 'exact_dupes'; did you mean 'exact_dup"),
        (
            {"transforms": [{"kind": "zzz"}]},
            "transforms.0: unknown transform 'zzz'; known here: random_system",
        ),
        ({"filters": [{"min": 1}]}, "filters.0: 'kind' is missing; it names the filter: length, empty_reply"),
        ({"filters": [{"kind": "length", "match": "x"}]}, "filters.0.match: unknown setting; it belongs to pattern"),
        ({"filters": [{"kind": "pattern", "mtch": "x"}]}, "filters.0.mtch: unknown setting; did you mean 'match'?"),
        ({"filters": [{"kind": "field", "field": "s", "alow": [1]}]}, "0.alow: unknown setting; did you mean 'allow'?"),
        ({"filters": ["exact_duplicates"]}, "filters.0: must be a mapping; write filters: [{kind: exact_duplicates}]"),
        ({"filters": "exact_duplicates"}, "filters: must be a list, such as [{kind: exact_duplicates}]"),
        ({"filters": {"kind": "truncated"}}, "filters: must be a list, such as [{kind: truncated, …}]"),
        ({"filters": [{"kind": "field", "field": "s", "allow": "ok"}]}, "0.allow: must be a list, such as [ok]"),
        ({"columns": "x"}, "columns: must be a mapping"),
    ],
)
def test_settings_told_apart_by_kind_are_explained_by_their_kind(entry: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunSettings, {"model": "m", "data": [{"path": "a", **entry}]}, "recipe.yaml")
    assert says in str(caught.value)


HALF = "\ud800x"


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"data": [{"path": HALF}]}, "data.0.path"),
        ({"data": [{"path": "a", "transforms": [{"kind": "fill", "values": {"a": HALF}}]}]}, "values"),
        ({"data": [{"path": "a", "transforms": [{"kind": "fill", "values": {HALF: "a"}}]}]}, "values"),
        ({"data": [{"path": "a", "transforms": [{"kind": "random_system", "prompts": ["a", HALF]}]}]}, "prompts"),
        ({"data": [{"task": "spelling", "task_options": {"words": [["a", {"b": HALF}]]}}]}, "data.0.task_options"),
        ({"out": HALF, "data": [{"path": "a"}]}, "out"),
    ],
)
def test_half_a_character_is_refused_by_name(raw: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=r"half a character \('\\ud800'\)") as caught:
        build(RunSettings, {"model": "m", **raw}, "recipe.yaml")
    (problem,) = caught.value.problems
    assert place in problem
    problem.encode()


@pytest.mark.parametrize("name", ["workers", "rows_per_shard"])
def test_preparation_settings_have_bounds(name: str) -> None:
    raw = {"model": "m", "data": [{"path": "a"}], "preparation": {name: -3}}
    with pytest.raises(ConfigError, match=f"preparation.{name}: .*greater than or equal to"):
        build(RunSettings, raw, "recipe.yaml")
    assert build(RunSettings, {**raw, "preparation": {name: 1}}, "recipe.yaml")


def test_a_list_is_not_called_too_short_for_what_is_wrong_in_it() -> None:
    with pytest.raises(ConfigError) as found:
        build(TokenizerRecipe, {"data": [{"path": "a.txt", "text_by": "word"}]}, "tokenizer")
    assert [problem.partition(":")[0] for problem in found.value.problems] == ["data.0.text_by"]
    with pytest.raises(ConfigError, match="data: tuple should have at least 1 item"):
        build(TokenizerRecipe, {"data": []}, "tokenizer")
