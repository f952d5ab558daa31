"""The predictor of difficulty: ridge regression by its normal equations, ranks with ties, and what it can foretell."""

from __future__ import annotations

import numpy as np
import pytest

from minnow.errors import UserError
from minnow.posttrain.difficulty import Predictor, features, foretold


def test_ridge_is_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)) * [1, 5, 0.2] + 3, rng.random(60)
    made = Predictor.fit(x, y)
    z = (x - x.mean(0)) / x.std(0)

    def loss(weights: np.ndarray) -> float:
        return float(((z @ weights - (y - y.mean())) ** 2).sum() + (weights**2).sum())

    for step in np.eye(3) * 1e-3:
        assert loss(made.weights) < min(loss(made.weights + step), loss(made.weights - step))
    assert ((made(x * 100) >= 0) & (made(x * 100) <= 1)).all()
    with pytest.raises(UserError, match="3 measured examples foretell nothing"):
        Predictor.fit(x[:3], y[:3])


def test_longer_sums_are_foretold_to_be_harder_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    terms = rng.integers(2, 12, 200)
    pairs = [
        ("Add " + " and ".join(str(n) for n in rng.integers(1, 99, count)), "so: " + "1 " * count) for count in terms
    ]
    x = features(pairs)
    assert x.shape == (200, 7) and np.isfinite(x).all()
    found = foretold(x, (terms / 12 + rng.normal(0, 0.1, 200)).clip(0, 1))
    assert found is not None and found > 0.85
    noise = foretold(x, rng.random(200))
    assert noise is not None and noise < 0.25
    assert foretold(x, np.zeros(200)) is None, "nothing to rank"
    assert foretold(x[:24], terms[:24] / 12) is None, "folds too small"
