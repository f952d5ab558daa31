"""Accuracy from loss, and the Beta law of pass@k, against their definitions and simulated answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from minnow.errors import UserError
from minnow.scaling.downstream import AccuracyLaw, BetaLaw, fit_accuracy, fit_beta
from minnow.scaling.laws import EPOCH
from minnow.scaling.points import Points


def graded(losses: np.ndarray, accuracy: np.ndarray) -> Points:
    blank = np.full(len(losses), np.nan)
    return Points(blank, blank, losses, accuracy=accuracy, places=tuple(map(str, range(len(losses)))))


def test_the_accuracy_law_is_found_again() -> None:
    truth, losses = AccuracyLaw(0.85, 2.1, 0.75), np.linspace(2.2, 4.5, 40)
    found = fit_accuracy(graded(losses, truth.accuracy(losses)), draws=0)
    assert (found.epsilon, found.k, found.gamma) == pytest.approx((0.85, 2.1, 0.75), rel=1e-3)
    assert found.outside(3.0) is None and "outside its runs (2.200 to 4.500)" in str(found.outside(2.0))


def test_intervals_of_the_accuracy_law_hold_the_truth_about_as_often_as_they_say() -> None:
    """95% intervals on 20 data sets: each constant may miss at most 4 times (chance of more: 0.3%)."""
    truth, losses = AccuracyLaw(0.85, 2.1, 0.75), np.linspace(2.2, 4.5, 40)
    misses = dict.fromkeys(("epsilon", "k", "gamma"), 0)
    for seed in range(20):
        noisy = truth.accuracy(losses) + np.random.default_rng(seed).normal(scale=0.004, size=40)
        found = fit_accuracy(graded(losses, noisy), draws=200, seed=seed)
        for name in misses:
            low, high = found.intervals[name]
            misses[name] += not low <= getattr(truth, name) <= high
    assert max(misses.values()) <= 4


def test_accuracies_that_give_no_law() -> None:
    losses = np.linspace(2, 4, 9)
    with pytest.raises(UserError, match="name its column with --accuracy"):
        fit_accuracy(replace(graded(losses, losses), accuracy=None))
    with pytest.raises(UserError, match="4 runs are too few"):
        fit_accuracy(graded(losses[:4], losses[:4] / 9))
    with pytest.raises(UserError, match="fewer than 3 different losses"):
        fit_accuracy(graded(np.resize([2.0, 3.0], 9), losses / 9))
    with pytest.raises(UserError, match="accuracy does not rise as the loss falls"):
        fit_accuracy(graded(losses, losses / 9), draws=0)


def test_pass_at_k_is_the_beta_integral() -> None:
    law = BetaLaw(EPOCH, 6.0, -2.5, 1.0, -0.2)
    a, b = law.shape(1e9, 2e10)
    p = (np.arange(200_000) + 0.5) / 200_000
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    density = np.exp((a - 1) * np.log(p) + (b - 1) * np.log1p(-p) - log_beta)
    for k in (1, 3, 20):
        expected = float((density * (1 - (1 - p) ** k)).mean())
        assert float(law.accuracy(1e9, 2e10, k)) == pytest.approx(expected, rel=2e-3)
    assert float(law.accuracy(1e9, 2e10, 1)) == pytest.approx(float(a / (a + b)), rel=1e-12)


def test_the_best_trade_beats_its_neighbours() -> None:
    law = BetaLaw(EPOCH, 6.0, -2.5, 1.0, -0.2)
    flops, question = 1e21, 2e10
    params, tokens, samples = law.optimum(flops, question)
    assert (6 * params * tokens, 2 * params * samples) == pytest.approx((flops, question), rel=1e-9)
    best = float(law.accuracy(params, tokens, samples))
    for other in (params * 0.8, params * 1.25):
        assert other > question / 2 or float(law.accuracy(other, flops / (6 * other), question / (2 * other))) < best


def test_the_beta_law_is_found_from_answers(synthetic: Callable[..., Points]) -> None:
    truth = BetaLaw(EPOCH, 6.0, -2.5, 2.0, -0.4)
    random, base = np.random.default_rng(5), synthetic(noise=0.0, count=30)
    questions = 200
    a, b = truth.shape(base.params, base.tokens)
    chance = random.beta(np.repeat(a, questions), np.repeat(b, questions))
    rows = base.take(np.repeat(np.arange(30), questions))
    asked = replace(rows, samples=np.full(len(rows), 16.0), correct=random.binomial(16, chance).astype(float))
    found = fit_beta(asked, EPOCH)
    for name in ("t1", "t2", "t3", "t4"):
        low, high = found.intervals[name]
        assert low < getattr(truth, name) < high, name
        assert high - low < 2.5, name
    size, tokens = np.array([3e8, 3e9]), np.array([1e10, 5e10])
    np.testing.assert_allclose(found.accuracy(size, tokens, 4), truth.accuracy(size, tokens, 4), atol=0.02)


def test_answers_that_give_no_law(synthetic: Callable[..., Points]) -> None:
    points = synthetic(count=10)
    with pytest.raises(UserError, match="--samples and --correct"):
        fit_beta(points, EPOCH)
    one = points.take(np.zeros(10, dtype=int))
    with pytest.raises(UserError, match="all rows are of one checkpoint"):
        fit_beta(replace(one, samples=np.full(10, 4.0), correct=np.full(10, 2.0)), EPOCH)
