"""Streams: each example in one pack or counted, the same steps for any ranks and after a stop, sources without end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatwright.batches.loader import StepBatches
from chatwright.conversations import files, row_ranges, sampled_fingerprint, sources
from chatwright.conversations.data_settings import DataSettings
from chatwright.errors import CheckpointError, ConfigError, DataError
from chatwright.inspection.ledger import LedgerError, Stage
from chatwright.preparation import logical_reader, streamed_rows
from chatwright.preparation.stream import Stream
from chatwright.preparation.streamed_rows import Dealer, given_stream, stream_entry
from chatwright.recipes.data import build_data, build_planned
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.streaming import StreamedData, build_stream
from chatwright.runtime import Runtime
from chatwright.templates.base import TrainOn
from training_runs import conversations, merged, recipe, write_rows

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_rows, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(streamed_rows, "ROWS_PER_PART", 20)


def streamed(model: Path, data: list[dict[str, Any]], steps: int = 6, /, **changes: Any) -> RunSettings:
    base: dict[str, Any] = {
        "data": data,
        "streaming": {"readers": 3},
        "packing": {"window": 12, "packs_per_step": 4},
        "train": {"max_steps": steps},
    }
    return recipe(model, Path("unused"), Path("unused"), **merged(base, changes))


def all_steps(data: StreamedData, world_size: int = 1, rank: int = 0, start: int = 0) -> list[StepBatches]:
    return list(data.steps(start, Runtime(CPU, rank, rank, world_size), None))


def plain(steps: list[StepBatches]) -> list[Any]:
    return [
        [each.step, each.weight, each.supervised_tokens, each.num_tokens, each.keys]
        + [(p.input_ids.tolist(), p.targets.tolist(), p.weights.tolist(), p.keys) for p in each.packs]
        for each in steps
    ]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", conversations(60))


def test_every_example_is_in_one_pack_of_its_window(tiny_model: Path, rows: Path) -> None:
    """Windows share nothing, hold what was read once, in packs that fit; a pass is whole before the next begins."""
    data = build_stream(streamed(tiny_model, [{"path": str(rows)}]))
    dealers = data.job.dealers([[None] * 3])
    readers = [
        logical_reader.LogicalReader(n, data.job, dealers, each.start) for n, each in enumerate(data.position.readers)
    ]
    seen: list[int] = []
    for _ in range(5):  # 5 windows of 12 examples by 3 readers: 3 passes over the 60 rows
        for reader in readers:
            window = reader.next_window()
            assert sorted(window.units.members.tolist()) == list(range(12)) == list(range(len(window.store)))
            starts = window.units.pack_starts
            sizes = np.add.reduceat(window.store.lengths[window.units.members], starts[:-1])
            assert sizes.max() <= 256 and window.units.num_units == len(starts) - 1
            seen += window.store.rows.tolist()
    counts = Counter(seen)
    assert set(counts) == set(range(60)) and max(counts.values()) - min(counts.values()) <= 1
    total = sum((Counter(reader.ledger.rows(s) for s in [Stage.KEPT]) for reader in readers), Counter())
    assert sum(rows * times for rows, times in total.items()) >= 180


def test_windows_are_shuffled_apart(tiny_model: Path) -> None:
    """Windows of equal rows, of which only the random order of examples and packs can differ; none where it's off."""
    rows = conversations(1) * 300
    for shuffle, orders in ((True, 6), (False, 1)):
        data = build_stream(streamed(tiny_model, [], packing={"shuffle": shuffle}), {"alike": rows})
        dealers = data.job.dealers([[None] * 3])
        starts = [each.start for each in data.position.readers]
        readers = [logical_reader.LogicalReader(n, data.job, dealers, start) for n, start in enumerate(starts)]
        found = {tuple(reader.next_window().units.members.tolist()) for reader in readers for _ in range(2)}
        assert len(found) == orders


def test_blocks_are_dealt_once_and_come_back_after_a_stop(tmp_path: Path) -> None:
    """Each block goes to one reader, in fair turns; a dealer that begins later deals the same from there on."""
    path = write_rows(tmp_path / "rows.jsonl", conversations(23))
    entry = stream_entry(DataSettings(path=str(path)), "rows", 0, TrainOn.ASSISTANT, 0)
    dealer = Dealer(entry, 3, 7, True, [None] * 3)
    dealt = {reader: [dealer.next_block(reader) for _ in range(8)] for reader in (2, 0, 1)}
    numbers = sorted(block.place.block for blocks in dealt.values() for block in blocks)
    assert numbers == list(range(24))
    assert len({tuple(b.place.block % 3 for b in blocks) for blocks in dealt.values()}) == 3, "the turns are shuffled"
    in_order = sorted((b for blocks in dealt.values() for b in blocks), key=lambda b: b.place.block)
    assert [row.number for block in in_order[:10] for row in block.rows] == [*range(23), *range(23)]
    later = Dealer(entry, 3, 7, True, [dealt[0][4].place, dealt[1][2].place, dealt[2][6].place])
    again = {0: dealt[0][4:], 1: dealt[1][2:], 2: dealt[2][6:]}
    for reader in (1, 2, 0):
        assert [later.next_block(reader) for _ in again[reader]] == again[reader]


