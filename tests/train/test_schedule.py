"""Schedule values at the places that matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.train.loop import TrainSettings
from minnow.train.schedule import SCHEDULES, cosine, warmup_stable_decay


def test_wsd_rises_stays_and_falls() -> None:
    values = [warmup_stable_decay(step, 20, 0.2, 0.5) for step in range(20)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4:11] == [1.0] * 7
    assert values[10:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_rises_and_falls_to_its_floor() -> None:
    values = [cosine(step, 101, 1 / 101, 0.9) for step in range(102)]
    assert values[0] == values[1] == 1.0
    assert values[51] == pytest.approx(0.55)  # half-way between 1 and the floor
    assert values[101] == pytest.approx(0.1)
    assert values[1:] == sorted(values[1:], reverse=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_every_multiplier_lies_above_zero_and_at_most_at_one(
    name: str, steps: int, warmup: float, decay: float
) -> None:
    values = [SCHEDULES[name](step, steps, warmup, decay) for step in range(steps)]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0


@pytest.mark.parametrize(("values", "named"), [({"schedule": "linear"}, "'linear'"), ({"steps": 0}, "steps is 0")])
def test_settings_that_cannot_train_are_refused(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        TrainSettings(**({"steps": 5} | values))
