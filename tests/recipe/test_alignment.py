"""When preference training and RL may end before their last step."""

from __future__ import annotations

import pytest

from minnow.errors import UserError
from minnow.recipe.stages.alignment import GateSettings


def looks(*rates: float, last: float = 0.7) -> list[dict[str, float]]:
    found = [{"step": 8 * place, "loop_rate": rate, "task_score": 0.7} for place, rate in enumerate(rates)]
    return [*found[:-1], found[-1] | {"task_score": last}]


@pytest.mark.parametrize(
    ("rates", "best", "ends"),
    [
        ((0.3, 0.0), 8, False),  # one look is no proof
        ((0.3, 0.0, 0.0), 8, True),
        ((0.3, 0.0, 0.0), 16, True),
        ((0.3, 0.0, 0.1), 8, False),
        ((0.3, 0.0, 0.1, 0.0), 24, False),  # not in a row
        ((0.3, 0.0, 0.1, 0.0, 0.0), 8, False),  # the best weights are not those two looks were taken of
        ((0.0, 0.0), 8, False),  # before training is no look at what it did
        ((0.0, 0.0, 0.0), 0, False),
    ],
)
def test_training_ends_after_two_looks_in_a_row(rates: tuple[float, ...], best: int, ends: bool) -> None:
    assert GateSettings(stop_at=0.0).healed(looks(*rates), best) is ends
    assert not GateSettings().healed(looks(*rates), best)


def test_of_looks_without_a_loop_the_last_weights_are_taken_unless_they_score_less() -> None:
    settings = GateSettings(stop_at=0.0, tolerance=0.05)
    assert settings.prefers_last(looks(0.3, 0.0, 0.0, last=0.66), 8)
    assert not settings.prefers_last(looks(0.3, 0.0, 0.0, last=0.64), 8)
    assert not settings.prefers_last(looks(0.3, 0.0, 0.1), 8)


def test_where_training_is_steady_the_last_weights_are_taken_unless_they_loop_more_or_score_less() -> None:
    settings = GateSettings(tolerance=0.05)
    assert settings.prefers_last(looks(0.1, 0.1, 0.1, last=0.66), 0, steady=True)
    assert not settings.prefers_last(looks(0.1, 0.1, 0.1), 0)
    assert not settings.prefers_last(looks(0.1, 0.1, 0.1, last=0.64), 0, steady=True)
    assert not settings.prefers_last(looks(0.1, 0.1, 0.2), 0, steady=True)


def test_one_look_is_enough_where_the_recipe_says_so() -> None:
    assert GateSettings(stop_at=0.05, stop_looks=1).healed(looks(0.3, 0.05), 8)
    with pytest.raises(UserError, match="stop_looks is 0"):
        GateSettings(stop_looks=0)
