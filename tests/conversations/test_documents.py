"""Documents out of text files, whole, by paragraph and by line, and out of rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from chatwright.conversations.documents import read_documents
from chatwright.conversations.schema import Document
from chatwright.conversations.sources import SkippedRow
from chatwright.errors import DataError
from shared_files import shared

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
    assert list(read_documents(path, by=by)) == expected
    assert list(read_documents(tmp_path, by=by)) == expected, "a folder of texts"


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
    path.write_text("Long\n" * 1000 + "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\nmore")
    assert next(read_documents(path)).text.count("\n") == 1001, "a mark deep in a text is a part of it"


def test_real_gutenberg_files_lose_notice_and_licence():
    documents = list(read_documents(shared("data/text/gutenberg")))
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
    assert next(read_documents(path)).text == path.read_text("utf-8").strip("\n")


def test_rows_by_their_field(tmp_path):
    rows = [{"text": "a"}, {"text": ["b", "c"]}, "d"]
    assert [(d.text, d.row) for d in read_documents(rows)] == [("a", 0), ("b\nc", 1), ("d", 2)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [d.text for d in read_documents(str(path))] == ["a", "b\nc", "d"]


@pytest.mark.parametrize(("name", "count"), [("lunyu", 20), ("tang_poems_0", 1000)])
def test_real_poems_by_their_paragraphs(name, count):
    documents = list(read_documents(shared(f"data/text/zh/{name}.json"), field="paragraphs"))
    assert len(documents) == count
    assert documents[0].text.count("\n") > 2


def test_bad_rows_are_stopped_at_or_counted():
    rows = [{"text": "a"}, {"body": "b"}, {"text": " "}, {"text": 3}, {"text": {"a": 1}}]
    with pytest.raises(DataError, match="no field 'text'; its fields are 'body'"):
        list(read_documents(rows))
    skipped: list[SkippedRow] = []
    assert [d.text for d in read_documents(rows, on_bad_row="skip", on_skip=skipped.append)] == ["a"]
    assert [(s.row, s.field) for s in skipped] == [(1, None), (2, "text"), (3, "text"), (4, "text")]
    assert "empty" in skipped[1].reason


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"ok\n\xff\n", "line 2 is not UTF-8"),
        ("a.txt.gz", b"no gzip", "can't be read"),
        ("a.txt", b" \n\n", "there is no text"),
        ("a.rtf", b"x", "unknown file type"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        list(read_documents(path))
    assert caught.value.source == str(path)


def test_a_nested_book_is_refused_by_name():
    with pytest.raises(DataError, match="must hold a list of rows, found one dict with fields 'title'"):
        list(read_documents(shared("data/text/zh/guwenguanzhi.json"), field="content"))
