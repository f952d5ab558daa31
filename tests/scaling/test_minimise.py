"""The batched optimiser against plain definitions and torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from minnow.scaling.fit import FORMS, _problem, fit_law
from minnow.scaling.minimise import HUBER, Problem, evaluate, minimise
from minnow.scaling.points import Points


def reference(problem: Problem, theta: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The objective from its definition, in float64."""
    logs = torch.stack([torch.from_numpy(term) @ theta for term in problem.design])
    residual = torch.logsumexp(logs, dim=0) - torch.from_numpy(problem.target)
    huber = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=HUBER)
    return (huber if weights is None else huber * weights).sum() / HUBER**2


def test_value_and_gradient_are_those_of_the_definition(synthetic: Callable[..., Points]) -> None:
    random = np.random.default_rng(1)
    problem = _problem(synthetic(count=40), FORMS["chinchilla"], 0.0)
    theta = np.array([0.6, 6.2, 7.6, 0.35, 0.37]) + random.normal(scale=[0.1, 0.5, 0.5, 0.02, 0.02], size=(6, 5))
    weights = random.integers(0, 4, (6, 40)).astype(float)
    for given in (None, weights):
        value, gradient = evaluate(problem, theta, given)
        for row in range(6):
            at = torch.tensor(theta[row], requires_grad=True)
            expected = reference(problem, at, None if given is None else torch.from_numpy(given[row]))
            expected.backward()
            np.testing.assert_allclose(value[row], expected.item(), rtol=1e-12)
            assert at.grad is not None
            np.testing.assert_allclose(gradient[row], at.grad.numpy(), rtol=1e-9, atol=1e-9 * abs(gradient[row]).max())


def test_rows_do_not_touch_each_other(synthetic: Callable[..., Points]) -> None:
    problem = _problem(synthetic(count=40), FORMS["chinchilla"], 0.0)
    starts = np.array([0.6, 6.2, 7.6, 0.35, 0.37]) + np.random.default_rng(2).normal(scale=0.02, size=(9, 5))
    together, values = minimise(problem, starts, iterations=20)
    for row in (0, 4, 8):
        alone, value = minimise(problem, starts[row : row + 1], iterations=20)
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-8)
        np.testing.assert_allclose(value[0], values[row], rtol=1e-8)


def test_the_fit_is_as_good_as_torchs_lbfgs_from_the_truth(synthetic: Callable[..., Points]) -> None:
    points = synthetic(seed=3)
    problem = _problem(points, FORMS["chinchilla"], 0.0)
    theta = torch.tensor([np.log(1.817), np.log(482.01), np.log(2085.43), 0.348, 0.366], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=3000, max_eval=6000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = reference(problem, theta)
        loss.backward()
        return loss

    optimiser.step(closure)
    best = float(reference(problem, theta.detach()))
    assert fit_law(points, draws=0).objective / HUBER**2 <= best * (1 + 1e-9)