def test_parts_of_a_pass_are_shuffled_and_found_again(tmp_path: Path) -> None:
    """Several files (and the row ranges of parquet) come in another order in every pass, each row once."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "many"
    for number in range(3):
        write_rows(folder / f"{number}.jsonl", conversations(7, start=7 * number))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(conversations(50, start=100)), folder / "big.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
        entry = stream_entry(DataSettings(path=str(folder)), "many", 0, TrainOn.ASSISTANT, 0)
    assert len(entry.parts) == 3 + 3
    dealer = Dealer(entry, 1, 0, True, [None])
    blocks = [dealer.next_block(0) for _ in range(30)]  # 15 blocks a pass: 71 rows
    passes = [[(Path(r.source).name, r.number) for b in blocks[k : k + 15] for r in b.rows] for k in (0, 15)]
    assert sorted(passes[0]) == sorted(passes[1]) and len(set(passes[0])) == 71 and passes[0] != passes[1]
    for block in (blocks[4], blocks[14], blocks[20]):
        assert Dealer(entry, 1, 0, True, [block.place]).next_block(0) == block


@pytest.mark.parametrize("packing", [{}, {"by": "examples", "packs_per_step": 1, "examples_per_step": 7}])
def test_the_steps_are_the_same_for_any_ranks(tiny_model: Path, rows: Path, packing: dict[str, Any]) -> None:
    settings = streamed(tiny_model, [{"path": str(rows)}], packing=packing)
    one = all_steps(build_stream(settings))
    assert [step.step for step in one] == list(range(6))
    assert [step.num_examples for step in one] == [7] * 6 or not packing
    for world_size in (2, 3):
        ranks = [all_steps(build_stream(settings), world_size, rank) for rank in range(world_size)]
        for number, step in enumerate(one):
            theirs = [rank[number] for rank in ranks]
            assert {(t.weight, t.supervised_tokens, t.num_tokens, t.keys) for t in theirs} == {
                (step.weight, step.supervised_tokens, step.num_tokens, step.keys)
            }
            assert len({len(each.packs) for each in theirs}) == 1, "no rank waits for another"
            dealt = [theirs[p % world_size].packs[p // world_size] for p in range(len(step.packs))]
            assert plain([replace(step, packs=dealt)]) == plain([step])
            dummies = [pack for each in theirs for pack in each.packs if not len(pack.targets)]
            assert len(dummies) == sum(len(each.packs) for each in theirs) - len(step.packs)


def test_steps_go_on_from_any_position(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """From what a checkpoint keeps, as JSON: the same steps and the same account, wherever it stopped."""
    other = write_rows(tmp_path / "other.jsonl", conversations(8, start=300))
    data = [{"path": str(rows), "weight": 2}, {"path": str(other), "weight": 0.5}]
    settings = streamed(tiny_model, data, 9)
    whole = build_stream(settings)
    steps, states = [], {}
    for step in whole.steps(0, Runtime(CPU), None):
        steps.append(step)
        ledger = whole.ledger_after(step.step + 1)
        ledger.check()
        assert ledger.rows(Stage.TRAINED) == ledger.rows(Stage.PACKED) == sum(s.num_examples for s in steps)
        assert ledger.tokens(Stage.TRAINED) == sum(s.num_tokens for s in steps)
        states[step.step + 1] = (json.dumps(whole.loader_state(step.step + 1)), ledger.to_dict())
    for start in range(1, 9):
        resumed = build_stream(settings)
        resumed.go_on(json.loads(states[start][0]))
        assert plain(all_steps(resumed, start=start)) == plain(steps[start:])
        assert json.dumps(resumed.loader_state(9)) == states[9][0]
        assert resumed.ledger_after(9).to_dict() == states[9][1]


def miscounted_packs(patch: pytest.MonkeyPatch) -> None:
    """Every pack is counted twice."""
    original = Stream._counted

    def twice(self: Stream, *given: Any) -> dict[str, tuple[int, int]]:
        return {name: (2 * rows, 2 * tokens) for name, (rows, tokens) in original(self, *given).items()}

    patch.setattr(Stream, "_counted", twice)


def example_lost(patch: pytest.MonkeyPatch) -> None:
    """The last example of every pack gets lost on the way into a step."""
    original = Stream._next_unit

    def shorter(self: Stream, number: int) -> list[Any]:
        packs = original(self, number)
        return [(store.take(np.arange(len(store) - 1)), owner[:-1]) for store, owner in packs]

    patch.setattr(Stream, "_next_unit", shorter)


def pack_skipped(patch: pytest.MonkeyPatch) -> None:
    """A reader goes on two packs behind the one that it gave."""
    original = Stream._next_unit

    def skipping(self: Stream, number: int) -> list[Any]:
        packs = original(self, number)
        window = self._windows[number]
        assert window is not None
        self._used[number] = min(self._used[number] + 1, window.units.num_units)
        return packs

    patch.setattr(Stream, "_next_unit", skipping)


def rows_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A reader loses the rest of the block that it holds, window after window."""
    original = logical_reader.LogicalReader.next_window

    def losing(self: logical_reader.LogicalReader) -> logical_reader.Window:
        window = original(self)
        for table in self._tables:
            table._store = None
            table.used = 99
        return window

    patch.setattr(logical_reader.LogicalReader, "next_window", losing)


