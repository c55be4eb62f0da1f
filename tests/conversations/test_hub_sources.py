"""Hub data sets: cached, streamed, pinned, missing and out of reach; through a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_data_hub import COMMIT, fake_data_hub

from chatwright.conversations.hub import parse_hub_name

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
PROMPTS = [row["prompt"] for row in ROWS]
FILES = {"data/train.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), "README.md": b"# A set\n"}

PROGRAM = """
import sys, time, json
from chatwright.conversations.sources import fingerprint, load_conversations
from chatwright.errors import UserError
for name, mode in (item.split("=") for item in sys.argv[1:]):
    begin = time.perf_counter()
    try:
        loaded = load_conversations(name, hub_mode=mode)
        said = [c.messages[0].text for c in loaded.conversations], fingerprint(name)
    except UserError as error:
        said = str(error), None
    print("said:" + json.dumps([*said, time.perf_counter() - begin]))
"""


def ask(endpoint: str, home: Path, *names: str) -> list[tuple[object, str | None, float]]:
    """What each `name=mode` gives, in a process of its own: huggingface_hub reads HF_ENDPOINT when it's loaded."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [tuple(json.loads(line[5:])) for line in done.stdout.splitlines() if line.startswith("said:")]


def test_a_hub_set_is_streamed_without_a_copy(tmp_path):
    pytest.importorskip("datasets")
    with fake_data_hub("me/set", FILES) as (endpoint, asked):
        ((prompts, known_by, _),) = ask(endpoint, tmp_path, "hub:me/set/train=streaming")
    assert prompts == PROMPTS and known_by
    assert not list(tmp_path.rglob("*.arrow"))
    assert any("train.jsonl" in request for request in asked)


@pytest.mark.slow
def test_a_hub_set_is_downloaded_pinned_and_read_again_without_the_hub(tmp_path):
    pytest.importorskip("datasets")
    names = ["hub:me/set/train=cached", f"hub:me/set@{COMMIT}/train=cached", "hub:me/set/train=streaming"]
    with fake_data_hub("me/set", FILES) as (endpoint, asked):
        wrong = ["hub:me/nope/train=cached", "hub:me/set/exam=cached"]
        cached, pinned, streamed, missing, no_split = ask(endpoint, tmp_path, *names, *wrong)
    assert cached[0] == pinned[0] == PROMPTS and list(tmp_path.rglob("*.arrow"))
    assert cached[:2] == streamed[:2], "the fingerprint is the commit's, not the mode's"
    assert "no data set me/nope" in str(missing[0]) and missing[2] < 15
    assert any("/api/datasets/me/nope" in request for request in asked)
    assert "exam" in str(no_split[0])
    names[1:] = [f"hub:me/set@{'9' * 40}/train=cached", "hub:me/set/train=streaming"]
    again, other, streaming = ask(endpoint, tmp_path, *names)
    assert again[0] == PROMPTS and again[1] is None, "out of reach, the copy is read, but its commit isn't known"
    assert again[2] < 15
    assert "may not be revision" in str(other[0])
    assert "keeps no copy" in str(streaming[0])


def test_a_set_that_is_not_here_fails_in_seconds_without_a_hub(tmp_path):
    pytest.importorskip("datasets")
    ((said, _, seconds),) = ask("http://127.0.0.1:9", tmp_path, "hub:me/set/train=cached")
    assert "can't be loaded from the hub" in str(said) and "HF_ENDPOINT" in str(said)
    assert seconds < 15, "datasets alone retries for 23 s"


def test_hub_names_are_parsed():
    assert parse_hub_name("hub:openai/gsm8k:main/train") == ("openai/gsm8k", "main", "train", None)
    assert parse_hub_name("hub:a/b/test") == ("a/b", None, "test", None)
    assert parse_hub_name("hub:a/b@v1:c/test") == ("a/b", "c", "test", "v1")


RANGES = """
import json
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.sources import scan_rows
from chatwright.preparation.shards import shard_rows, split_entry
from chatwright.preparation.work import EntryWork
from chatwright.templates.base import TrainOn
name, said = "hub:me/set/train", []
for chosen in ({}, {"start": 1, "stop": 9, "step": 2}):
    entry = DataSettings(path=name, format="prompt_completion", **chosen)
    shards = split_entry(EntryWork(entry, name, entry.format, TrainOn.ASSISTANT), 0, 2)
    said.append([[row for row in shard_rows(shard)] for shard in shards] + [shards[-1].rows.commit])
said.append([row for row in scan_rows(name)])
print("said:" + json.dumps(said))
"""


@pytest.mark.slow
def test_a_downloaded_hub_set_is_cut_by_row(tmp_path):
    pytest.importorskip("datasets")
    with fake_data_hub("me/set", FILES) as (endpoint, _):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        command = [sys.executable, "-c", RANGES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (said,) = (line.removeprefix("said:") for line in done.stdout.splitlines() if line.startswith("said:"))
    whole, chosen, rows = json.loads(said)
    assert whole == [rows[:2], rows[2:4], rows[4:], COMMIT]
    assert chosen == [[rows[1], rows[3]], COMMIT]
