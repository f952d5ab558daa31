"""Rows one after another and their padded form say the same."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from minnow.model.rows import Rows


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_rows_there_and_back(lengths: list[int]) -> None:
    rows, width = Rows(torch.tensor(lengths)), max(lengths)
    parts = [torch.arange(100.0 * row, 100.0 * row + length) + 1 for row, length in enumerate(lengths)]
    x = torch.cat(parts)[:, None]
    padded = rows.padded(x)
    assert padded.shape == (len(lengths), width, 1)
    assert torch.equal(rows.flat(padded), x)
    assert torch.equal(x[rows.ends], torch.stack([part[-1:] for part in parts]))
    assert rows.positions.tolist() == [place for length in lengths for place in range(length)]
    assert rows.documents[0].tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]
    for row, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        assert torch.equal(padded[row, :length, 0], part)
        assert rows.padding[row].tolist() == [False] * length + [True] * (width - length)
        assert rows.last(x, 3)[row, :, 0].tolist() == [0.0] * max(0, 3 - length) + part[-3:].tolist()
