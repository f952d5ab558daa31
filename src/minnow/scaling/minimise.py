"""Robust power-law fits, many at once: Huber loss on a log-sum-exp, L-BFGS side by side from many starts.

A law that is a sum of power terms, ``L = Σ_k exp(t_k)``, has terms whose logarithms are linear in the constants:
``t_k(point) = design_k(point) · theta``. Fitting ``log L`` with a Huber loss is the procedure of Hoffmann et al.
(arXiv 2203.15556, approach 3) and of its replication (arXiv 2404.10102), which traced the original's wrong constants to
the *mean* of the loss: at 1e-6 of its scale the optimiser stops early. Here the loss is the sum.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from minnow.machine import usable_cores
from minnow.scaling.laws import Array

HUBER = 1e-3  # of log loss: where squares turn into absolute values (Hoffmann et al.)
_MEMORY = 10
_BATCH = 16_384  # numbers in one [starts, points] array: small enough to stay in a core's cache
_ARMIJO, _CURVATURE = 1e-4, 1e-10
_TINY = 1e-200  # below it a step is passed over: its inverse would overflow
_HALVINGS = 12


@dataclass(frozen=True)
class Problem:
    """Points to fit.

    Attributes:
        design: ``[terms, points, constants]``.
        target: logarithms of the losses, ``[points]``.
    """

    design: Array
    target: Array

    def moved(self, transform: Array) -> Problem:
        """The same problem in other coordinates: ``theta = transform @ new``."""
        return Problem(self.design @ transform, self.target)


def evaluate(problem: Problem, theta: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Objective ``[S]`` and gradient ``[S, P]`` at ``theta [S, P]``, in units of :data:`HUBER` (an L1 sum far out).

    Args:
        weights: of the points, ``[S, points]``: bootstrap counts.
    """
    logs = [theta @ term.T for term in problem.design]
    top = logs[0].copy()
    for one in logs[1:]:
        np.maximum(top, one, out=top)
    for one in logs:
        one -= top
        np.exp(one, out=one)
    total = logs[0].copy()
    for one in logs[1:]:
        total += one
    residual = top
    residual += np.log(total)
    residual -= problem.target
    residual /= HUBER
    slope = np.clip(residual, -1.0, 1.0)
    # Huber in one expression: r²/2 inside, |r| - 1/2 outside.
    if weights is None:
        value = np.einsum("sn,sn->s", slope, residual) - 0.5 * np.einsum("sn,sn->s", slope, slope)
    else:
        weighted = slope * weights
        value = np.einsum("sn,sn->s", weighted, residual) - 0.5 * np.einsum("sn,sn->s", weighted, slope)
        slope = weighted
    slope /= total * HUBER
    gradient = np.zeros_like(theta)
    for one, term in zip(logs, problem.design, strict=True):
        one *= slope
        gradient += one @ term
    return value, gradient


