"""Two ranks share a step's problems and train what one rank trains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.tasks.registry import TASKS
from rewarded_task import LetterGame, rl_recipe
from training_runs import checkpoint_tensors, farthest, finish_ranks, write_recipe

TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from rewarded_task import LetterGame
from chatwright.tasks.registry import TASKS
TASKS[LetterGame.name] = LetterGame
sys.argv = ["chatwright", "train", {recipe!r}]
from chatwright.cli.main import main
main()
"""


def start(recipe: Path, count: int) -> list[subprocess.Popen[str]]:
    """The run as `count` processes that know the task."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = TRAIN.format(tests=str(Path(__file__).resolve().parents[1]), recipe=str(recipe))
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if count > 1 else {}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} if shared else {} for rank in range(count)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **own},
        )
        for own in ranks
    ]


@pytest.mark.slow
def test_two_ranks_draw_and_train_what_one_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64, so that another batch on each rank tips no draw."""
    monkeypatch.setitem(TASKS, LetterGame.name, LetterGame)
    for count in (1, 2):
        settings = rl_recipe(
            tiny_model, tmp_path / str(count), train={"dtype": "float64"}, packing={"tokens_per_pack": 256}
        )
        finish_ranks(start(write_recipe(settings, tmp_path / f"{count}.yaml"), count))
    lines = [
        [json.loads(line) for line in (tmp_path / f"{count}/metrics.jsonl").read_text().splitlines()]
        for count in (1, 2)
    ]
    for alone, shared in zip(*lines, strict=True):
        same = {name for name in alone if not name.endswith("seconds") and name != "drawn_gap"}
        assert {name: shared[name] for name in same} == pytest.approx({name: alone[name] for name in same}, rel=1e-9)
    assert sum(line["groups_with_signal"] > 0 for line in lines[0]) == 5
    one, two = (latest_checkpoint(tmp_path / str(count)) for count in (1, 2))
    assert one is not None and two is not None
    ours, theirs = ({n: t for n, t in checkpoint_tensors(each).items() if "model" in n} for each in (one, two))
    assert farthest(ours, theirs) < 1e-12
