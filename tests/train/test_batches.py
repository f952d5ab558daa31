"""Ramped batches hold a loader's rows, each once per epoch, whatever their size and cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.errors import UserError
from minnow.train.batches import InputDropout, RampedLoader
from minnow.train.schedule import Ramp


def numbered(rows: int, length: int) -> Packed:
    """A row's tokens are its number times a thousand and the position."""
    tokens = (1000 * np.arange(rows)[:, None] + np.arange(length)).astype(np.int32)
    return Packed(tokens, tokens + 1, np.ones_like(tokens, dtype=np.int16))


def test_batches_grow_and_every_row_comes_once() -> None:
    loader = RampedLoader(Loader(numbered(64, 16), 8, 3), Ramp(steps=6, rows=4, length=2))
    batches = [loader.batch(step) for step in range(11)]
    assert [tuple(batch.tokens.shape) for batch in batches] == [(4, 8)] * 3 + [(8, 8)] * 3 + [(8, 16)] * 5
    rows = torch.cat([batch.tokens.flatten() for batch in batches]) // 1000
    counted = rows.bincount(minlength=64)
    assert int(rows.numel()) == (3 * 2 + 3 * 4 + 5 * 8) * 16 and set(counted.tolist()) <= {0, 16}
    for batch in batches:
        assert torch.equal(batch.targets, batch.tokens + 1)
    assert torch.equal(loader.batch(4).tokens, batches[4].tokens)
    for step in (0, 4, 8):
        slices = [loader.batch(step, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat([part.tokens for part in slices]), batches[step].tokens)
    rows = batches[1].rows
    assert rows is not None and torch.equal(rows, batches[1].tokens[:, 0] // 1000)
    assert loader.epochs(11) == pytest.approx(58 / 64)


def test_a_ramp_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="6 rows of 16 tokens"):
        RampedLoader(Loader(numbered(64, 16), 6, 0), Ramp(steps=4, rows=4))


def test_dropped_inputs_are_the_steps_own_and_the_same_for_any_ranks() -> None:
    dropout = InputDropout(0.25, 3, pad_id=-1)
    loader = RampedLoader(Loader(numbered(64, 16), 8, 3), Ramp(), dropout)
    plain = RampedLoader(Loader(numbered(64, 16), 8, 3), Ramp())
    dropped = []
    for step in range(40):
        batch, whole = loader.batch(step), plain.batch(step)
        slices = [loader.batch(step, rank, 4) for rank in range(4)]
        assert torch.equal(torch.cat([part.tokens for part in slices]), batch.tokens)
        hidden = batch.tokens == -1
        assert torch.equal(batch.tokens[~hidden], whole.tokens[~hidden]) and torch.equal(batch.targets, whole.targets)
        dropped.append(hidden[batch.rows.argsort()] if batch.rows is not None else hidden)
    shares = torch.stack(dropped).double()
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.02)
    assert float(shares.mean((0, 1)).std()) < 0.03
    assert not torch.equal(dropped[0], dropped[8])  # the same rows, an epoch later
    assert torch.equal(InputDropout(0.0, 3, -1)(plain.batch(2), 2).tokens, plain.batch(2).tokens)