def minimise(
    problem: Problem, starts: Array, weights: Array | None = None, iterations: int = 200, tolerance: float = 1e-9
) -> tuple[Array, Array]:
    """L-BFGS from every row of ``starts [S, P]``; returns the minima ``[S, P]`` and their values ``[S]``.

    Rows run in cache-sized batches on all cores. A row stops when a step gains less than ``tolerance`` of its value
    twice in a row, or when no step down the direction gains anything.
    """
    size = max(8, _BATCH // problem.target.size)
    cuts = range(0, len(starts), size)

    def run(begin: int) -> tuple[Array, Array]:
        part = slice(begin, begin + size)
        return _lbfgs(problem, starts[part], None if weights is None else weights[part], iterations, tolerance)

    with ThreadPoolExecutor(usable_cores()) as pool:
        parts = list(pool.map(run, cuts))
    return np.concatenate([theta for theta, _ in parts]), np.concatenate([value for _, value in parts])


def _lbfgs(
    problem: Problem, starts: Array, weights: Array | None, iterations: int, tolerance: float
) -> tuple[Array, Array]:
    best, best_value = starts.copy(), np.full(len(starts), np.inf)
    rows = np.arange(len(starts))  # rows still running; their state is packed
    theta = starts.copy()
    value, gradient = evaluate(problem, theta, weights)
    steps: list[Array] = []
    changes: list[Array] = []
    idle = np.zeros(len(rows), dtype=int)
    for _ in range(iterations):
        direction = -_two_loops(gradient, steps, changes)
        descent = np.einsum("sp,sp->s", direction, gradient)
        uphill = ~(descent < 0)
        direction[uphill] = -gradient[uphill]
        descent[uphill] = -np.einsum("sp,sp->s", gradient, gradient)[uphill]
        if not steps:  # nothing is known of the scale yet: a first step of at most 0.1
            length = np.minimum(1.0, 0.1 / np.maximum(np.linalg.norm(direction, axis=1), 1e-300))
            direction *= length[:, None]
            descent *= length
        moved, new_value, new_gradient, step = _search(problem, theta, value, gradient, direction, descent, weights)
        step_taken, change = moved - theta, new_gradient - gradient
        curved = np.einsum("sp,sp->s", step_taken, change)
        flat = (
            curved
            <= _CURVATURE
            * np.einsum("sp,sp->s", change, change) ** 0.5
            * np.einsum("sp,sp->s", step_taken, step_taken) ** 0.5
        )
        step_taken[flat], change[flat] = 0.0, 0.0  # a pair of zeros is passed over
        steps, changes = [*steps[1 - _MEMORY :], step_taken], [*changes[1 - _MEMORY :], change]
        gain = value - new_value
        idle = np.where(gain <= tolerance * np.abs(new_value), idle + 1, 0)
        theta, value, gradient = moved, new_value, new_gradient
        done = (idle >= 2) | (step == 0)
        if done.any():
            best[rows[done]], best_value[rows[done]] = theta[done], value[done]
            keep = ~done
            rows, theta, value, gradient, idle = rows[keep], theta[keep], value[keep], gradient[keep], idle[keep]
            steps, changes = [one[keep] for one in steps], [one[keep] for one in changes]
            weights = None if weights is None else weights[keep]
            if not len(rows):
                break
    best[rows], best_value[rows] = theta, value
    return best, best_value


def _two_loops(gradient: Array, steps: list[Array], changes: list[Array]) -> Array:
    """The inverse Hessian times the gradient, from the last steps (Nocedal 1980), row by row."""
    q = gradient.copy()
    shares: list[tuple[Array, Array]] = []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        curved = np.einsum("sp,sp->s", step, change)
        rho = np.divide(1.0, curved, out=np.zeros_like(curved), where=curved > _TINY)
        share = rho * np.einsum("sp,sp->s", step, q)
        q -= share[:, None] * change
        shares.append((rho, share))
    scale = np.ones(len(q))
    for step, change in zip(steps, changes, strict=True):  # the newest pair that is not zeros wins
        curved, size = np.einsum("sp,sp->s", step, change), np.einsum("sp,sp->s", change, change)
        np.divide(curved, size, out=scale, where=size > _TINY)
    q *= scale[:, None]
    for (rho, share), step, change in zip(reversed(shares), steps, changes, strict=True):
        q += (share - rho * np.einsum("sp,sp->s", change, q))[:, None] * step
    return q


def _search(
    problem: Problem,
    theta: Array,
    value: Array,
    gradient: Array,
    direction: Array,
    descent: Array,
    weights: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """Backtracking by parabolas until Armijo's condition holds; a row that finds no step stays where it is, step 0."""
    step = np.ones(len(theta))
    moved, new_value, new_gradient = theta.copy(), value.copy(), gradient.copy()
    left = np.arange(len(theta))
    for _ in range(_HALVINGS):
        trial = theta[left] + step[left, None] * direction[left]
        with np.errstate(over="ignore", invalid="ignore"):
            found: tuple[Array, Array] = evaluate(problem, trial, None if weights is None else weights[left])
        good = found[0] <= value[left] + _ARMIJO * step[left] * descent[left]
        taken = left[good]
        moved[taken], new_value[taken], new_gradient[taken] = trial[good], found[0][good], found[1][good]
        bad = ~good
        left = left[bad]
        if not len(left):
            return moved, new_value, new_gradient, step
        rise = found[0][bad] - value[left] - step[left] * descent[left]
        parabola = np.divide(-descent[left] * step[left], 2 * rise, out=np.full(len(left), 0.5), where=rise > 0)
        step[left] *= np.clip(np.nan_to_num(parabola, nan=0.1), 0.1, 0.6)
    step[left] = 0.0
    return moved, new_value, new_gradient, step


def jacobian(problem: Problem, theta: Array) -> Array:
    """Derivatives of the predicted log losses by the constants at one ``theta [P]``: ``[points, P]``."""
    logs = np.stack([term @ theta for term in problem.design])
    shares = np.exp(logs - logs.max(axis=0))
    shares /= shares.sum(axis=0)
    return np.einsum("kn,knp->np", shares, problem.design)


def rounded(problem: Problem, theta: Array) -> Array:
    """Coordinates in which the problem around ``theta`` is as round as can be: ``[P, P]``, for :meth:`Problem.moved`.

    Constants of a law are strongly correlated (a larger A with a larger alpha fits nearly as well), so plain steps
    zigzag; in these coordinates the least-squares problem has a unit Hessian per point.
    """
    jac = jacobian(problem, theta) / np.sqrt(problem.target.size)
    values, vectors = np.linalg.eigh(jac.T @ jac)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-10)))
