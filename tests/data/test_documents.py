from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data import documents
from minnow.data.documents import read_documents
from minnow.errors import UserError

TEXTS = ["First page.\nTwo lines.", "Zweite Seite: äöü 日本 \u2028 end", "third \U0001f41f"]


def written(folder: Path, name: str, texts: list[str] = TEXTS, field: str = "text") -> Path:
    """A file of the kind that ``name`` says, holding ``texts``."""
    path = folder / name
    kind, compression = (Path(path.stem).suffix, path.suffix) if path.suffix in (".gz", ".xz") else (path.suffix, "")
    rows = [{"id": number, field: text} for number, text in enumerate(texts)]
    if kind == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=2)
        content = sink.getvalue().to_pybytes()
    elif kind == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif kind == ".json":
        content = json.dumps(rows).encode()
    else:
        content = "\n\n".join(texts).encode()
    compress: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, "": bytes}
    path.write_bytes(compress[compression](content))
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_records_of_every_kind_come_back(tmp_path: Path, kind: str, compression: str) -> None:
    assert list(read_documents(written(tmp_path, f"c{kind}{compression}"))) == TEXTS
    other = written(tmp_path, f"d{kind}{compression}", field="body")
    assert list(read_documents(other, text_field="body")) == TEXTS


@pytest.mark.parametrize("name", ["c.txt", "c.md", "C.TXT", "v1.2.txt.gz", "c.txt.xz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    assert list(read_documents(written(tmp_path, name))) == ["\n\n".join(TEXTS)]


def test_byte_order_mark_and_windows_line_ends_go(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    assert list(read_documents(tmp_path / "c.txt")) == ["one\ntwo\nthree"]
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert list(read_documents(tmp_path / "c.jsonl")) == ["one", "two"]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    chunks=st.lists(st.text(alphabet="ab \n", max_size=60), max_size=8),
    limit=st.integers(4, 40),
)
def test_a_long_text_is_cut_into_documents_that_join_to_it(chunks: list[str], limit: int) -> None:
    found = list(documents._blocks(chunks, limit))
    assert "".join(found) == "".join(chunks)
    assert all(len(block) <= limit for block in found)
    assert all(len(block) >= limit // 2 for block in found[:-1])


def test_a_long_text_is_cut_at_blank_lines_and_split_characters_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_CHUNK_BYTES", 7)
    monkeypatch.setattr(documents, "DOCUMENT_CHARACTERS", 40)
    paragraphs = [f"日本語 paragraph {number}.\r\nsecond line\r\n\r\n" for number in range(20)]
    (tmp_path / "c.txt").write_bytes("".join(paragraphs).encode())
    found = list(read_documents(tmp_path / "c.txt"))
    assert found == [paragraph.replace("\r\n", "\n") for paragraph in paragraphs]


def test_streams_before_it_has_read_everything(tmp_path: Path) -> None:
    path = written(tmp_path, "c.jsonl")
    path.write_bytes(path.read_bytes() + b"broken")
    stream = read_documents(path)
    assert [next(stream) for _ in TEXTS] == TEXTS
    with pytest.raises(UserError, match="line 4 of .* is not JSON"):
        next(stream)


def fails(path: Path, sentence: str, **options: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        list(read_documents(path, **options))
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_folder_are_reported_at_the_call(tmp_path: Path) -> None:
    written(tmp_path, "books.jsonl")
    for path, sentence in [
        (tmp_path / "boks.jsonl", r"does not exist; did you mean .*/books\.jsonl\?"),
        (tmp_path / "zzz.txt", "does not exist; check the path"),
        (tmp_path / "no" / "books.jsonl", "nor does the folder .*/no"),
        (tmp_path, "is a folder; name one file"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_documents(path)
    for name in ("c.csv", "c", "c.gz", "c.pdf.xz"):
        (tmp_path / name).write_text("text")
        with pytest.raises(UserError, match=r"unknown kind; use \.txt, \.md, \.jsonl, \.json, \.parquet"):
            read_documents(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b" \n\n\t", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.json", "c.txt.gz"])
def test_an_empty_corpus(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    fails(tmp_path / name, "holds no text; give a corpus that is not empty")


def test_records_without_text_are_an_empty_corpus(tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "parquet"):
        fails(written(tmp_path, f"c.{kind}", texts=["", " \n"]), "holds no text")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("chunk", [3, 8, 1 << 20])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9t", b"\xe6\x97", b"\xed\xa0\x80"])
def test_not_utf8_names_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, chunk: int, mark: bytes
) -> None:
    monkeypatch.setattr(documents, "_CHUNK_BYTES", chunk)
    good = mark + "caf\u00e9 日本 and so on ".encode()
    (tmp_path / "c.txt").write_bytes(good + bad)
    fails(tmp_path / "c.txt", f"is not UTF-8 text at byte {len(good)}; convert it, for example with `iconv")
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(good + bad))
    fails(tmp_path / "c.txt.xz", f"at byte {len(good)} of its decompressed content")
    lines = mark + b'{"text": "one"}\n'
    (tmp_path / "c.jsonl").write_bytes(lines + b'{"text": "' + bad + b'"}\n')
    fails(tmp_path / "c.jsonl", f"at byte {len(lines) + 10};")
    (tmp_path / "d.jsonl").write_bytes(mark + b'{"text": "' + bad + b'"}\n')
    fails(tmp_path / "d.jsonl", f"at byte {len(mark) + 10};")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('["one"]', r'line 2 of .* is not an object but \["one"\]; write \{…'),
        ('"one"', "line 2 of .* is not an object"),
        ('{"id": 1, "Text": "x"}', "line 2 of .* has no field 'text', only 'id', 'Text'; did you mean 'Text'"),
        ('{"id": 1}', "has no field 'text', only 'id'; name one of them"),
        ("{}", "has no field 'text', only none at all"),
        ('{"text": 5}', "field 'text' of line 2 of .* is not text but int"),
        ('{"text": "a\\ud800"}', "line 2 of .* surrogate pair at character 1"),
        ('{"text": "x"', "line 2 of .* is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    fails(tmp_path / "c.jsonl", sentence)


def test_bad_json_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"text": "x"}')
    fails(tmp_path / "c.json", "holds one dict, not a list")
    (tmp_path / "c.json").write_text('{"text": "x"}\n{"text": "y"}')
    fails(tmp_path / "c.json", r"is not JSON .*name it \.jsonl")
    (tmp_path / "c.json").write_text('[{"text": "x"}, 3]')
    fails(tmp_path / "c.json", "entry 2 of .* is not an object but 3")
    fails(
        written(tmp_path, "c.parquet"), "no field 'texts', only 'id', 'text'; did you mean 'text'", text_field="texts"
    )
    fails(written(tmp_path, "c.parquet"), "field 'id' of row 1 of .* is not text but int", text_field="id")
    content = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(content[: len(content) // 2])
    fails(tmp_path / "c.parquet", "not a readable Parquet file")


@pytest.mark.parametrize("name", ["c.txt.gz", "c.txt.xz", "c.jsonl.gz", "c.jsonl.xz", "c.parquet.xz"])
def test_damaged_compression(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, texts=[str(number) * 50 for number in range(200)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails(path, "is damaged or not compressed as its name says")
    path.write_bytes(b"plain text all the while")
    fails(path, "is damaged or not compressed as its name says")
