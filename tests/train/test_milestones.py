"""Checkpoints that stay and those that go."""

from __future__ import annotations

from pathlib import Path

import pytest

from minnow.errors import UserError
from minnow.train.milestones import CheckpointSettings, newest, write_checkpoint


def steps(folder: Path) -> list[int]:
    return [step for step, _ in newest(folder)]


def test_the_newest_and_the_milestones_stay(tmp_path: Path) -> None:
    settings = CheckpointSettings(every=5, keep=2, milestone_every=20)
    due = [step for step in range(51) if settings.due(step)]
    assert due == list(range(5, 51, 5))
    for step in due:
        write_checkpoint(lambda folder: folder.mkdir(parents=True), tmp_path, step, settings)
    assert steps(tmp_path) == [20, 40, 45, 50]


def test_a_checkpoint_that_fails_removes_none(tmp_path: Path) -> None:
    settings = CheckpointSettings(every=1, keep=1)
    write_checkpoint(lambda folder: folder.mkdir(parents=True), tmp_path, 1, settings)

    def full(folder: Path) -> None:
        raise UserError("no space")

    with pytest.raises(UserError):
        write_checkpoint(full, tmp_path, 2, settings)
    assert steps(tmp_path) == [1]


def test_a_run_that_went_back_overtakes_what_it_left(tmp_path: Path) -> None:
    settings = CheckpointSettings(every=1, keep=2)
    for step in (1, 2, 3, 4, 2):
        write_checkpoint(lambda folder: folder.mkdir(parents=True, exist_ok=True), tmp_path, step, settings)
    assert steps(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"every": -1}, "0 or more"),
        ({"keep": 0}, "at least 1"),
        ({"average": 2}, "set every"),
        ({"every": 5, "average": 3}, "keep to at least 3"),
        ({"every": 5, "milestone_every": 7}, "multiple"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        CheckpointSettings(**values)
