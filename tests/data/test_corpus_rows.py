"""Rows of a corpus on disk: every token once, targets that stay in their document, whatever the packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minnow.data import IGNORED, Batch, Corpus, CorpusRows, Loader, Tokenizer, corpus_rows, pack
from minnow.data.corpus import CorpusWriter
from minnow.data.rows import take
from minnow.errors import UserError

free = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BOS, EOS, PAD, FIRST = 1, 7, 0, 20


def written(
    folder: Path | str, words: Tokenizer, documents: list[list[int]], shard_tokens: int, difficulty: list[float] | None
) -> Corpus:
    writer = CorpusWriter(folder, words, {}, shard_tokens, difficulty is not None)
    lengths = np.array([len(each) for each in documents], np.int64)
    ids = np.array([token for each in documents for token in each], np.int32)
    writer.add(ids, lengths, difficulty or [0.0] * len(documents), list(range(len(documents))))
    writer.finish()
    return Corpus(folder, words.digest)


def traced(lengths: list[int]) -> list[list[int]]:
    """Documents whose inner tokens are all different."""
    documents, token = [], FIRST
    for count in lengths:
        documents.append([BOS, *range(token, token + count), EOS])
        token += count
    return documents


def check_rows(batch: Batch, documents: list[list[int]]) -> list[int]:
    """Properties of any packing; returns the documents in the order in which they are met first."""
    after = {token: each[at + 1] for each in documents for at, token in enumerate(each[:-1]) if token != BOS}
    owner = {token: number for number, each in enumerate(documents) for token in each if token not in (BOS, EOS)}
    met: dict[int, None] = {}
    for tokens, targets, numbers in zip(
        *(x.tolist() for x in (batch.tokens, batch.targets, batch.documents)), strict=True
    ):
        filled = sum(number > 0 for number in numbers)
        assert numbers[0] == 1 and not any(numbers[filled:]) and set(tokens[filled:]) <= {PAD}
        assert set(np.diff(numbers[:filled]).tolist()) <= {0, 1}
        for at in range(filled):
            token = tokens[at]
            if token == EOS:
                assert targets[at] == IGNORED
                assert at + 1 >= filled or numbers[at + 1] == numbers[at] + 1
            elif token != BOS:
                assert targets[at] == after[token]
                met[owner[token]] = None
            elif at + 1 < filled:
                assert targets[at] == tokens[at + 1]
        assert set(targets[filled:]) <= {IGNORED}
    return list(met)


@free
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    length=st.integers(2, 24),
    shard_tokens=st.integers(2, 200),
    packing=st.sampled_from(["best-fit", "cut"]),
    data=st.data(),
)
def test_every_token_once_and_no_target_leaves_its_document(
    lengths: list[int],
    length: int,
    shard_tokens: int,
    packing: str,
    data: st.DataObject,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    documents = traced(lengths)
    corpus = written(tmp_path_factory.mktemp("corpus") / "x", tokenizer, documents, shard_tokens, None)
    rows = CorpusRows(corpus, length, packing)  # type: ignore[arg-type]
    batch = take(rows, np.arange(len(rows)))
    check_rows(batch, documents)
    found = batch.tokens[batch.documents > 0]
    assert sorted(found.tolist()) == sorted(token for each in documents for token in each)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8)))
    part = take(rows, chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_rows, "_library", lambda: None)
        plain = take(rows, chosen)
    for name in ("tokens", "targets", "documents"):
        assert (getattr(part, name) == getattr(batch, name)[chosen]).all()
        assert (getattr(part, name) == getattr(plain, name)).all()


@free
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), length=st.integers(2, 24))
def test_best_fit_rows_are_those_of_packing_in_memory(
    lengths: list[int], length: int, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = traced(lengths)
    corpus = written(tmp_path_factory.mktemp("corpus") / "x", tokenizer, documents, 1 << 20, None)
    rows, packed = CorpusRows(corpus, length), pack([(each, None) for each in documents], length, PAD)
    batch, expected = take(rows, np.arange(len(rows))), take(packed, np.arange(len(packed)))
    for name in ("tokens", "targets", "documents"):
        assert (getattr(batch, name) == getattr(expected, name)).all()


def test_rows_go_from_easy_to_hard(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    documents = traced(source.integers(1, 30, 3000).tolist())
    difficulty = source.integers(0, 5, 3000).astype(float).tolist()
    corpus = written(tmp_path / "x", tokenizer, documents, 9000, difficulty)
    rows = CorpusRows(corpus, 64, by_difficulty=True, cache=tmp_path)
    assert len(corpus.shards) > 4
    met = check_rows(take(rows, np.arange(len(rows))), documents)
    assert sorted(met) == list(range(3000))
    grades = np.array([difficulty[number] for number in met])
    assert np.all(np.diff(grades) >= -1) and (np.diff(grades) < 0).mean() < 0.1
    easiest = [number for number in met if difficulty[number] == 0]
    assert abs(np.corrcoef(easiest, range(len(easiest)))[0, 1]) < 0.1
    again = CorpusRows(corpus, 64, by_difficulty=True, cache=tmp_path)
    assert len(list(tmp_path.glob("rows-64-by-difficulty-*"))) == 1
    assert (take(again, np.arange(9)).tokens == take(rows, np.arange(9)).tokens).all()


def test_what_cannot_be_packed_is_a_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = written(tmp_path / "x", tokenizer, traced([3, 4]), 100, None)
    with pytest.raises(UserError, match="at least 2"):
        CorpusRows(corpus, 1)
    with pytest.raises(UserError, match="is not graded; tokenise it with a difficulty field"):
        CorpusRows(corpus, 8, by_difficulty=True)


def test_a_row_that_fills_up_at_the_end_of_a_shard_has_its_last_target(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = traced([4, 6])
    corpus = written(tmp_path / "x", tokenizer, documents, 1, None)
    batch = take(CorpusRows(corpus, 4, "cut"), np.arange(4))
    assert batch.tokens.tolist() == [[1, 20, 21, 22], [23, 7, 0, 0], [1, 24, 25, 26], [27, 28, 29, 7]]
    assert batch.targets[:, -1].tolist() == [23, IGNORED, 27, IGNORED]


@pytest.mark.parametrize("packing", ["best-fit", "cut"])
def test_a_corpus_at_a_url_gives_the_rows_of_a_local_one(packing: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = traced([9, 30, 4, 17, 50, 3])
    batches = []
    for place in (tmp_path / "x", f"memory://rows/{packing}"):
        rows = CorpusRows(written(place, tokenizer, documents, 40, None), 16, packing)  # type: ignore[arg-type]
        batches.append([Loader(rows, 4, 1).batch(step) for step in range(4)])
    for local, remote in zip(*batches, strict=True):
        assert all((getattr(local, name) == getattr(remote, name)).all() for name in ("tokens", "targets", "documents"))
