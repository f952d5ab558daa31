"""The rank that the others wait for is named, and only it; of several processes in test_ranks.py."""

from __future__ import annotations

import pytest

from minnow.train import pace
from minnow.train.pace import Lap, Pace, stragglers
from minnow.train.ranks import Ranks


def test_ranks_alike_are_not_slow() -> None:
    laps = [Lap("a", 0.010, 2.0, 60.0), Lap("a", 0.014, 3.5, 60.0), Lap("b", 0.012, 2.0, 60.0)]
    assert stragglers(laps) == {}
    assert stragglers(laps[:1]) == {}


def test_slow_work_and_slow_reading_are_told_apart() -> None:
    laps = [
        Lap("a", 0.010, 0.1, 60.0),
        Lap("b", 0.021, 0.1, 60.0),
        Lap("c", 0.010, 12.0, 60.0),
        Lap("c", 0.011, 0.1, 60.0),
    ]
    assert stragglers(laps) == {
        1: "rank 1 on b computes 2.1 times as long as the middle rank; the others wait for it",
        2: "rank 2 on c reads 12.0 s of 60.0, the middle rank 0.1; the others wait for it",
    }
    # Of two the faster one is the measure.
    assert stragglers(laps[:2]).keys() == {1}


def test_a_rank_is_named_once_until_it_has_kept_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Two(Ranks):
        count = 2

        def everyone(self, value: Lap) -> list[Lap]:  # type: ignore[override]
            return [value, Lap("other", next(others), 0.0, 0.0)]

    Pace().compare(Two(), "cpu")  # too soon to say anything, so nobody works for it
    others = iter([1.0, 2.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(pace, "work_seconds", lambda device, rounds: 1.0)
    monkeypatch.setattr(pace, "PERIOD", 0.0)
    own, said = Pace(), []
    for _ in range(5):
        own.compare(Two(), "cpu")
        said.append("rank 1 on other computes 2.0 times" in capsys.readouterr().err)
    assert said == [False, True, False, False, True]


def test_batches_pass_as_they_are() -> None:
    own = Pace()
    assert list(own.timed(iter([1, 2, 3]))) == [1, 2, 3] and list(own.timed([])) == []
