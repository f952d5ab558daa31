from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data import IGNORED, Tokenizer, pack, tokenize_documents
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=100)
PAD = 0


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[tuple[list[int], list[bool] | None]], int]:
    """Documents whose tokens are all different, so that every token can be traced."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=30))
    next_id, sequences = 1, []
    for count in lengths:
        masks = st.one_of(st.none(), st.lists(st.booleans(), min_size=count, max_size=count))
        sequences.append((list(range(next_id, next_id + count)), draw(masks)))
        next_id += count
    return sequences, draw(st.integers(2, 16))


@free
@given(corpus=corpora())
def test_every_token_once_and_no_target_leaves_its_document(
    corpus: tuple[list[tuple[list[int], list[bool] | None]], int],
) -> None:
    sequences, length = corpus
    packed = pack(sequences, length, PAD)
    assert packed.tokens.shape == packed.targets.shape == packed.documents.shape
    assert packed.tokens.shape[1] == length
    assert (packed.tokens.dtype, packed.targets.dtype, packed.documents.dtype) == (np.int32, np.int32, np.int16)

    used = packed.documents > 0
    assert sorted(packed.tokens[used]) == [each for ids, _ in sequences for each in ids]
    assert np.all(packed.tokens[~used] == PAD) and np.all(packed.targets[~used] == IGNORED)

    expected = {each: IGNORED for ids, _ in sequences for each in ids}
    for ids, mask in sequences:
        for index in range(len(ids) - 1):
            if mask is None or mask[index + 1]:
                expected[ids[index]] = ids[index + 1]
    assert dict(zip(packed.tokens[used].tolist(), packed.targets[used].tolist(), strict=True)) == expected

    owner = {each: number for number, (ids, _) in enumerate(sequences) for each in ids}
    for tokens, documents in zip(packed.tokens, packed.documents, strict=True):
        filled = int((documents > 0).sum())
        assert filled and np.all(documents[filled:] == 0)
        assert set(np.diff(documents[:filled]).tolist()) <= {0, 1} and documents[0] == 1
        for number in range(1, int(documents.max()) + 1):
            run = tokens[documents == number].tolist()
            assert run == list(range(run[0], run[0] + len(run)))
            assert len({owner[each] for each in run}) == 1


def best_fit_reference(lengths: list[int], length: int) -> int:
    """Rows that best fit decreasing needs, by looking at every open row for every piece."""
    rooms: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - size)
        else:
            rooms.append(length - size)
    return len(rooms)


@free
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_rows_are_as_few_as_best_fit_decreasing_makes_them(lengths: list[int]) -> None:
    packed = pack([(range(1, count + 1), None) for count in lengths], 12, PAD)
    assert len(packed.tokens) == best_fit_reference(lengths, 12)


def test_a_small_corpus_by_hand() -> None:
    packed = pack([([5, 6, 7], [False, False, True]), ([8, 9], None), ([1, 2, 3, 4, 5, 6, 7], None)], 6, PAD)
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 7]]
    assert packed.documents.tolist() == [[1] * 6, [1, 1, 1, 2, 2, 3]]
    # The long document is cut after 6; its next token is still known there.
    assert packed.targets.tolist() == [[2, 3, 4, 5, 6, 7], [-100, 7, -100, 9, -100, -100]]


def test_three_million_tokens_take_under_three_seconds() -> None:
    source = np.random.default_rng(0)
    sequences = [(source.integers(0, 9, count).tolist(), None) for count in source.integers(1, 120, 50_000)]
    start = time.process_time()
    packed = pack(sequences, 256, PAD)
    assert time.process_time() - start < 3
    assert (packed.documents > 0).mean() > 0.99


def test_a_row_never_numbers_more_documents_than_int16_holds() -> None:
    packed = pack([([1], None)] * 40_000, 1 << 16, PAD)
    assert packed.documents.max() == 32_767 and packed.documents.min() == 0
    assert np.count_nonzero(packed.documents) == 40_000


def test_bad_input() -> None:
    with pytest.raises(UserError, match="at least 2"):
        pack([], 1, PAD)
    with pytest.raises(ValueError, match="mask of 1 for 2"):
        pack([([1, 2], [True])], 8, PAD)
    assert pack([([], None)], 8, PAD).tokens.shape == (0, 8)


def test_tokenized_documents_open_and_close_and_keep_their_text(tokenizer: Tokenizer) -> None:
    texts = ["abc <|im_end|> 12", "", "é" * 10] + [f"page {number}" for number in range(2000)]
    found = tokenize_documents(iter(texts), tokenizer)
    assert [tokenizer.decode(ids[1:-1]) for ids in found] == texts
    assert all(ids[0] == 1 and ids[-1] == 7 and ids.dtype == np.int32 for ids in found)
    assert Counter(np.concatenate(found).tolist())[7] == len(texts)
