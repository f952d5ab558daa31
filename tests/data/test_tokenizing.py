"""Tokenising into a corpus: the same bytes from any number of processes and after any number of kills."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minnow.data import Corpus, Tokenizer, tokenize_corpus, tokenize_documents
from minnow.data.corpus import CorpusWriter
from minnow.data.tokenizing import HELD_OUT_EVERY, Document, FillInTheMiddle, Place, read_files, read_texts
from minnow.errors import UserError

free = settings(
    deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def write_jsonl(path: Path, texts: list[str], **more: list[Any]) -> str:
    rows = [{"text": text, **{name: values[i] for name, values in more.items()}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def made(folder: Path | str, texts: list[str], words: Tokenizer, **options: Any) -> Corpus:
    return tokenize_corpus(read_texts(texts), words, folder, {}, **options)


def test_a_corpus_holds_the_documents_in_order(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = made(tmp_path / "x", texts, tokenizer, shard_tokens=900)
    assert corpus.documents == len(texts) and len(corpus.shards) > 5 and corpus.dtype == np.uint16
    expected = tokenize_documents(texts, tokenizer)
    assert corpus.tokens == sum(map(len, expected))
    for number in (0, 1, 37, len(texts) - 1):
        assert np.array_equal(corpus.document(number), expected[number])
    assert all(shard.tokens >= 900 for shard in corpus.shards[:-1])
    assert all(shard.tokens - np.diff(corpus.offsets(i))[-1] < 900 for i, shard in enumerate(corpus.shards))
    corpus.verify()


@pytest.fixture(scope="module", autouse=True)
def no_sync() -> Iterator[None]:
    """Thousands of small files need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minnow.files._sync", lambda path: None)
        yield


