"""Files that can't be read: wrong bytes, wrong encodings, cut archives, wrong shapes, wrong places."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

from bad_case import GOOD, GOOD_LINE, Case, data, place

TEXT = json.dumps({"prompt": "Grüße 你好", "completion": "é"}, ensure_ascii=False)
DEEP = 100_000


def parquet_bytes() -> bytes:
    """A good parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([GOOD] * 50), sink)
    return bytes(sink.getvalue().to_pybytes())


def _loop(folder: Path) -> None:
    (folder / "loop.jsonl").symlink_to("loop.jsonl")


def _dangling(folder: Path) -> None:
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")


def _folder_loop(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "rows" / "again").symlink_to("..")


def _empty_folder(folder: Path) -> None:
    (folder / "rows").mkdir()


def _hidden_only(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "rows" / ".a.jsonl").write_bytes(GOOD_LINE)


def _folder_named_like_a_file(folder: Path) -> None:
    (folder / "rows.jsonl").mkdir()


def _bad_file_in_folder(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "rows" / "a.jsonl").write_bytes(GOOD_LINE)
    (folder / "rows" / "b.jsonl").write_bytes(GOOD_LINE + b"{oops\n")


def _saved(state: bytes, arrow: bytes | None = None) -> object:
    def make(folder: Path) -> None:
        (folder / "saved").mkdir()
        (folder / "saved" / "state.json").write_bytes(state)
        if arrow is not None:
            (folder / "saved" / "data.arrow").write_bytes(arrow)

    return make


def _nothing(folder: Path) -> None:
    pass


def _damaged(raw: bytes) -> bytes:
    return raw[:4] + b"\xff" * 200 + raw[204:]


def _bomb() -> bytes:
    """Nine to the power of twelve words through aliases."""
    levels = [b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(12)]
    return b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(levels) + b"conversations: [*m]\n"


STATE = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()

ENCODINGS = [
    data("utf-16 json lines", "bad.jsonl", TEXT.encode("utf-16"), "bad.jsonl", "UTF-16"),
    data("utf-16 big-endian json lines", "bad.jsonl", b"\xfe\xff" + TEXT.encode("utf-16-be"), "bad.jsonl", "UTF-16"),
    data("utf-32 json lines", "bad.jsonl", TEXT.encode("utf-32"), "bad.jsonl", "row 0"),
    data("gbk json lines", "bad.jsonl", '{"prompt": "你好"}'.encode("gbk"), "bad.jsonl, row 0", "UTF-8"),
    data("latin-1 json lines", "bad.jsonl", '{"prompt": "é"}'.encode("latin-1"), "bad.jsonl, row 0", "UTF-8"),
    data("latin-1 in row 1", "bad.jsonl", GOOD_LINE + b'{"prompt": "\xe9"}\n', "bad.jsonl, row 1", "UTF-8"),
    data("cut utf-8 character", "bad.jsonl", '{"prompt": "é'.encode()[:-1], "bad.jsonl, row 0"),
    data("utf-8 surrogate bytes", "bad.jsonl", b'{"prompt": "\xed\xa0\x80"}', "bad.jsonl, row 0", "UTF-8"),
    data("overlong utf-8", "bad.jsonl", b'{"prompt": "\xc0\xaf"}', "bad.jsonl, row 0", "UTF-8"),
    data("bom on line 2", "bad.jsonl", GOOD_LINE + b"\xef\xbb\xbf" + GOOD_LINE, "bad.jsonl, row 1", "line 2"),
    data("two boms", "bad.jsonl", b"\xef\xbb\xbf" * 2 + GOOD_LINE, "bad.jsonl, row 0"),
    data("only a bom", "bad.jsonl", b"\xef\xbb\xbf", "bad.jsonl"),
    data("utf-16 json", "bad.json", f"[{TEXT}]".encode("utf-16"), "bad.json", "UTF-16"),
    data("gbk json", "bad.json", '[{"prompt": "你好"}]'.encode("gbk"), "bad.json", "UTF-8"),
    data("utf-16 csv", "bad.csv", "prompt,completion\na,b\n".encode("utf-16"), "bad.csv", "UTF-16"),
    data("latin-1 csv", "bad.csv", "prompt,completion\né,b\n".encode("latin-1"), "bad.csv", "UTF-8"),
    data("utf-16 yaml", "bad.yaml", "- [a, b]\n".encode("utf-16"), "bad.yaml"),
    data("control characters in yaml", "bad.yml", b"- [a, \x01]\n", "bad.yml"),
]

