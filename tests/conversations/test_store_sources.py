"""Files in stores and on the web through fsspec, compressed files, and where skipped rows are."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from chatwright.conversations.files import read_file
from chatwright.conversations.sources import fingerprint, is_local, load_conversations, read_rows
from chatwright.conversations.stores import StoreFile, is_url
from chatwright.errors import DataError, UserError

ROWS = [{"prompt": "a\u2028b", "completion": "ü"}, {"prompt": "c", "completion": "d"}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


@pytest.fixture
def memory():
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", None)],
)
def test_compressed_files_are_read_and_cut_ones_named(tmp_path, ending, pack):
    pack = pack or pytest.importorskip("zstandard").compress
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(LINES))
    assert list(read_rows(path)) == ROWS == list(read_rows(tmp_path))
    text = json.dumps(ROWS).encode()
    path.with_name(f"b.json{ending}").write_bytes(pack(text))
    assert list(read_rows(tmp_path / f"b.json{ending}")) == ROWS
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match="can't be read"):
        list(read_rows(path))


def test_zst_files_of_several_frames_are_read_whole(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(LINES) + zstandard.compress(LINES))
    assert list(read_rows(path)) == ROWS * 2


def test_zst_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"(\xb5/\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        list(read_rows(path))


def test_a_store_is_read_by_file_glob_and_folder(memory):
    memory.pipe({f"/bucket/{name}": LINES for name in ("b.jsonl", "a.jsonl", "x/c.jsonl", ".hid/d.jsonl", "note.md")})
    memory.pipe("/bucket/z.jsonl.gz", gzip.compress(LINES))
    assert list(read_rows("memory://bucket/a.jsonl")) == ROWS
    globbed = load_conversations("memory://bucket/*.jsonl").conversations
    assert [(c.source.rpartition("/")[2], c.row) for c in globbed] == [
        ("a.jsonl", 0),
        ("a.jsonl", 1),
        ("b.jsonl", 0),
        ("b.jsonl", 1),
    ]
    assert len(list(read_rows("memory://bucket"))) == 8, "all below it but what is hidden or no data"
    assert list(read_rows(globbed[0].source)) == ROWS, "a row's source can be read again"


def test_other_file_types_of_a_store(memory):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with memory.open("/b/a.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    memory.pipe("/b/a.csv", "prompt,completion\r\na\u2028b,ü\r\nc,d\r\n".encode())
    memory.pipe("/b/a.json", json.dumps(ROWS).encode())
    for name in ("a.parquet", "a.csv", "a.json"):
        assert list(read_rows(f"memory://b/{name}")) == ROWS


def test_what_a_store_lacks_is_named(memory):
    memory.pipe("/bucket/note.md", b"")
    for url, says in (
        ("memory://bucket/no.jsonl", "no such file"),
        ("memory://bucket/*.jsonl", "no file matches"),
        ("memory://bucket", "no data files"),
        ("memory://bucket/note.md", "unknown file type '.md'"),
        ("zzz://bucket/a.jsonl", "can't be used as an address"),
    ):
        with pytest.raises(DataError, match=says):
            list(read_rows(url))
    memory.pipe("/saved/state.json", b"{}")
    with pytest.raises(DataError, match="saved data set"):
        list(read_rows("memory://saved"))


def test_a_store_without_its_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    fsspec.filesystem("memory")  # fsspec itself is there
    with pytest.raises(UserError, match="pip install s3fs"):
        list(read_rows("s3://bucket/*.jsonl"))


def test_fingerprints_follow_the_store(memory):
    memory.pipe("/bucket/a.jsonl", LINES)
    before = fingerprint("memory://bucket/*.jsonl")
    assert before == fingerprint("memory://bucket/*.jsonl")
    memory.pipe("/bucket/a.jsonl", LINES + b"\n")
    assert fingerprint("memory://bucket/*.jsonl") != before
    memory.pipe("/bucket/b.jsonl", LINES)
    assert fingerprint("memory://bucket/b.jsonl") != fingerprint("memory://bucket/a.jsonl")


def test_file_addresses_are_paths(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    url = f"file://{tmp_path}"
    assert list(read_rows(f"{url}/*.jsonl")) == ROWS == list(read_rows(url))
    assert fingerprint(f"{url}/a.jsonl") == fingerprint(tmp_path / "a.jsonl")
    assert is_local(url) and not is_url(url) and not is_local("s3://a/b")


def test_files_on_the_web(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    quiet = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        assert list(read_rows(url)) == ROWS == list(read_rows(f"{url}?download=true"))
        assert fingerprint(url) == fingerprint(url)
        with pytest.raises(DataError, match="no such file"):
            list(read_rows(url.replace("a.jsonl", "b.jsonl")))
    finally:
        server.shutdown()
        server.server_close()


def test_a_store_that_tells_no_version_is_fingerprinted_by_its_bytes(memory, monkeypatch):
    memory.pipe("/bucket/a.jsonl", LINES)
    monkeypatch.setattr(memory.__class__, "info", lambda self, path, **_: {"name": path, "size": 9, "type": "file"})
    before = fingerprint("memory://bucket/a.jsonl")
    memory.pipe("/bucket/a.jsonl", LINES[::-1])
    assert fingerprint("memory://bucket/a.jsonl") != before


def test_names_of_store_files():
    assert StoreFile("https://h/p/a.jsonl?x=/b.csv").name == "a.jsonl"
    assert StoreFile("s3://bucket/p/a.parquet").name == "a.parquet"


def test_fsspec_is_loaded_for_addresses_only(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    code = (
        "import sys; from chatwright.conversations.sources import read_rows;"
        f"list(read_rows({str(tmp_path / 'a.jsonl')!r}));"
        "print([n for n in ('fsspec', 'huggingface_hub', 'datasets', 'zstandard') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_skipped_rows_are_placed_by_number(tmp_path):
    good, bad = b'{"prompt": "a", "completion": "b"}\n', b"{oops\n"
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(good + bad + good + bad + b'{"prompt": 3, "completion": "x"}\n')
    second.write_bytes(bad * 20 + good)
    loaded = load_conversations(tmp_path, on_bad_row="skip")
    assert loaded.skip_places == {
        "line": f"rows 1, 3 of {first}; rows 0, 1, 2, 3, 4, 5, 6, 7 … of {second}",
        "prompt": f"row 4 of {first}",
    }
    assert loaded.skip_counts == {"line": 22, "prompt": 1}


def test_a_file_object_of_a_store_is_read_as_a_file(memory):
    memory.pipe("/bucket/a.jsonl", LINES)
    rows = list(read_file(StoreFile("memory://bucket/a.jsonl")))
    assert [(row.value, row.source, row.number) for row in rows] == [
        (ROWS[0], "memory://bucket/a.jsonl", 0),
        (ROWS[1], "memory://bucket/a.jsonl", 1),
    ]
    assert Path(rows[0].source).name == "a.jsonl"


def test_an_s3_bucket_is_read_globbed_and_fingerprinted(monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("bucket")
        store.pipe({"bucket/a.jsonl": LINES, "bucket/b.jsonl.gz": gzip.compress(LINES)})
        assert list(read_rows("s3://bucket/a.jsonl")) == ROWS
        assert len(list(read_rows("s3://bucket/*"))) == len(list(read_rows("s3://bucket"))) == 4
        assert fingerprint("s3://bucket/a.jsonl") == fingerprint("s3://bucket/a.jsonl")
        with pytest.raises(DataError, match="no such file"):
            list(read_rows("s3://bucket/none.jsonl"))
    finally:
        server.stop()
