from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data import Loader, Packed, pack
from minnow.errors import UserError


def numbered(rows: int, length: int = 4) -> Packed:
    """Row i holds the tokens i * length + 1, …, so that a row can be told by its first token."""
    return pack([(range(row * length + 1, (row + 1) * length + 1), None) for row in range(rows)], length, 0)


def seen(loader: Loader, step: int) -> list[int]:
    return ((loader.batch(step).tokens[:, 0] - 1) // 4).tolist()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(available=st.integers(1, 40), rows=st.integers(1, 12), seed=st.integers(0, 2**32), order=st.randoms())
def test_order_is_a_pure_function_of_seed_and_step(available: int, rows: int, seed: int, order: random.Random) -> None:
    if available < rows:
        available, rows = rows, available
    packed = numbered(available)
    loader = Loader(packed, rows, seed)
    per_epoch = available // rows
    assert loader.steps_per_epoch == per_epoch
    steps = list(range(3 * per_epoch))
    forwards = [seen(loader, step) for step in steps]
    other = Loader(packed, rows, seed)
    order.shuffle(steps)
    assert all(seen(other, step) == forwards[step] for step in steps)
    for epoch in range(3):
        drawn = [row for step in forwards[epoch * per_epoch : (epoch + 1) * per_epoch] for row in step]
        assert len(drawn) == len(set(drawn)) == per_epoch * rows
        if available % rows == 0:
            assert sorted(drawn) == list(range(available))


def test_seeds_and_epochs_differ_and_the_order_does_not_change_between_releases() -> None:
    packed = numbered(64)
    first = [seen(Loader(packed, 8, 1), step) for step in range(16)]
    assert first[:8] != first[8:]
    assert first[:8] != [seen(Loader(packed, 8, 2), step) for step in range(8)]
    assert seen(Loader(numbered(8), 4, 3), 0) == [1, 2, 6, 7]


def test_batches_are_the_packed_rows(tmp_path: Path) -> None:
    packed = numbered(6)
    packed.save(tmp_path / "rows", "x")
    for source in (packed, Packed.load(tmp_path / "rows", "x")):
        batch = Loader(source, 3, 0).batch(1)
        rows = ((batch.tokens[:, 0] - 1) // 4).numpy()
        for name in ("tokens", "targets", "documents"):
            found = getattr(batch, name)
            assert found.dtype == torch.int64 and found.shape == (3, 4)
            np.testing.assert_array_equal(found.numpy(), getattr(packed, name)[rows])


def test_epochs_count_passes_over_the_corpus() -> None:
    loader = Loader(numbered(10), 4, 0)
    assert [loader.epochs(step) for step in (0, 1, 2, 5)] == [0, 0.5, 1, 2.5]


def test_a_corpus_shorter_than_one_batch_is_named_with_numbers() -> None:
    with pytest.raises(UserError, match="its 12 tokens fill 3 rows of 4, and a batch takes 8; .*at most 3 rows"):
        Loader(numbered(3), 8, 0)
    with pytest.raises(UserError, match="its 0 tokens fill 0 rows .*give more text$"):
        Loader(pack([], 4, 0), 1, 0)
    with pytest.raises(UserError, match="at least 1 row"):
        Loader(numbered(3), 0, 0)
