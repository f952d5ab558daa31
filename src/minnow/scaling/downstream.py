"""From loss to what users count: accuracy on tasks, and the share of questions solved by at least one of k answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from minnow.errors import UserError
from minnow.loops.rate import Z_95
from minnow.scaling.laws import TRAIN_FLOPS, Array, Law, largest_for_question
from minnow.scaling.points import Points, resampled

if TYPE_CHECKING:
    from torch import Tensor

_FEWEST = 5  # runs for the three constants of the accuracy law
_ZOOMS = 6


@dataclass(frozen=True)
class AccuracyLaw:
    """``1 - accuracy = epsilon - k exp(-gamma L)``: error falls from epsilon as the loss falls (arXiv 2403.08540).

    Attributes:
        loss_range: of the runs it was fitted on.
        intervals: 95% percentile bootstrap intervals by constant.
    """

    epsilon: float
    k: float
    gamma: float
    loss_range: tuple[float, float] | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def accuracy(self, loss: ArrayLike) -> Array:
        """Share of right answers, kept in 0..1."""
        return np.clip(1 - self.epsilon + self.k * np.exp(-self.gamma * np.asarray(loss, float)), 0.0, 1.0)

    def outside(self, loss: float) -> str | None:
        """A warning when ``loss`` lies beyond the fitted runs."""
        if self.loss_range is None or self.loss_range[0] <= loss <= self.loss_range[1]:
            return None
        low, high = self.loss_range
        return f"the accuracy law is used at a loss of {loss:.3f}, outside its runs ({low:.3f} to {high:.3f})"

    def as_dict(self) -> dict[str, Any]:
        return {"form": "accuracy", **asdict(self)}


def fit_accuracy(points: Points, draws: int = 4000, seed: int = 0) -> AccuracyLaw:
    """Least squares: for a given gamma the other two are a straight line, so gamma alone is searched by zooming in.

    Raises:
        UserError: no accuracies, fewer than five runs, one loss only, or accuracy does not rise as the loss falls.
    """
    if points.accuracy is None:
        raise UserError("an accuracy law needs the accuracy of each run; name its column with --accuracy")
    if len(points) < _FEWEST:
        raise UserError(
            f"{len(points)} runs are too few for an accuracy law; give at least {_FEWEST}, at different losses"
        )
    if len(np.unique(points.loss)) < 3:
        raise UserError("the runs have fewer than 3 different losses; add runs of other sizes or tokens")
    weights = np.concatenate([np.ones((1, len(points))), resampled(len(points), draws, seed)])
    gamma = np.zeros(len(weights))
    middle, width = np.full(len(weights), np.log(1.0)), np.log(100.0)
    for _ in range(_ZOOMS):
        line = middle[:, None] + np.linspace(-width, width, 33)
        costs = np.stack([_line(points, weights, np.exp(column))[2] for column in line.T], axis=1)
        middle = np.take_along_axis(line, costs.argmin(axis=1)[:, None], axis=1)[:, 0]
        width /= 12
    gamma = np.exp(middle)
    epsilon, k, _ = _line(points, weights, gamma)
    if k[0] <= 0:
        raise UserError("accuracy does not rise as the loss falls in these runs; check --loss and --accuracy")
    table = {"epsilon": epsilon[1:], "k": k[1:], "gamma": gamma[1:]}
    intervals = {
        name: (float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5)))
        for name, values in table.items()
        if draws
    }
    ends = (float(points.loss.min()), float(points.loss.max()))
    return AccuracyLaw(float(epsilon[0]), float(k[0]), float(gamma[0]), ends, intervals)


def _line(points: Points, weights: Array, gamma: Array) -> tuple[Array, Array, Array]:
    """Epsilon, k and the summed squares ``[W]`` of weighted lines ``error = epsilon - k exp(-gamma L)``."""
    assert points.accuracy is not None
    shift = points.loss.min()  # exp(-gamma (L - shift)) stays in 0..1; k takes the rest
    x = np.exp(-gamma[:, None] * (points.loss - shift))
    y = 1 - points.accuracy
    total = weights.sum(axis=1)
    mean_x, mean_y = (weights * x).sum(axis=1) / total, weights @ y / total
    off = x - mean_x[:, None]
    spread = (weights * off**2).sum(axis=1)
    slope = np.divide(
        (weights * off * (y - mean_y[:, None])).sum(axis=1), spread, out=np.zeros_like(total), where=spread > 0
    )
    epsilon = mean_y - slope * mean_x
    cost = (weights * (y - epsilon[:, None] - slope[:, None] * x) ** 2).sum(axis=1)
    with np.errstate(over="ignore"):
        return epsilon, -slope * np.exp(gamma * shift), cost


@dataclass(frozen=True)
class BetaLaw:
    """T², approach 2: the chance of answering a question right varies over questions as ``Beta(mu nu, (1 - mu) nu)``.

    ``mu = sigmoid(t1 + t2 L)``, ``nu = exp(t3 + t4 L)`` with ``L`` the loss of ``law`` (arXiv 2604.01411).
    """

    law: Law
    t1: float
    t2: float
    t3: float
    t4: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    name: str = "own T² fit, approach 2"

    def shape(self, params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        """Both constants of the Beta distribution."""
        loss = self.law.loss(params, tokens)
        mean, weight = 1 / (1 + np.exp(-(self.t1 + self.t2 * loss))), np.exp(self.t3 + self.t4 * loss)
        return mean * weight, (1 - mean) * weight

    def accuracy(self, params: ArrayLike, tokens: ArrayLike, samples: ArrayLike) -> Array:
        """Share of questions that at least one of ``samples`` answers gets right: ``1 - B(a, b+k) / B(a, b)``."""
        a, b = self.shape(params, tokens)
        k = np.asarray(samples, float)
        return -np.expm1(_lgamma(b + k) + _lgamma(a + b) - _lgamma(b) - _lgamma(a + b + k))

    def optimum(self, flops: float, question_flops: float) -> tuple[float, float, float]:
        """Parameters, tokens and samples of most accuracy for ``6 N D`` and ``2 N k``, of at least one sample."""
        top = largest_for_question(question_flops)
        low, high = np.log(max(1.0, top * 1e-9)), np.log(top)
        for _ in range(12):
            line = np.linspace(low, high, 400)
            size = np.exp(line)
            best = int(self.accuracy(size, flops / (TRAIN_FLOPS * size), top / size).argmax())
            low, high = line[max(0, best - 1)], line[min(len(line) - 1, best + 1)]
        params = float(np.exp(line[best]))
        return params, flops / (TRAIN_FLOPS * params), top / params

    def as_dict(self) -> dict[str, Any]:
        return {
            "form": "t2-beta",
            **{name: getattr(self, name) for name in ("t1", "t2", "t3", "t4")},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "law": self.law.as_dict(),
        }


def fit_beta(points: Points, law: Law) -> BetaLaw:
    """Maximum likelihood: right answers of each question are Beta-binomial. Intervals from the observed information.

    Args:
        points: one row per checkpoint and question, with ``samples`` and ``correct``.

    Raises:
        UserError: a missing column, or fewer than two sizes of model.
    """
    if points.samples is None or points.correct is None:
        raise UserError(
            "the t2-beta form needs answers drawn and right ones; name the columns with --samples and --correct"
        )
    import torch  # for the digamma derivatives; the other laws do without its start-up time

    loss = law.loss(points.params, points.tokens)
    if len(np.unique(loss.round(9))) < 2:
        raise UserError("all rows are of one checkpoint; add questions answered by models of other sizes or tokens")
    table = np.stack([loss, points.samples, points.correct], axis=1)
    different, counts = np.unique(table, axis=0, return_counts=True)
    middle = float(loss.mean())
    x, n, c = torch.from_numpy(different).T

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    x, weight = x - middle, torch.from_numpy(counts.astype(float))

    def cost(theta: Tensor) -> Tensor:
        mean, total = torch.sigmoid(theta[0] + theta[1] * x), torch.exp(theta[2] + theta[3] * x)
        a, b = mean * total, (1 - mean) * total
        gained = log_beta(c + a, n - c + b) - log_beta(a, b)
        return -(weight * gained).sum()

    share = float(np.clip(points.correct.sum() / points.samples.sum(), 1e-3, 1 - 1e-3))
    theta = torch.tensor([np.log(share / (1 - share)), 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = cost(theta)
        value.backward()
        return value

    optimiser.step(closure)
    found = theta.detach()
    information = torch.autograd.functional.hessian(cost, found)
    # Back from the loss's mean: t1 = t1' - t2 * middle, t3 likewise.
    back = torch.eye(4, dtype=torch.float64)
    back[0, 1] = back[2, 3] = -middle
    covariance = (back @ torch.linalg.pinv(information) @ back.T).numpy()
    values = (back @ found).numpy()
    half = Z_95 * np.sqrt(np.maximum(covariance.diagonal(), 0))
    names = ("t1", "t2", "t3", "t4")
    intervals = {name: (float(v - h), float(v + h)) for name, v, h in zip(names, values, half, strict=True)}
    t1, t2, t3, t4 = (float(value) for value in values)
    return BetaLaw(law, t1, t2, t3, t4, intervals)


def _lgamma(values: Array) -> Array:
    return np.asarray(np.vectorize(math.lgamma, otypes=[float])(values))
