from __future__ import annotations

import pytest

from minnow.loops import Rate


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombe_1998_table_1_method_3(count: int, total: int, low: float, high: float) -> None:
    rate = Rate(count, total)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


def test_mirror_image() -> None:
    for count in range(31):
        rate, mirrored = Rate(count, 30), Rate(30 - count, 30)
        assert rate.low == pytest.approx(1 - mirrored.high, abs=1e-12)
        assert 0 <= rate.low <= rate.rate <= rate.high <= 1


def test_as_dict_has_six_digits() -> None:
    assert Rate(1, 3).as_dict() == {"count": 1, "total": 3, "rate": 0.333333, "low": 0.061492, "high": 0.79234}
    assert Rate(20, 20).as_dict()["high"] == 1.0
    assert Rate(0, 0).as_dict() == {"count": 0, "total": 0, "rate": 0.0, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="not possible"):
        Rate(count, total)