BYTES = [
    data("no bytes", "bad.jsonl", b"", "bad.jsonl", "no rows"),
    data("blank lines only", "bad.jsonl", b"\n \n\t\n", "bad.jsonl", "no rows"),
    data("one nul", "bad.jsonl", b"\0", "bad.jsonl, row 0"),
    data("nuls at the end", "bad.jsonl", GOOD_LINE + b"\0" * 4096, "bad.jsonl, row 1", "line 2"),
    data("a megabyte of nuls", "bad.jsonl", b"\0" * (1 << 20), "bad.jsonl, row 0"),
    data("raw nul in a string", "bad.jsonl", b'{"prompt": "a\0b"}\n', "bad.jsonl, row 0"),
    data("random bytes", "bad.jsonl", bytes(range(256)) * 16, "bad.jsonl, row 0"),
    data("png as json lines", "bad.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "bad.jsonl, row 0"),
    data("cut line", "bad.jsonl", GOOD_LINE + GOOD_LINE[:-9], "bad.jsonl, row 1", "line 2"),
    data("single quotes", "bad.jsonl", b"{'prompt': 'a'}\n", "bad.jsonl, row 0", "line 1"),
    data("trailing comma", "bad.jsonl", b'{"prompt": "a",}\n', "bad.jsonl, row 0"),
    data("comment line", "bad.jsonl", b"# rows\n" + GOOD_LINE, "bad.jsonl, row 0", "line 1"),
    data("two values in a line", "bad.jsonl", GOOD_LINE.strip() + GOOD_LINE, "bad.jsonl, row 0"),
    data("old mac line ends", "bad.jsonl", (GOOD_LINE.strip() + b"\r") * 3, "bad.jsonl, row 0"),
    data("pretty json in .jsonl", "bad.jsonl", json.dumps([GOOD], indent=1).encode(), "bad.jsonl, row 0"),
    data("python repr", "bad.jsonl", repr({"a": None, "b": True}).encode(), "bad.jsonl, row 0"),
    data("html", "bad.jsonl", b"<!DOCTYPE html>\n<html>404</html>\n", "bad.jsonl, row 0"),
    data(
        "git lfs pointer",
        "bad.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "bad.parquet",
        "git lfs pull",
    ),
    data("git lfs pointer as json lines", "bad.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    data("deep list", "bad.jsonl", GOOD_LINE + b"[" * DEEP + b"\n", "bad.jsonl, row 1"),
    data("deep and closed", "bad.jsonl", GOOD_LINE + b"[" * DEEP + b"]" * DEEP, "bad.jsonl, row 1"),
    data("deep objects", "bad.jsonl", b'{"a":' * DEEP + b"1" + b"}" * DEEP, "bad.jsonl, row 0"),
    data("integer of 5,000 digits", "bad.jsonl", b'{"prompt": ' + b"7" * 5000 + b"}", "bad.jsonl, row 0"),
    data("a huge row cut off", "bad.jsonl", b'{"prompt": "' + b"x" * 10_000_000, "bad.jsonl, row 0"),
    data("10 MB without a space", "bad.jsonl", GOOD_LINE + b"x" * 10_000_000, "bad.jsonl, row 1", "line 2"),
]

SHAPES = [
    data("empty json", "bad.json", b"", "bad.json"),
    data("json null", "bad.json", b"null", "bad.json", "list of rows"),
    data("json number", "bad.json", b"3", "bad.json", "list of rows"),
    data("json string", "bad.json", b'"rows"', "bad.json", "list of rows"),
    data("json object", "bad.json", b'{"rows": []}', "bad.json", "'rows'"),
    data("empty json list", "bad.json", b"[]", "bad.json", "no rows"),
    data("json list of nulls", "bad.json", b"[null, null]", "bad.json", "row 0"),
    data("json list of numbers", "bad.json", b"[1, 2]", "bad.json", "row 0"),
    data("cut json", "bad.json", json.dumps([GOOD]).encode()[:-5], "bad.json", "not JSON"),
    data("deep json", "bad.json", b"[" * DEEP + b"]" * DEEP, "bad.json", "nested"),
    data("huge int in json", "bad.json", b"[" + b"7" * 5000 + b"]", "bad.json"),
    data("empty csv", "bad.csv", b"", "bad.csv", "no rows"),
    data("csv header only", "bad.csv", b"prompt,completion\n", "bad.csv", "no rows"),
    data("csv with a column twice", "bad.csv", b"prompt,prompt\na,b\n", "bad.csv", "'prompt'", "twice"),
    data("csv with nameless columns", "bad.csv", b"prompt,,\na,b,c\n", "bad.csv", "''", "twice"),
    data("csv row too long", "bad.csv", b"prompt,completion\na,b\na,b,c\n", "bad.csv, row 1", "line 3"),
    data("csv row too short", "bad.csv", b"prompt,completion\na\n", "bad.csv, row 0", "line 2"),
    data("csv open quote", "bad.csv", b'prompt,completion\n"a,b\n', "bad.csv", "not CSV"),
    data("csv with nuls", "bad.csv", b"prompt,completion\na\0,b\nc\n", "bad.csv, row 1"),
    data("csv with semicolons", "bad.csv", b"prompt;completion\na;b\n", "bad.csv", "prompt;completion"),
    data("csv empty cells", "bad.csv", b"prompt,completion\n,\n", "bad.csv", entry=", format: messages"),
    data("empty yaml", "bad.yml", b"", "bad.yml", "list of rows"),
    data("yaml with tabs", "bad.yml", b"a:\n\t- b\n", "bad.yml", "not YAML"),
    data("yaml that refers to itself", "bad.yml", b"- &a [*a]\n", "bad.yml", "back to itself"),
    data("yaml bomb", "bad.yml", _bomb(), "bad.yml", "aliases"),
    data("yaml python object", "bad.yml", b"- !!python/object/apply:os.system [id]\n", "bad.yml", "not YAML"),
    data("yaml date", "bad.yml", b"- [a, 2024-01-01]\n", "bad.yml", "row 0", entry=", format: dialogue"),
    data("yaml alias of nothing", "bad.yml", b"- *nowhere\n", "bad.yml", "not YAML"),
    data("yaml list as key", "bad.yml", b"? [a]\n: b\n", "bad.yml"),
    data("deep yaml", "bad.yml", b"[" * 5000, "bad.yml"),
    data("no gzip", "bad.jsonl.gz", b"plain", "bad.jsonl.gz", "can't be read"),
    data("cut gzip", "bad.jsonl.gz", gzip.compress(os.urandom(999).hex().encode())[:300], "bad.jsonl.gz"),
    data("gzip with a wrong sum", "bad.jsonl.gz", gzip.compress(GOOD_LINE)[:-8] + b"\0" * 8, "bad.jsonl.gz"),
    data("empty gzip", "bad.jsonl.gz", b"", "bad.jsonl.gz", "no rows"),
    data("gzip of nothing", "bad.jsonl.gz", gzip.compress(b""), "bad.jsonl.gz", "no rows"),
    data("empty parquet", "bad.parquet", b"", "bad.parquet", "parquet"),
    data("parquet magic only", "bad.parquet", b"PAR1", "bad.parquet", "parquet"),
    data("cut parquet", "bad.parquet", parquet_bytes()[:-40], "bad.parquet", "parquet"),
    data(
        "parquet with a huge footer", "bad.parquet", b"PAR1" + b"x" * 40 + struct.pack("<I", 2**31) + b"PAR1", "parquet"
    ),
    data("parquet with damaged pages", "bad.parquet", _damaged(parquet_bytes()), "bad.parquet"),
    data("unknown ending", "bad.docx", b"x", "bad.docx", "unknown file type"),
    data("no ending", "rows", b"x", "rows", "unknown file type"),
]

PLACES: list[Case] = [
    place("missing file", _nothing, "none.jsonl", "none.jsonl", "no such file"),
    place("missing folder", _nothing, "none/rows.jsonl", "none/rows.jsonl", "no such file"),
    place("glob of nothing", _nothing, "*.nothing", "*.nothing", "no file matches"),
    place("broken glob", _nothing, "[z-a.jsonl", "[z-a.jsonl", "no file matches"),
    place("double star glob", _nothing, "**/x/**/none-*.jsonl", "no file matches"),
    place("link to itself", _loop, "loop.jsonl", "loop.jsonl", "back to itself"),
    place("link to nowhere", _dangling, "gone.jsonl", "gone.jsonl", "nowhere.jsonl"),
    place("folder with a link to its parent", _folder_loop, "rows", "rows", "no data files"),
    place("empty folder", _empty_folder, "rows", "rows", "no data files"),
    place("hidden files only", _hidden_only, "rows", "rows", "no data files"),
    place("folder named like a file", _folder_named_like_a_file, "rows.jsonl", "rows.jsonl", "no data files"),
    place("bad file in a folder", _bad_file_in_folder, "rows", "b.jsonl, row 1", "line 2"),
    place("fifo", lambda folder: os.mkfifo(folder / "pipe.jsonl"), "pipe.jsonl", "pipe.jsonl", "no plain file"),
    place("device", _nothing, "/dev/zero", "/dev/zero", "no plain file"),
    place("standard input", _nothing, "/dev/stdin", "/dev/stdin"),
    place("nul in the path", _nothing, "a\0b.jsonl", "b.jsonl"),
    place("very long path", _nothing, "x" * 5000 + ".jsonl", "jsonl", "too long"),
    place("file as a folder", lambda folder: (folder / "f").write_bytes(b""), "f/rows.jsonl", "f/rows.jsonl"),
    place("unknown home", _nothing, "~nobody-at-all/rows.jsonl", "~nobody-at-all/rows.jsonl"),
    place("hub name without split", _nothing, "hub:owner/name", "hub:owner/name", "split"),
    place("empty path", _nothing, "", "path"),
    place("saved data set, state no JSON", _saved(b"{"), "saved", "saved"),
    place("saved data set, state a list", _saved(b"[]"), "saved", "saved"),
    place("saved data set, file missing", _saved(STATE), "saved", "saved", "data.arrow"),
    place("saved data set, file empty", _saved(STATE, b""), "saved", "saved"),
    place("saved data set, file damaged", _saved(STATE, b"\xff" * 999), "saved", "saved"),
]

CASES = [*ENCODINGS, *BYTES, *SHAPES, *PLACES]