@free
@given(cut=st.integers(0, 10**6), shard_tokens=st.integers(300, 4000), batch=st.integers(0, 10**6))
def test_going_on_after_a_kill_gives_the_bytes_of_a_single_pass(
    cut: int,
    shard_tokens: int,
    batch: int,
    texts: list[str],
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Killed while any document is read, with what lies on disk then: whole shards, and perhaps one that no manifest names."""
    folder = tmp_path_factory.mktemp("kill")
    made(folder / "whole", texts, tokenizer, shard_tokens=shard_tokens)
    dies_at = cut % len(texts)

    def read(place: Place) -> Iterator[Document]:
        for document in read_texts(texts)(place):
            if document.after.number > dies_at:
                raise KeyboardInterrupt
            yield document

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minnow.data.tokenizing._TEXTS_AT_ONCE", 1 + batch % 30)
        with pytest.raises(KeyboardInterrupt):
            tokenize_corpus(read, tokenizer, folder / "cut", {}, shard_tokens=shard_tokens)
    if (folder / "cut").exists():
        with pytest.raises(UserError, match="is not finished: .* run the same command again"):
            Corpus(folder / "cut")
    for orphan in ("00000.tokens", "00003.tokens"):
        if not (folder / "cut" / orphan).exists() and (folder / "cut").exists():
            (folder / "cut" / orphan).write_bytes(b"half")
    made(folder / "cut", texts, tokenizer, shard_tokens=shard_tokens)
    whole = content(folder / "whole")
    assert {name: each for name, each in content(folder / "cut").items() if name in whole} == whole


SCRIPT = """
import sys
from minnow.data import Tokenizer, tokenize_corpus
from minnow.data.tokenizing import read_files
if __name__ == "__main__":
    files, words, folder, processes = sys.argv[1].split(","), Tokenizer.load(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    tokenize_corpus(read_files(files), words, folder, {}, processes=processes, shard_tokens=60_000)
"""


def test_two_processes_and_a_kill_give_the_same_bytes(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", [f"{n} {text}" for text in texts * 12]) for n in range(3)]
    tokenizer.save(tmp_path / "words")
    tokenize_corpus(read_files(files), tokenizer, tmp_path / "whole", {}, shard_tokens=60_000)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(tmp_path / "script.py"),
        ",".join(files),
        str(tmp_path / "words"),
        str(tmp_path / "cut"),
    ]
    child = subprocess.Popen([*command, "2"], stderr=subprocess.DEVNULL)
    manifest = tmp_path / "cut/manifest.json"
    for _ in range(6000):
        if manifest.exists() or child.poll() is not None:
            break
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert len(json.loads(manifest.read_text())["shards"]) >= 1
    tokenize_corpus(read_files(files), tokenizer, tmp_path / "cut", {}, shard_tokens=60_000)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_workers_keep_special_tokens_plain(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a<|im_end|>") == tokenizer.encode("a<|im_end|>") and 7 not in again.encode("a<|im_end|>")
    assert again.digest == tokenizer.digest and again.encode_chat("<|im_end|>") == [7]


def test_corpora_live_at_urls_too(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """memory:// stands for an object store, file:// for a mounted one: read by ranges, without a local copy."""
    local = made(tmp_path / "x", texts, tokenizer, shard_tokens=900)
    for url in ("memory://corpora/x", f"file://{tmp_path}/y"):
        remote = made(url, texts, tokenizer, shard_tokens=900)
        assert remote.digest == local.digest and remote.location == url
        starts = np.array([0, local.starts[1] - 5, local.starts[2]])
        for one, other in zip(remote.read(starts, np.full(3, 5)), local.read(starts, np.full(3, 5)), strict=True):
            assert np.array_equal(one, other)
        remote.verify()
        assert np.array_equal(remote.document(150), local.document(150))
    assert content(tmp_path / "y") == content(tmp_path / "x")


def test_sources_are_read_from_urls(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts[:50])
    write_jsonl(tmp_path / "b.jsonl", texts[50:])
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        memory.pipe_file(f"/texts/{name}.jsonl", (tmp_path / f"{name}.jsonl").read_bytes())
    from minnow.data.store import expand

    for pattern in (f"{tmp_path}/*.jsonl", f"file://{tmp_path}/*.jsonl", "memory://texts/*.jsonl"):
        files = expand(pattern)
        assert len(files) == 2
        assert [document.text for document in read_files(files)(Place())] == texts
    place = [document.after for document in read_files(files)(Place())][69]
    assert place == Place(1, 20, 70)
    assert [document.text for document in read_files(files)(place)] == texts[70:]
    with pytest.raises(UserError, match="memory://texts/c.jsonl does not exist"):
        list(read_files(["memory://texts/c.jsonl"])(Place()))
    with pytest.raises(UserError, match="no file matches memory://texts/"):
        expand("memory://texts/*.parquet")
    with pytest.raises(UserError, match="nowhere://x/a.jsonl cannot be read"):
        list(read_files(["nowhere://x/a.jsonl"])(Place()))
    with pytest.raises(UserError, match="s3:// needs a package that is not installed .*; install it with pip"):
        list(read_files(["s3://x/a.jsonl"])(Place()))


def test_every_twentieth_document_is_held_out(texts: list[str], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    training, held_out = ([each.text for each in read_files([file], held_out=held)(Place())] for held in (False, True))
    assert held_out == texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    assert sorted(training + held_out) == sorted(texts)
    few = write_jsonl(tmp_path / "b.jsonl", ["x" * 100, "y" * 50])
    training, held_out = ([each.text for each in read_files([few], held_out=held)(Place())] for held in (False, True))
    assert (training, held_out) == (["x" * 100, "y" * 43], ["y" * 7])


@free
@given(text=st.text(max_size=60), number=st.integers(1, 10**6))
def test_documents_to_fill_in_keep_their_text(text: str, number: int, tokenizer: Tokenizer) -> None:
    before, between, after = tokenizer.fill_in_ids
    assert [tokenizer.decode([each], keep_special=True) for each in (before, between, after)] == [
        "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
    ]  # fmt: skip
    parts = FillInTheMiddle(1.0).arranged(text, number, tokenizer)
    assert parts == FillInTheMiddle(1.0).arranged(text, number, tokenizer)
    if parts[1] == after:  # suffix first
        assert parts[0] == before and parts[3] == between and len(parts) == 6
        assert f"{parts[4]}{parts[5]}{parts[2]}" == text
    else:
        assert [parts[0], parts[2], parts[4]] == [before, after, between] and len(parts) == 6
        assert f"{parts[1]}{parts[5]}{parts[3]}" == text


def test_the_share_to_fill_in_is_kept(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    some = FillInTheMiddle(0.3)
    arranged = [some.arranged("abcdefgh" * 9, number, tokenizer) for number in range(1, 4001)]
    filled = [parts for parts in arranged if len(parts) > 1]
    assert len(filled) / 4000 == pytest.approx(0.3, abs=0.03)
    assert np.mean([parts[1] == tokenizer.fill_in_ids[2] for parts in filled]) == pytest.approx(0.5, abs=0.05)
    corpus = made(tmp_path / "x", texts, tokenizer, fim=some)
    rearranged = [tokenizer.fill_in_ids[0] in corpus.document(number) for number in range(len(texts))]
    assert rearranged == [len(some.arranged(text, n, tokenizer)) > 1 for n, text in enumerate(texts, 1)]
    with pytest.raises(UserError, match=r"is 1\.5; use 0 to 1"):
        FillInTheMiddle(1.5)


def test_difficulties_are_kept_and_checked(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    grades = [float(n % 7) for n in range(len(texts))]
    file = write_jsonl(tmp_path / "a.jsonl", texts, grade=grades)
    read = read_files([file], difficulty_field="grade")
    corpus = tokenize_corpus(read, tokenizer, tmp_path / "x", {}, graded=True, shard_tokens=900)
    kept = np.concatenate([corpus.difficulty(shard) for shard in range(len(corpus.shards))])
    assert corpus.graded and kept.tolist() == grades
    with pytest.raises(UserError, match="line 1 of .*a.jsonl has no field 'grad', only .*; did you mean 'grade'"):
        list(read_files([file], difficulty_field="grad")(Place()))
    bad = write_jsonl(tmp_path / "b.jsonl", ["x"], grade=["hard"])
    with pytest.raises(UserError, match="the field 'grade' of .*b.jsonl holds 'hard', not a number"):
        list(read_files([bad], difficulty_field="grade")(Place()))
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(UserError, match="c.txt is plain text and has no field 'grade'"):
        list(read_files([str(tmp_path / "c.txt")], difficulty_field="grade")(Place()))


@pytest.fixture
def corpus(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> Corpus:
    return made(tmp_path / "x", texts, tokenizer, shard_tokens=900)


@pytest.mark.parametrize("suffix", ["tokens", "documents"])
def test_a_damaged_shard_is_named(corpus: Corpus, suffix: str) -> None:
    file = Path(corpus.location) / f"00001.{suffix}"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=rf"00001\.{suffix} has {len(whole) - 2} bytes, not {len(whole)}; restore it"):
        Corpus(corpus.location)
    file.unlink()
    with pytest.raises(UserError, match=rf"00001\.{suffix} is missing; restore it"):
        Corpus(corpus.location)
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(UserError, match=rf"00001\.{suffix} is damaged \(its checksum differs\)"):
        Corpus(corpus.location).verify()


def test_what_is_no_corpus_or_another_is_refused(
    corpus: Corpus, texts: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no manifest.json of a tokenised corpus; make one with minnow data"):
        Corpus(tmp_path)
    with pytest.raises(UserError, match="written with another tokenizer .*tokenise the text again"):
        Corpus(corpus.location, "x" * 64)
    with pytest.raises(UserError, match="holds a corpus of other documents, settings .*delete it or choose another"):
        made(corpus.location, texts, tokenizer, shard_tokens=899)
    manifest = Path(corpus.location) / "manifest.json"
    manifest.write_text(manifest.read_text()[:-40])
    with pytest.raises(UserError, match="manifest.json is damaged .*; tokenise the corpus again"):
        Corpus(corpus.location)
    manifest.write_text('{"format": 99}')
    with pytest.raises(UserError, match="is of format 99; this version reads 1"):
        Corpus(corpus.location)


def test_a_full_disk_leaves_what_is_finished(
    texts: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "whole", texts, tokenizer, shard_tokens=900)
    write, left = Path.write_bytes, [7]

    def full(path: Path, data: Any) -> int:
        left[0] -= 1
        if left[0] == 0:
            write(path, bytes(data)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"could not write .*00002\.tokens: No space left on device; free some space"):
        made(tmp_path / "x", texts, tokenizer, shard_tokens=900)
    assert len(json.loads((tmp_path / "x/manifest.json").read_text())["shards"]) == 2
    made(tmp_path / "x", texts, tokenizer, shard_tokens=900)
    assert content(tmp_path / "x") == content(tmp_path / "whole")


def test_a_kill_at_the_last_write_adds_nothing_twice(
    texts: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writes, last = Path.write_bytes, list[Path](), 0

    def dying(path: Path, data: Any) -> int:
        writes.append(path)
        if len(writes) == 2 * last:
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", dying)
    made(tmp_path / "whole", texts, tokenizer)
    last = len(writes)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "x", texts, tokenizer)
    made(tmp_path / "x", texts, tokenizer)
    assert content(tmp_path / "x") == content(tmp_path / "whole")


def test_a_killed_worker_is_a_sentence(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Deadly(Tokenizer):
        def __reduce__(self) -> Any:
            return os._exit, (1,)

    deadly = Deadly.__new__(Deadly)
    vars(deadly).update(vars(tokenizer))
    with pytest.raises(UserError, match="a tokenising process was killed, perhaps for want of memory; run the same"):
        made(tmp_path / "x", texts, deadly, processes=1)


def test_a_writer_splits_wherever_a_shard_is_full(tokenizer: Tokenizer, tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path / "x", tokenizer, {}, 10, False)
    lengths = np.array([3, 3, 3, 3, 25, 4, 4])
    writer.add(np.arange(lengths.sum(), dtype=np.int32), lengths, [0.0] * 7, list(range(1, 8)))
    assert writer.place == 5
    writer.finish()
    corpus = Corpus(tmp_path / "x")
    assert [shard.tokens for shard in corpus.shards] == [12, 25, 8]
    assert [corpus.document(n)[0] for n in range(7)] == [0, 3, 6, 9, 12, 37, 41]
