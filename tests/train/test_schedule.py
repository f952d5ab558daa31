"""Schedule values at the places that matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.train.loop import TrainSettings
from minnow.train.schedule import DECAY_SHAPES, SCHEDULES, Ramp, cosine, linear, warmup_stable_decay


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


def test_linear_rises_and_falls_to_its_floor() -> None:
    values = [linear(step, 11, 1 / 11, 0.8) for step in range(12)]
    assert values[0] == values[1] == 1.0
    assert values[1:] == pytest.approx([1.0 - 0.08 * step for step in range(11)])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [("linear", 0.25), ("cosine", 0.5 - 0.5**1.5), ("1-sqrt", 1 - 0.75**0.5), ("exponential", 0.01**0.75)],
)
def test_wsd_falls_in_its_shape(shape: str, wanted: float) -> None:
    """At a quarter of the decay that is left; the flat part is the same for all."""
    values = [warmup_stable_decay(step, 40, 0.0, 0.5, shape) for step in range(41)]
    assert values[:21] == [1.0] * 21 and values[40] == pytest.approx(0.0)
    assert values[35] == pytest.approx(wanted)
    assert values[20:] == sorted(values[20:], reverse=True)


def test_a_ramp_doubles_in_equal_stages() -> None:
    ramp = Ramp(steps=6, rows=8, length=4)
    assert [ramp.divisors(step) for step in range(8)] == [
        (8, 4),
        (8, 4),
        (4, 4),
        (4, 2),
        (2, 2),
        (2, 2),
        (1, 1),
        (1, 1),
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 60))
def test_rows_before_a_step_are_those_of_the_steps_before(steps: int, doublings: int, step: int) -> None:
    ramp, rows = Ramp(steps=steps, rows=2**doublings), 32
    assert ramp.rows_before(step, rows) == sum(rows // ramp.divisors(earlier)[0] for earlier in range(step))
    assert Ramp().rows_before(step, rows) == step * rows


@pytest.mark.parametrize("values", [{"steps": 5, "rows": 3}, {"steps": 5}, {"rows": 4}, {"steps": -1, "length": 2}])
def test_a_ramp_that_cannot_be_is_refused(values: dict) -> None:
    with pytest.raises(UserError, match="ramp"):
        Ramp(**values)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(sorted(DECAY_SHAPES)),
)
def test_every_multiplier_lies_above_zero_and_at_most_at_one(
    name: str, steps: int, warmup: float, decay: float, shape: str
) -> None:
    values = [SCHEDULES[name](step, steps, warmup, decay, shape) for step in range(steps)]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"schedule": "steps"}, "'steps'"),
        ({"decay_shape": "sqrt"}, "'sqrt'"),
        ({"steps": 0}, "steps is 0"),
        ({"spike": -1.0}, "spike is -1"),
    ],
)
def test_settings_that_cannot_train_are_refused(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        TrainSettings(**({"steps": 5} | values))