MISTAKES = [miscounted_packs, example_lost, pack_skipped, rows_forgotten]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.__name__)
def test_the_ledger_sees_a_mistake(
    tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Each count of the account is taken at a place of its own: what one place does wrong, the sums show."""
    mistake(monkeypatch)
    data = build_stream(streamed(tiny_model, [{"path": str(rows)}], 9))
    with pytest.raises(LedgerError):
        for step in data.steps(0, Runtime(CPU), None):
            data.ledger_after(step.step + 1).check(finished=step.step == 8)


def test_a_position_that_claims_more_than_was_read_is_found(tiny_model: Path, rows: Path) -> None:
    data = build_stream(streamed(tiny_model, [{"path": str(rows)}]))
    stream = Stream(data.job, data.position)
    for _ in range(3):
        stream.next_step()
    stream.close()
    stream.position.ledger().check()
    assert stream.position.ledger().rows(Stage.UNPLACED) > 0
    packed = {name: (rows + 100_000, tokens) for name, (rows, tokens) in stream.position.packed.items()}
    with pytest.raises(LedgerError):
        replace(stream.position, packed=packed).ledger().check()


def test_changed_rows_are_refused_before_a_step(tiny_model: Path, rows: Path) -> None:
    settings = streamed(tiny_model, [{"path": str(rows)}])
    data = build_stream(settings)
    first = next(iter(data.steps(0, Runtime(CPU), None)))
    state = data.loader_state(1)
    same = build_stream(settings)
    same.go_on(state)
    assert next(iter(same.steps(1, Runtime(CPU), None))).step == 1
    text = rows.read_text()
    row = first.keys[0].row
    rows.write_text(
        "".join(line.replace("Yes", "Yea") if n == row else line for n, line in enumerate(text.splitlines(True)))
    )
    changed = build_stream(settings)
    assert (
        changed.identity()["data"] != data.identity()["data"] and changed.identity()["plan"] == data.identity()["plan"]
    )
    changed.go_on(state)
    with pytest.raises(CheckpointError, match="the rows have changed since the checkpoint"):
        all_steps(changed, start=1)


def test_shares_follow_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    """Weights hold among the rows that are trained on, whatever filters take away."""
    paths = [write_rows(tmp_path / f"{n}.jsonl", conversations(20, start=100 * n)) for n in range(3)]
    odd = {"kind": "pattern", "forbid": r"\(\d*[13579]\)"}
    entries: list[dict[str, Any]] = [{"path": str(p), "weight": w} for p, w in zip(paths, (3, 1, 0.5), strict=True)]
    entries[0]["filters"] = [odd]
    steps = all_steps(build_stream(streamed(tiny_model, entries, 20, packing={"window": 90})))
    assert all(key.row % 2 == 0 for step in steps for key in step.keys if key.source == str(paths[0]))
    counts = Counter(key.source for step in steps for key in step.keys)
    shares = [counts[str(path)] / sum(counts.values()) for path in paths]
    assert shares == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5], abs=0.05)


# Rows without an end


def endless(limit: int = 1 << 60) -> Iterator[dict[str, Any]]:
    """Rows without an end; more than `limit` must not be read."""
    start = 0
    while start < limit:
        yield from conversations(10, start=start)
        start += 10
    raise AssertionError(f"more than {limit} rows were read")


@pytest.mark.parametrize(
    "make", [endless, lambda: endless, lambda: _endless_set()], ids=["iterator", "function", "hub"]
)
def test_training_starts_before_the_last_row(tiny_model: Path, make: Callable[[], Any]) -> None:
    settings = streamed(tiny_model, [], 4)
    steps = all_steps(build_stream(settings, {"endless": make()}))
    assert len(steps) == 4 and len({key.row for step in steps for key in step.keys}) > 16
    assert plain(steps) == plain(all_steps(build_stream(settings, {"endless": make()})))


def _endless_set() -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.IterableDataset.from_generator(endless)


def test_an_endless_source_goes_on_where_it_was(tiny_model: Path) -> None:
    settings = streamed(tiny_model, [], 6)
    data = build_stream(settings, {"endless": endless()})
    steps: list[StepBatches] = []
    for step in data.steps(0, Runtime(CPU), None):
        steps.append(step)
        if step.step == 2:
            break
    resumed = build_stream(settings, {"endless": endless()})
    resumed.go_on(data.loader_state(3))
    assert plain(steps + all_steps(resumed, start=3)) == plain(
        all_steps(build_stream(settings, {"endless": endless()}))
    )


def test_hub_sets_are_fetched_as_they_are_read(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `hub_mode` says: the set is never downloaded whole, and its commit is part of the run's identity."""
    asked: list[str] = []

    def rows_of(name: str, mode: str) -> Iterator[dict[str, Any]]:
        asked.append(f"{name} {mode}")
        return endless(3000)

    monkeypatch.setattr(sources, "hub_rows", rows_of)
    monkeypatch.setattr(sampled_fingerprint, "hub_commit", lambda name: "c0ffee")
    settings = streamed(tiny_model, [{"path": "hub:owner/name/train"}], 4)
    data = build_stream(settings)
    assert len(all_steps(data)) == 4 and set(asked) == {"hub:owner/name/train streaming"}
    monkeypatch.setattr(sampled_fingerprint, "hub_commit", lambda name: "decaf")
    assert build_stream(settings).identity()["data"] != data.identity()["data"]


def test_an_iterator_that_ends_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(DataError, match="come to its end, and can be read only once"):
        all_steps(build_stream(streamed(tiny_model, [], 50), {"few": iter(conversations(70))}))
    assert len(all_steps(build_stream(streamed(tiny_model, [], 50), {"few": conversations(70)}))) == 50


def test_the_end_of_a_file_is_not_read_first(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at the end that can't be read stops the run only when its turn comes; rows of others aren't parsed."""
    path = write_rows(tmp_path / "rows.jsonl", conversations(4000))
    with path.open("a") as file:
        file.write("not json\n")
    parsed: list[int] = []
    original = files.parse_line
    count = lambda *a: (parsed.append(a[2]), original(*a))[1]  # noqa: E731
    monkeypatch.setattr(files, "parse_line", count)
    monkeypatch.setattr(row_ranges, "parse_line", count)
    settings = streamed(tiny_model, [{"path": str(path)}], 5)
    data = build_stream(settings)
    steps = all_steps(data)
    assert len(steps) == 5 and max(parsed) < 400
    state, early = data.loader_state(5), max(parsed)
    parsed.clear()
    resumed = build_stream(settings.model_copy(update={"train": settings.train.model_copy(update={"max_steps": 7})}))
    parsed.clear()  # the head, for the format
    resumed.go_on(state)
    all_steps(resumed, start=5)
    assert 0 < min(parsed) <= early, "what lies before isn't parsed again"
    short = write_rows(tmp_path / "short.jsonl", conversations(30))
    with short.open("a") as file:
        file.write("not json\n")
    with pytest.raises(DataError, match="line 31 is not JSON"):
        all_steps(build_stream(streamed(tiny_model, [{"path": str(short)}], 30)))


# What is lost


def with_lost(count: int, lost: int) -> list[dict[str, Any]]:
    """Conversations, every `lost`-th of which is far too long or has nothing to train."""
    rows = conversations(count)
    for number in range(0, count, lost):
        if number % (2 * lost):
            rows[number]["messages"][1]["content"] = "long " * 400
        else:
            rows[number]["messages"] = rows[number]["messages"][:1]
    return rows


def test_lost_rows_are_counted_and_limited(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logical_reader, "LEAST_COUNTED", 20)
    path = write_rows(tmp_path / "rows.jsonl", with_lost(200, 10))
    settings = streamed(tiny_model, [{"path": str(path), "format": "messages"}], 12)
    with pytest.raises(DataError, match=r"of the first \d+ examples of a reader were dropped \(.*longer than 160"):
        all_steps(build_stream(settings))
    patient = settings.model_copy(
        update={"streaming": settings.streaming.model_copy(update={"max_dropped_share": 0.3})}  # type: ignore[union-attr]
    )
    data = build_stream(patient)
    steps = all_steps(data)
    ledger = data.ledger_after(12)
    ledger.check(finished=True)
    reasons = {entry.reason: entry.rows for entry in ledger.entries() if entry.stage is Stage.DROPPED}
    assert set(reasons) == {"longer than 160 tokens", "nothing to train"} and min(reasons.values()) > 2
    assert all(key.row % 10 for step in steps for key in step.keys)
    assert ledger.rows(Stage.READ) == ledger.rows(Stage.KEPT) + sum(reasons.values())
    assert [e.reason for e in ledger.entries() if e.stage is Stage.UNPLACED] == ["read, but in no step so far"]


def test_a_source_that_gives_nothing_is_an_error(tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logical_reader, "MOST_ROWS_IN_VAIN", 200)
    filters = [{"kind": "length", "of": "replies", "unit": "characters", "min": 5000}]
    with pytest.raises(DataError, match=r"none of 200 rows in a row can be trained on \(200 filtered: length"):
        all_steps(build_stream(streamed(tiny_model, [{"path": str(rows), "filters": filters}])))
    with pytest.raises(DataError, match="there are no rows"):
        given_stream(lambda: iter([]), "none", 0, TrainOn.ASSISTANT)


# Settings

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no length": ({"train": {"max_steps": None}}, "must be given by one of train.max_steps and streaming.max_tokens"),
    "two lengths": ({"streaming": {"max_tokens": 9999}}, "must be given by one of"),
    "epochs": ({"train": {"epochs": 3}}, r"train\.epochs has no effect"),
    "share": ({"heldout": {"share": 0.1}}, r"heldout\.share can't be drawn.*set heldout\.data"),
    "order": ({"mixture": {"order": "sequence"}}, "mixture has no effect"),
    "no weights": ({"data": [{"path": "a"}, {"path": "b"}]}, "give every data entry a weight"),
    "repeats": ({"data": [{"path": "a", "epochs": 2}]}, r"data\.epochs has no effect \(a\)"),
    "cap": ({"data": [{"path": "a", "max_rows": 2}]}, r"max_rows can't be drawn \(a\)"),
    "twins": ({"data": [{"path": "a", "filters": [{"kind": "exact_duplicates"}]}]}, "exact_duplicates can't run"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_needs_all_rows_is_refused(tiny_model: Path, problem: str) -> None:
    changes, words = REFUSED[problem]
    with pytest.raises(ConfigError, match=f"with streaming, .*{words}"):
        streamed(tiny_model, [{"path": "a"}], **changes)


def test_streaming_is_true_false_or_settings(tiny_model: Path, rows: Path) -> None:
    settings = recipe(tiny_model, rows, Path("out"), streaming=True, train={"max_steps": 3})
    assert settings.streaming is not None and settings.streaming.readers == 4 and settings.stream_steps == 3
    assert recipe(tiny_model, rows, Path("out"), streaming=False).streaming is None
    by_tokens = recipe(tiny_model, rows, Path("out"), streaming={"max_tokens": 5000}, packing={"packs_per_step": 2})
    assert by_tokens.stream_steps == 5000 // 512
    assert isinstance(build_data(settings), StreamedData)


def test_texts_are_streamed_too(tiny_model: Path, tmp_path: Path) -> None:
    """Paragraphs of a text file and a field of JSON lines, as in preparation: the same examples, and resumed."""
    words = [f"Chapter {n}. " + "A bird can fly. " * (n % 7 + 1) for n in range(40)]
    (tmp_path / "book.txt").write_text("\n\n".join(words))
    write_rows(tmp_path / "web.jsonl", [{"text": text} for text in words])
    for entry in (
        {"path": str(tmp_path / "book.txt"), "text_by": "paragraph"},
        {"path": str(tmp_path / "web.jsonl"), "format": "text"},
    ):
        settings = streamed(tiny_model, [entry], 5, stage="mid")
        data = build_stream(settings)
        steps = all_steps(data)
        planned = build_planned(recipe(tiny_model, tmp_path, tmp_path, data=[entry], stage="mid"))
        known = {key: planned.store.example(n)[0].tolist() for n, key in enumerate(planned.store.keys)}
        for pack in (pack for step in steps for pack in step.packs):
            ends = pack.layout.cu_q.tolist()
            for key, start, stop in zip(pack.keys, *(ends[:-1], ends[1:]), strict=True):
                assert key is None or known[key] == pack.input_ids[start:stop].tolist()
