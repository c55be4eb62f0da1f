"""The same shards from a real Ray cluster on this machine as from local workers: every file, byte for byte."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations import row_ranges
from chatwright.errors import DataError, UserError
from chatwright.preparation import prepare as prepare_module
from chatwright.preparation import ray_shards
from chatwright.preparation.ray_shards import make_one, make_shards_with_ray
from chatwright.preparation.work import RenderWork, Shard
from chatwright.preparation.worker import Start
from chatwright.preparation.workers import make_shards
from chatwright.recipes.data import prepare_text
from chatwright.recipes.rendering import contamination_check, plan_entries, render_entries
from chatwright.recipes.run_settings import RunSettings
from training_runs import conversations, recipe, write_rows


@pytest.fixture(autouse=True)
def cut_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with two cores and little memory; all tests of this file share it."""
    ray = pytest.importorskip("ray", reason="Ray isn't installed: pip install 'chatwright[ray]'")
    pytest.importorskip("ray.data", reason="Ray Data isn't installed: pip install 'chatwright[ray]'")
    folder = str(Path(__file__).parent.parent)
    options = {"include_dashboard": False, "object_store_memory": 200 << 20, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": folder}}, **options)
    yield ray
    ray.shutdown()


def settings_for(model: Path, folder: Path, **changes: Any) -> RunSettings:
    first = write_rows(folder / "first.jsonl", conversations(40))
    second = write_rows(folder / "second.jsonl", [*conversations(12, start=100), *conversations(12, start=104)])
    data = [
        {"path": str(first), "start": 3, "step": 2},
        {"path": str(second), "filters": [{"kind": "exact_duplicates"}]},
    ]
    preparation = {"rows_per_shard": 7, "workers": 2, **changes.pop("preparation", {})}
    base: dict[str, Any] = {"data": data, "heldout": {"share": 0.2}, "preparation": preparation}
    return recipe(model, None, folder / "run", **{**base, **changes})


def work_for(settings: RunSettings, folder: Path) -> tuple[list[Shard], Start]:
    text = prepare_text(settings)
    place = str(text.resolved.text_folder)
    render = RenderWork(place, text.template.settings, settings.max_tokens, settings.overflow, settings.train.seed)
    shards = [shard for entry in plan_entries(settings) for shard in entry.shards]
    return shards, Start(render, folder, contamination_check(settings))


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_cluster_that_is_not_there_is_one_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray Data isn't installed: pip install 'chatwright[ray]'")
    shards, start = work_for(settings_for(tiny_model, tmp_path), tmp_path)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"):
        with pytest.raises(UserError, match=r"can't be reached|give `local`"):
            make_shards_with_ray(shards, start, address, 0, lambda facts: None)


@pytest.mark.slow
def test_ray_gives_the_files_of_local_workers(
    cluster: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards and final stores are equal in every byte; the rows are compared with evaluations on the way."""
    settings = settings_for(tiny_model, tmp_path, contamination={"evaluations": ["general"]})
    shards, start = work_for(settings, tmp_path / "here")
    assert len(shards) > 5
    counts: dict[str, list[int]] = {"here": [], "ray": []}
    make_shards(shards, start, 2, lambda facts: counts["here"].append(facts.num_rows))
    there = Start(start.render, tmp_path / "ray", start.check)
    make_shards_with_ray(shards, there, "local", 2, lambda facts: counts["ray"].append(facts.num_rows))
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "here") != {}
    assert counts["ray"] == counts["here"] and sum(counts["ray"]) == 19 + 24

    text, made = prepare_text(settings), []
    monkeypatch.setattr(prepare_module, "make_shards_with_ray", lambda *a: (made.append(a), make_shards_with_ray(*a)))
    for name, preparation in (("stores here", {}), ("stores ray", {"ray": "local"})):
        own = settings_for(tiny_model, tmp_path, preparation=preparation, contamination=settings.contamination)
        folder = tmp_path / name / "tokens"
        render_entries(own, text.template, None, text_folder=text.resolved.text_folder, folder=folder, key="k")
    assert len(made) == 1
    assert hashes(tmp_path / "stores ray") == hashes(tmp_path / "stores here") != {}


@pytest.mark.slow
def test_mistakes_on_the_cluster_are_the_drivers(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The first bad row in the order of the rows; a row that kills its process is given up on."""
    rows: list[Any] = conversations(30)
    rows[11], rows[25] = {"messages": "none"}, {"messages": "none"}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    shards, start = work_for(settings_for(tiny_model, tmp_path, data=[{"path": str(path)}]), tmp_path / "made")
    with pytest.raises(DataError, match=r"rows\.jsonl, row 11, field 'messages'"):
        make_shards_with_ray(shards, start, "local", 2, lambda facts: None)
    deadly = [{"path": str(path), "filters": [{"kind": "python", "function": "deadly_filter:stop"}]}]
    shards, start = work_for(settings_for(tiny_model, tmp_path, data=deadly), tmp_path / "made")
    with pytest.raises(UserError, match="Ray could not make all shards"):
        make_shards_with_ray(shards[:1], start, "local", 2, lambda facts: None)


def test_without_ray_the_extra_is_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    shards, start = work_for(settings_for(tiny_model, tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"chatwright\[ray\]"):
        make_shards_with_ray(shards, start, "local", 0, lambda facts: None)


def test_a_machine_with_nothing_but_the_data_makes_the_same_shard(tiny_model: Path, tmp_path: Path) -> None:
    """A task in a Python of its own, after the tokenizer's folder and the index of evaluations are gone."""
    settings = settings_for(tiny_model, tmp_path, contamination={"evaluations": ["general"]})
    shards, start = work_for(settings, tmp_path / "here")
    make_shards(shards[:1], start, 1, lambda facts: None)
    packed = ray_shards._pack(start)
    gone = RenderWork("/no/such/folder", *(getattr(start.render, n) for n in RenderWork.__slots__[1:]))
    assert start.check is not None and packed.evaluations
    check = type(start.check)(Path("/no/such/index"), start.check.settings, start.check.empty)
    moved = ray_shards.replace(packed, start=Start(gone, tmp_path / "none", check), cwd="/no/such/place")
    (tmp_path / "job").write_bytes(pickle.dumps(({"shard": pickle.dumps(shards[0])}, pickle.dumps(moved))))
    code = (
        "import pickle, sys; from chatwright.preparation.ray_shards import make_one;"
        "row, start = pickle.load(open(sys.argv[1], 'rb'));"
        "open(sys.argv[2], 'wb').write(make_one(row, start)['answer']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "job"), str(tmp_path / "answer")], check=True)
    name, _, files = pickle.loads((tmp_path / "answer").read_bytes())
    ray_shards._write(files, tmp_path / "there" / name)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here") != {}


def test_another_version_on_the_cluster_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shards, start = work_for(settings_for(tiny_model, tmp_path), tmp_path)
    other = ray_shards.replace(ray_shards._pack(start), version=("0.0.1", (3, 9)))
    answer = pickle.loads(make_one({"shard": pickle.dumps(shards[0])}, pickle.dumps(other))["answer"])
    assert isinstance(answer, UserError) and "chatwright 0.0.1 on Python 3.9" in str(answer)
