"""Pickles are read, never run: whatever they ask for beyond the allowed records is refused by its name."""

from __future__ import annotations

import builtins
import collections
import operator
import os
import pickle
import random
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.checkpoints.unpickling import Record, load_records, load_torch_file
from chatwright.errors import ModelError

TOUCHED: list[str] = []
ALLOWED = {("tiktoken.core", "Encoding"): Record}
ENCODING = b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93"
"""Pushes the class by its name, as pickle protocol 4 does."""


def touch(*args: Any) -> None:
    """What an attack would run."""
    TOUCHED.append(str(args))


class Attack:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "posix.system|nt.system": Attack(os.system, "echo pwned"),
    "builtins.eval": Attack(eval, "1 + 1"),
    "builtins.exec": Attack(exec, "1"),
    "builtins.getattr": Attack(getattr, "", "join"),
    "builtins.__import__": Attack(builtins.__import__, "os"),
    "subprocess.Popen": Attack(subprocess.Popen, ["true"]),
    "_?operator.attrgetter": Attack(operator.attrgetter, "x"),
    "collections.OrderedDict": Attack(collections.OrderedDict),
    "test_unpickling.touch": Attack(touch, "run"),
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_but_the_allowed_names_is_known(tmp_path: Path, name: str, protocol: int) -> None:
    TOUCHED.clear()
    path = written(tmp_path / "tokenizer.pkl", pickle.dumps({"a": ATTACKS[name]}, protocol=protocol))
    with pytest.raises(ModelError, match=f"asks for (__builtin__\\.|commands\\.|{name}|{name.split('.')[0]})"):
        load_records(path, ALLOWED)
    assert not TOUCHED


def test_the_test_would_see_an_attack() -> None:
    TOUCHED.clear()
    pickle.loads(pickle.dumps(ATTACKS["test_unpickling.touch"]))
    assert TOUCHED == ["('run',)"]


@pytest.mark.parametrize(
    "data",
    [
        ENCODING + b"\x8c\x06__dict__\x8c\x01a\x86\x85R.",  # called with arguments: only kept
        ENCODING + b"}\x8c\x0c__setstate__K\x01sb.",  # BUILD on the class itself
        ENCODING + b")\x81}\x8c\x09arguments\x8c\x01xsN\x86b.",  # state with slots
    ],
)
def test_an_allowed_name_gives_an_inert_record(tmp_path: Path, data: bytes) -> None:
    before = dict(vars(Record))
    try:
        found = load_records(written(tmp_path / "a.pkl", data), ALLOWED)
    except ModelError as error:
        assert "is no pickle that can be read" in str(error)  # one of the three may be refused
    else:
        assert type(found) is Record
    assert dict(vars(Record)) == before


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x80\x04", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"(lp0\n."]
)
def test_damaged_pickles_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "tokenizer.pkl", data)
    if data == b"(lp0\n.":
        assert load_records(path, ALLOWED) == []
    else:
        with pytest.raises(ModelError, match=r"tokenizer\.pkl: is no pickle"):
            load_records(path, ALLOWED)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_cut_anywhere_is_refused_in_words(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 1 + len(whole) // 150):
        with pytest.raises(ModelError, match=r"model\.pt"):
            load_torch_file(written(path, whole[:length]))


def test_a_huge_memo_number_takes_no_memory(tmp_path: Path) -> None:
    """Room for 2^28 entries would be two gigabytes, for a file of nine bytes."""
    data = b"\x80\x02]r" + (2**28).to_bytes(4, "little") + b"."
    tracemalloc.start()
    try:
        assert load_records(written(tmp_path / "a.pkl", data), ALLOWED) == []
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"\x80\x02X\x01\x00\x00\x00aQ.", b"Pabc\n."])
def test_outside_objects_and_extensions_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError, match="outside of it"):
        load_records(written(tmp_path / "a.pkl", data), ALLOWED)
    with pytest.raises(ModelError, match="is no pickle"):
        load_records(written(tmp_path / "b.pkl", b"\x80\x02\x82\xf0."), ALLOWED)  # extension 240


def test_torch_files_are_tensors_and_plain_values(tmp_path: Path) -> None:
    kept = {"w": torch.arange(3, dtype=torch.bfloat16), "meta": [1, "two", None, 3.0]}
    torch.save(kept, tmp_path / "model.pt")
    found = load_torch_file(tmp_path / "model.pt")
    assert torch.equal(found["w"], kept["w"]) and found["meta"] == kept["meta"]


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_run_nothing(tmp_path: Path, legacy: bool) -> None:
    TOUCHED.clear()
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "x": Attack(touch, "run")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=r"model\.pt: holds more than tensors.*test_unpickling\.touch"):
        load_torch_file(path)
    assert not TOUCHED


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_are_called_damaged_and_nothing_more(
    tmp_path: Path, seed: int, recwarn: pytest.WarningsRecorder
) -> None:
    begin = (b"", b"\x80", b"\x80\x02", b"c")[seed % 4]
    data = begin + random.Random(seed).randbytes(2000)
    with pytest.raises(ModelError, match=r"is no file of torch\.save, or a damaged one"):
        load_torch_file(written(tmp_path / "model.pt", data))
    assert not recwarn.list
    with pytest.raises(ModelError, match="is empty"):
        load_torch_file(written(tmp_path / "model.pt", b""))


def test_warnings_of_torch_about_a_pickle_stay_inside(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ModelError, match="or a damaged one"):
        load_torch_file(written(tmp_path / "model.pt", pickle.dumps({"a": 1}, protocol=4)))
    assert not recwarn.list


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x02}q\x00.", b"\x80\x02X\x01"])
def test_damaged_torch_files_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError, match=r"model\.pt"):
        load_torch_file(written(tmp_path / "model.pt", data))
    with pytest.raises(ModelError, match="can't be read"):
        load_torch_file(tmp_path / "none.pt")
