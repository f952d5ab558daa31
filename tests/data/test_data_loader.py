from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data import Batch, Loader, Packed, Source, pack
from minnow.data.rows import take
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=60)


def numbered(rows: int, length: int = 4) -> Packed:
    """Row i holds the tokens i * length + 1, …, so that a row can be told by its first token."""
    return pack([(range(row * length + 1, (row + 1) * length + 1), None) for row in range(rows)], length, 0)


def seen(batch: Batch) -> list[int]:
    return ((batch.tokens[:, 0] - 1) // 4).tolist()


@free
@given(available=st.integers(1, 40), rows=st.integers(1, 12), seed=st.integers(0, 2**32), order=st.randoms())
def test_order_is_a_pure_function_of_seed_and_step(available: int, rows: int, seed: int, order: random.Random) -> None:
    if available < rows:
        available, rows = rows, available
    loader = Loader(numbered(available), rows, seed)
    steps = list(range(3 * available // rows + 1))
    forwards = [seen(loader.batch(step)) for step in steps]
    other = Loader(numbered(available), rows, seed)
    order.shuffle(steps)
    assert all(seen(other.batch(step)) == forwards[step] for step in steps)
    drawn = [row for step in forwards for row in step]
    for epoch in range(3):
        assert sorted(drawn[epoch * available : (epoch + 1) * available]) == list(range(available))


@free
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    rows=st.integers(1, 24),
    world=st.integers(1, 8),
    step=st.integers(0, 10**6),
)
def test_the_same_rows_for_any_number_of_ranks(sizes: list[int], rows: int, world: int, step: int) -> None:
    rows = max(world, min(rows, sum(sizes)))
    sizes[0] += rows
    parts = [Source(f"part{n}", numbered(size), size / sum(sizes)) for n, size in enumerate(sizes)]
    loader = Loader(parts, rows, 3)
    whole = loader.batch(step)
    slices = [loader.batch(step, rank, world) for rank in range(world)]
    for name in ("tokens", "targets", "documents", "rows"):
        assert torch.equal(torch.cat([getattr(part, name) for part in slices]), getattr(whole, name))
    assert max(len(part.tokens) for part in slices) - min(len(part.tokens) for part in slices) <= 1


def test_seeds_and_epochs_differ_and_the_order_does_not_change_between_releases() -> None:
    packed = numbered(64)
    first = [seen(Loader(packed, 8, 1).batch(step)) for step in range(16)]
    assert first[:8] != first[8:]
    assert first[:8] != [seen(Loader(packed, 8, 2).batch(step)) for step in range(8)]
    assert seen(Loader(numbered(8), 4, 3).batch(0)) == [0, 3, 1, 7]


def test_a_mixture_numbers_its_rows_through_all_sources_and_reads_some_of_them_in_order() -> None:
    sources = [Source("shuffled", numbered(6), 0.25), Source("from easy to hard", numbered(5), 0.75, in_order=True)]
    loader = Loader(sources, 4, 0)
    batches = [loader.batch(step) for step in range(6)]
    numbers = torch.cat([batch.rows for batch in batches if batch.rows is not None])
    ordered = numbers[numbers >= 6]
    assert ordered.tolist() == [6 + n % 5 for n in range(18)]
    assert sorted(numbers[numbers < 6].tolist()) == list(range(6))
    assert torch.equal(
        torch.cat([batch.sources for batch in batches if batch.sources is not None]), (numbers >= 6).long()
    )
    assert [(row - 6 if row >= 6 else row) for row in numbers.tolist()] == [
        row for batch in batches for row in seen(batch)
    ]
    assert torch.equal(take(loader, numbers.numpy()).tokens, torch.cat([batch.tokens for batch in batches]))
    assert loader.passes(24) == {"shuffled": 1.0, "from easy to hard": 3.6}


def test_sources_run_dry_when_their_epochs_are_read() -> None:
    sources = [Source("small", numbered(4), 0.5, epochs=2), Source("large", numbered(40), 0.5, epochs=1)]
    loader = Loader(sources, 4, 0)
    assert loader.dry(48) == {"small": 16} and loader.dry(10) == {}
    numbers = torch.cat([take(loader, loader.batch(step).rows.numpy()).rows for step in range(12)])
    assert sorted(numbers.tolist()) == sorted([*range(4), *range(44)])
    for ask in (lambda: loader.dry(49), lambda: loader.batch(12)):
        with pytest.raises(
            UserError, match=r"small, large\) run dry after 48 rows .* 12 steps of 4; raise their epochs"
        ):
            ask()


def test_batches_are_the_packed_rows() -> None:
    packed = numbered(6)
    batch = Loader(packed, 3, 0).batch(1)
    assert batch.rows is not None
    for name in ("tokens", "targets", "documents"):
        found = getattr(batch, name)
        assert found.dtype == torch.int64 and found.shape == (3, 4)
        np.testing.assert_array_equal(found.numpy(), getattr(packed, name)[batch.rows.numpy()])


def test_epochs_count_passes_over_the_corpus() -> None:
    loader = Loader(numbered(10), 4, 0)
    assert [loader.epochs(step) for step in (0, 1, 2, 5)] == [0, 0.4, 0.8, 2]


def test_what_cannot_be_read_is_named_with_numbers() -> None:
    with pytest.raises(UserError, match="fills 3 rows of 4 tokens, and a batch takes 8; .*at most 3 rows"):
        Loader(numbered(3), 8, 0)
    with pytest.raises(UserError, match="source corpus holds no text"):
        Loader(pack([], 4, 0), 1, 0)
    with pytest.raises(UserError, match="at least 1 row"):
        Loader(numbered(3), 0, 0)
    with pytest.raises(UserError, match=r"0\.2 epochs of 3 rows are no row"):
        Source("tiny", numbered(3), epochs=0.2)
    with pytest.raises(UserError, match="2 rows cannot be shared by 3 ranks"):
        Loader(numbered(3), 2, 0).batch(0, 0, 3)
