"""Documents out of text files, whole, by paragraph and by line, and out of rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from chatwright.conversations import documents as documents_module
from chatwright.conversations.documents import (
    NOTICE_CUT,
    document_conversation,
    document_of,
    read_text_range,
    scan_texts,
    split_texts,
    text_fingerprint,
)
from chatwright.conversations.schema import Document
from chatwright.errors import DataError
from shared_files import shared


def read_documents(source, field="text", **options):
    return [document_of(row, field) for row in scan_texts(source, **options)]


TEXT = "\ufeffOne\u2028still one\r\nline two\r\n\r\n \r\nÜber\fall\r\n".encode()


@pytest.mark.parametrize(
    ("by", "texts"),
    [
        ("file", ["One\u2028still one\nline two\n\n \nÜber\fall"]),
        ("paragraph", ["One\u2028still one\nline two", "Über\fall"]),
        ("line", ["One\u2028still one", "line two", "Über\fall"]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_files_by_file_paragraph_and_line(tmp_path, by, texts, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXT) if name.endswith(".gz") else TEXT)
    expected = [Document(text, str(path), row) for row, text in enumerate(texts)]
    assert (read_documents(path, by=by)) == expected
    assert (read_documents(tmp_path, by=by)) == expected, "a folder of texts"


GUTENBERG = """The Project Gutenberg EBook of X

*** START OF THIS PROJECT GUTENBERG EBOOK X ***

The tale.

End of the story, not of the file.

End of Project Gutenberg's X

*** END OF THIS PROJECT GUTENBERG EBOOK X ***
Licence
"""


def test_gutenberg_notices_are_cut_where_the_marks_stand(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(GUTENBERG)
    assert [d.text for d in read_documents(path)] == ["The tale.\n\nEnd of the story, not of the file."]
    assert [d.text for d in read_documents(path, keep_notices=True)] == [GUTENBERG.strip("\n")]
    assert [d.cut for d in read_documents(path, by="paragraph")] == [NOTICE_CUT, None]
    path.write_text("Long\n" * 1000 + "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nmore")
    assert read_documents(path)[0].text.count("\n") == 1001, "a mark deep in a text is a part of it"


def test_real_gutenberg_files_lose_notice_and_licence():
    documents = read_documents(shared("data/text/gutenberg"))
    assert [Path(d.source).name for d in documents] == sorted(Path(d.source).name for d in documents)
    assert len(documents) == 10
    assert not any("*** START OF" in d.text or "*** END OF" in d.text or "donations" in d.text for d in documents)
    assert documents[0].text.startswith("ALICE’S ADVENTURES IN WONDERLAND")
    assert documents[0].text.endswith("THE END")
    assert sum(1 for _ in read_documents(shared("data/text/gutenberg"), by="paragraph")) == 16_110


@pytest.mark.parametrize(("name", "counts"), [("wiki_demo", (1, 1, 30)), ("wikitext2_valid", (1, 1160, 2461))])
def test_other_real_texts_are_whole(name, counts):
    path = shared(f"data/text/{name}.txt")
    assert tuple(sum(1 for _ in read_documents(path, by=by)) for by in ("file", "paragraph", "line")) == counts
    assert read_documents(path)[0].text == path.read_text("utf-8").strip("\n")


def test_rows_by_their_field(tmp_path):
    rows = [{"text": "a"}, {"text": ["b", "c"]}, "d"]
    assert [(d.text, d.row) for d in read_documents(rows)] == [("a", 0), ("b\nc", 1), ("d", 2)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [d.text for d in read_documents(str(path))] == ["a", "b\nc", "d"]


@pytest.mark.parametrize(("name", "count"), [("lunyu", 20), ("tang_poems_0", 1000)])
def test_real_poems_by_their_paragraphs(name, count):
    documents = read_documents(shared(f"data/text/zh/{name}.json"), field="paragraphs")
    assert len(documents) == count
    assert documents[0].text.count("\n") > 2


def test_rows_without_text_name_their_field():
    rows = [{"text": "a"}, {"body": "b"}, {"text": " "}, {"text": 3}, {"text": {"a": 1}}]
    with pytest.raises(DataError, match="no field 'text'; its fields are 'body'"):
        read_documents(rows)
    found = []
    for row in scan_texts(rows):
        try:
            document_of(row, "text")
        except DataError as error:
            found.append((error.row, error.field))
    assert found == [(1, None), (2, "text"), (3, "text"), (4, "text")]


@pytest.mark.parametrize("small", [0, 10, 1 << 20])
def test_ranges_hold_every_document_once_and_no_file_is_cut(tmp_path, monkeypatch, small):
    monkeypatch.setattr(documents_module, "SMALL_FILE_BYTES", small)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"a{number}\n\nb{number}\n" * (number + 1))
    (tmp_path / ".hidden.txt").write_text("no")

    def read(ranges):
        rows = (row for each in ranges for row in read_text_range(each, "line", keep_notices=False, hub_mode="cached"))
        return [document_of(row, "text") for row in rows]

    whole = read_documents(str(tmp_path), by="line")
    ranges = split_texts(str(tmp_path), 3)
    assert read(ranges) == whole and len(whole) == 30
    assert len(ranges) == {0: 5, 10: 5, 1 << 20: 1}[small]
    assert read(split_texts(str(tmp_path), 3, 4, 20, 3)) == whole[4:20:3]
    assert read(split_texts(f"{tmp_path}/*.txt", 3)) == whole
    before = text_fingerprint(str(tmp_path))
    (tmp_path / "4.txt").write_text("changed")
    assert text_fingerprint(str(tmp_path)) != before


def test_a_document_is_a_conversation_that_says_so():
    made = document_conversation(Document("Once.", "a.txt", 3), {"stars": 4})
    assert (made.document, made.source, made.row, made.extra) == (True, "a.txt", 3, {"stars": 4})
    assert [message.text for message in made.messages] == ["Once."]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"ok\n\xff\n", "line 2 is not UTF-8"),
        ("a.txt.gz", b"no gzip", "can't be read"),
        ("a.rtf", b"x", "unknown file type"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        read_documents(path)
    assert caught.value.source == str(path)


def test_a_nested_book_is_refused_by_name():
    with pytest.raises(DataError, match="must hold a list of rows, found one dict with fields 'title'"):
        (read_documents(shared("data/text/zh/guwenguanzhi.json"), field="content"))
