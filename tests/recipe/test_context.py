from __future__ import annotations

from pathlib import Path

import numpy as np

from minnow.recipe.context import Metrics


def test_rewind_drops_later_steps_and_keeps_the_rest(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        metrics.record(step=step)
    metrics.rewind(3)
    metrics.record(step=4, again=True)
    assert list(metrics.read()) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_a_line_torn_by_a_kill_is_dropped_before_anything_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    metrics = Metrics(path)
    metrics.record(step=2)
    assert list(metrics.read()) == [{"step": 1}, {"step": 2}]


def test_array_scalars_become_numbers_and_what_is_not_finite_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.record(step=np.int64(3), loss=np.float32(0.5), bad=float("nan"), parts=[np.float64("inf"), 1])
    assert metrics.path.read_text() == '{"step": 3, "loss": 0.5, "bad": null, "parts": [null, 1]}\n'
