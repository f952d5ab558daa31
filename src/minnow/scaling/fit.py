"""Fit a law to runs, with bootstrap intervals, a hold-out by compute and warnings where the runs do not settle it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minnow.errors import UserError
from minnow.scaling import minimise
from minnow.scaling.laws import Array, Law, T2Law, human
from minnow.scaling.points import Points, resampled

_COEFFICIENT, _EXPONENT, _FLOOR = (
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
)
_LOOKS = ((8, 1024), (24, 128))  # iterations that the starts get, and how many of them go on; then to the end
_SPREAD = 8  # minima from which each bootstrap draw could start; the best for the draw is taken
_RATIO_SPREAD = 0.05  # standard deviation of log(tokens per parameter) below which runs lie on one line
_BITS = math.log(1 / math.log(2))  # log residual of a loss given in bits among losses in nats
_BITS_WIDTH = 0.06


@dataclass(frozen=True)
class Form:
    """What is fitted: the constants, and which coefficient and exponent each term of the sum has.

    Attributes:
        constants: names; those of coefficients and of E are fitted as logarithms.
        terms: ``(coefficient, exponent or "", covariate)``.
        grid: starts of each constant, Hoffmann et al.'s where it is theirs.
        sizes: different sizes, and numbers of tokens, without which the constants cannot be told apart.
    """

    constants: tuple[str, ...]
    terms: tuple[tuple[str, str, str], ...]
    grid: tuple[Sequence[float], ...]
    sizes: int

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(name for name in self.constants if name in ("alpha", "beta", "gamma"))


_N, _D, _K = ("A", "alpha", "params"), ("B", "beta", "tokens"), ("G", "gamma", "samples")
FORMS: dict[str, Form] = {
    "chinchilla": Form(  # E + A N^-alpha + B D^-beta
        ("E", "A", "B", "alpha", "beta"),
        (("E", "", ""), _N, _D),
        (_FLOOR, _COEFFICIENT, _COEFFICIENT, _EXPONENT, _EXPONENT),
        3,
    ),
    "shared": Form(  # E + A N^-alpha + B D^-alpha
        ("E", "A", "B", "alpha"),
        (("E", "", ""), _N, ("B", "alpha", "tokens")),
        (_FLOOR, _COEFFICIENT, _COEFFICIENT, tuple(np.linspace(0, 2, 25))),
        2,
    ),
    "reducible": Form(  # L - floor = A N^-alpha + B D^-beta
        ("A", "B", "alpha", "beta"),
        (_N, _D),
        (tuple(np.linspace(0, 25, 12)), tuple(np.linspace(0, 25, 12)), _EXPONENT, _EXPONENT),
        2,
    ),
    "t2": Form(  # E + A N^-alpha + B D^-beta + G k^-gamma
        ("E", "A", "B", "G", "alpha", "beta", "gamma"),
        (("E", "", ""), _N, _D, _K),
        ((-1.0, 0.0, 1.0), (0.0, 6.0, 12.0, 18.0), (0.0, 6.0, 12.0, 18.0), (-2.0, 0.0, 2.0), *3 * ((0.1, 0.4, 0.9),)),
        3,
    ),
}


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: with the fitted range of the runs; a :class:`T2Law` for the form ``t2``.
        intervals: 95% percentile intervals of the constants.
        draws: bootstrap fits, ``[draws, constants]`` in the order of ``names``.
        residuals: log of measured over predicted loss, ``[points]``, in the order of the points.
        objective: sum of the Huber losses of the log residuals.
        hold_out: the error on the dear runs of a fit on the cheap ones, if asked for.
    """

    form: str
    law: Law | T2Law
    names: tuple[str, ...]
    intervals: dict[str, tuple[float, float]]
    draws: Array
    residuals: Array
    objective: float
    points: Points
    hold_out: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def predict(self, params: float, tokens: float, unique: float | None = None) -> dict[str, Any]:
        """Loss with the law's 95% interval over the bootstrap (one run scatters more); a warning outside the runs."""
        law = self.law
        if not isinstance(law, Law):
            raise UserError("a t2 fit predicts with a number of samples; use `minnow scaling plan`")
        middle = float(law.loss(params, tokens, unique))
        entry: dict[str, Any] = {"params": params, "tokens": tokens, "unique": unique, "loss": middle}
        if len(self.draws):
            index = {name: self.draws[:, place] for place, name in enumerate(self.names)}
            floor = index.get("E", np.full(len(self.draws), law.E))
            n, d = np.array(params, float), np.array(tokens, float)
            if unique is not None:
                n, d = law.effective(n, d, np.array(unique, float))
            losses = floor + index["A"] * n ** -index["alpha"] + index["B"] * d ** -index.get("beta", index["alpha"])
            entry["low"], entry["high"] = (float(value) for value in np.percentile(losses, [2.5, 97.5]))
        entry["warning"] = law.outside(params, tokens)
        return entry

    def as_dict(self) -> dict[str, Any]:
        """Everything but the draws, as one JSON document that ``minnow scaling plan --law`` reads."""
        constants = {
            name: getattr(self.law, name)
            for name in ("E", "A", "B", "G", "alpha", "beta", "gamma")
            if hasattr(self.law, name)
        }
        return {
            "form": self.form,
            **constants,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "points": len(self.points),
            "params_range": list(_range(self.points.params)),
            "tokens_range": list(_range(self.points.tokens)),
            "objective": self.objective,
            "mean_absolute_log_residual": float(np.abs(self.residuals).mean()),
            **({"repeats": vars(self.law.repeats).copy()} if isinstance(self.law, Law) else {}),
            "hold_out": self.hold_out,
            "warnings": list(self.warnings),
        }


def fit_law(
    points: Points,
    form: str = "chinchilla",
    *,
    floor: float = 0.0,
    draws: int = 4000,
    seed: int = 0,
    hold_out: float = 0.0,
    every: int = 1,
) -> Fit:
    """Fit ``form`` to ``points`` from a grid of starts.

    Args:
        form: a key of :data:`FORMS`.
        floor: of the form ``reducible``: the loss that no model goes below, known from elsewhere.
        draws: bootstrap draws (runs drawn with replacement) for the intervals; 0 for none.
        hold_out: share of the runs, the dearest in FLOPs, to predict from the rest.
        every: take every n-th start of the grid only; coprime to its sides (2, 3, 5), or a side is never walked.

    Raises:
        UserError: the runs cannot settle the constants (too few, one size, one ratio), some losses are in bits, or a floor
            for a form that finds its own.
    """
    shape = FORMS[form]
    if floor and form != "reducible":
        raise UserError(f"--floor is for the form reducible; {form} finds its own, so leave it out")
    _enough(points, shape, form)
    problem = _problem(points, shape, floor)
    theta, minima = solve(problem, _grid(shape)[::every])
    residuals = problem.target - _predicted(problem, theta)
    _no_bits(points, residuals)
    sampled = bootstrap(problem, minima, draws, seed)
    table = _constants(sampled, shape)
    intervals = (
        {
            key: (float(low), float(high))
            for key, low, high in zip(shape.constants, *np.percentile(table, [2.5, 97.5], axis=0), strict=True)
        }
        if draws
        else {}
    )
    values = dict(zip(shape.constants, _constants(theta[None], shape)[0].tolist(), strict=True))
    ranges: dict[str, Any] = {"params_range": _range(points.params), "tokens_range": _range(points.tokens)}
    law: Law | T2Law
    if form == "t2":
        law = T2Law("own fit", **values, **ranges)
    else:
        values = {"E": floor, **values}
        values.setdefault("beta", values["alpha"])
        law = Law("own fit", **values, **ranges)
    found = Fit(
        form, law, shape.constants, intervals, table, residuals,
        float(minimise.evaluate(problem, theta[None])[0][0] * minimise.HUBER**2), points,
        warnings=tuple(_doubts(values, intervals, shape)),
    )  # fmt: skip
    if hold_out:
        found = replace(found, hold_out=_held_out(points, form, hold_out, floor, every))
    return found


def solve(problem: minimise.Problem, starts: Array) -> tuple[Array, Array]:
    """The best minimum ``[P]`` from all ``starts [S, P]``, and up to a few others that nearly tie, best first.

    Every start gets a first look, the better ones a second; the best go on to the end in coordinates made round at
    the leader.
    """
    centre = _centred(problem)
    inner = problem.moved(centre)
    leaders = _solved(centre, starts)
    for iterations, kept in _LOOKS:
        looked, values = minimise.minimise(inner, leaders, iterations=iterations)
        leaders = looked[np.argsort(values)[:kept]]
    for _ in range(2):
        turn = minimise.rounded(inner, leaders[0])
        found, values = minimise.minimise(inner.moved(turn), _solved(turn, leaders), iterations=500, tolerance=1e-13)
        order = np.argsort(values)
        leaders, values = (found[order] @ turn.T), values[order]
    apart = [0]
    for row in range(1, len(leaders)):
        near = values[row] < values[0] + max(5.0, 0.05 * values[0])
        if near and all(np.abs(values[row] - values[one]) > 1e-3 for one in apart) and len(apart) < _SPREAD:
            apart.append(row)
    minima = leaders[apart] @ centre.T
    return minima[0], minima


def bootstrap(problem: minimise.Problem, minima: Array, draws: int, seed: int) -> Array:
    """Fits ``[draws, P]`` to runs drawn with replacement, each from the best of ``minima [M, P]`` for its draw."""
    if not draws:
        return np.empty((0, minima.shape[1]))
    weights = resampled(problem.target.size, draws, seed)
    centre = _centred(problem)
    whole = centre @ minimise.rounded(problem.moved(centre), _solved(centre, minima)[0])
    inner, starts = problem.moved(whole), _solved(whole, minima)
    best, best_value = np.zeros((draws, starts.shape[1])), np.full(draws, np.inf)
    for start in starts:
        found, value = minimise.minimise(inner, np.repeat(start[None], draws, axis=0), weights, 100, 1e-9)
        better = value < best_value
        best[better], best_value[better] = found[better], value[better]
    return best @ whole.T


def _problem(points: Points, shape: Form, floor: float) -> minimise.Problem:
    place = {name: index for index, name in enumerate(shape.constants)}
    design = np.zeros((len(shape.terms), len(points), len(shape.constants)))
    for term, (coefficient, exponent, covariate) in zip(design, shape.terms, strict=True):
        term[:, place[coefficient]] = 1.0
        if exponent:
            term[:, place[exponent]] -= np.log(getattr(points, covariate))
    if (points.loss <= floor).any():
        row = int(points.loss.argmin())
        raise UserError(
            f"{points.places[row]} has a loss of {points.loss[row]:g}, not above --floor {floor:g}; lower it"
        )
    return minimise.Problem(design, np.log(points.loss - floor))


def _grid(shape: Form) -> Array:
    return np.array(list(itertools.product(*shape.grid)))


def _centred(problem: minimise.Problem) -> Array:
    """Coordinates in which coefficients are those at the middle of the runs, so that exponents leave them in place."""
    transform = np.eye(problem.design.shape[2])
    for term in problem.design:
        used = np.flatnonzero(np.abs(term).sum(axis=0))
        constant = next(column for column in used if np.ptp(term[:, column]) == 0)
        for column in used:
            if column != constant:
                transform[constant, column] = -term[:, column].mean()
    return transform


def _solved(transform: Array, theta: Array) -> Array:
    """Rows ``theta [S, P]`` in the coordinates of ``transform``."""
    return np.asarray(np.linalg.solve(transform, theta.T).T, dtype=np.float64)


def _predicted(problem: minimise.Problem, theta: Array) -> Array:
    return np.asarray(np.logaddexp.reduce(np.stack([term @ theta for term in problem.design]), axis=0))


def _constants(theta: Array, shape: Form) -> Array:
    """Logarithms back to coefficients, ``[S, P]``."""
    logs = np.array([name not in shape.exponents for name in shape.constants])
    return np.where(logs, np.exp(np.minimum(theta, 700.0)), theta)


def _range(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _enough(points: Points, shape: Form, form: str) -> None:
    least = len(shape.constants) + 2
    if len(points) < least:
        raise UserError(
            f"{len(points)} runs are too few for the {len(shape.constants)} constants of the {form} form; give at "
            f"least {least}, over {shape.sizes} sizes and {shape.sizes} numbers of tokens"
        )
    kinds: list[tuple[str, ArrayLike | None]] = [("size", points.params), ("number of tokens", points.tokens)]
    if form == "t2":
        kinds.append(("number of samples", points.samples))
    for what, values in kinds:
        if values is None:
            raise UserError(f"the {form} form needs the {what}; name its column")
        found = np.unique(np.asarray(values))
        if len(found) < shape.sizes:
            plural = what.replace("size", "sizes").replace("number", "numbers")
            have = (
                f"all runs have one {what} ({human(found[0])})"
                if len(found) == 1
                else f"the runs have {len(found)} {plural}"
            )
            raise UserError(f"{have}; the {form} form needs at least {shape.sizes}, so add runs with other {plural}")
    ratio = np.log(points.tokens / points.params)
    if ratio.std() < _RATIO_SPREAD:
        raise UserError(
            f"all runs have about {math.exp(ratio.mean()):.3g} tokens per parameter, so size and tokens cannot be told "
            "apart; add runs at other ratios"
        )


def _no_bits(points: Points, residuals: Array) -> None:
    """Losses in bits among losses in nats lie a factor 1/ln 2 above the law; a robust fit shows them."""
    odd = np.abs(residuals - np.median(residuals) - _BITS) < _BITS_WIDTH
    rest = np.abs(residuals[~odd] - np.median(residuals))
    if 0 < odd.sum() < len(residuals) / 2 and rest.size and np.quantile(rest, 0.9) < _BITS_WIDTH:
        row = int(np.flatnonzero(odd)[0])
        raise UserError(
            f"{points.places[row]} ({odd.sum()} in all) lies a factor 1.44 above the other runs' law: mixed units, a "
            "loss in bits among nats; multiply it by 0.6931"
        )


def _doubts(values: dict[str, float], intervals: dict[str, tuple[float, float]], shape: Form) -> list[str]:
    doubts = []
    for name in shape.exponents:
        low, high = intervals.get(name, (values[name], values[name]))
        if low <= 0 or values[name] <= 0:
            doubts.append(f"{name} is not told from 0 by these runs; spread them further")
        elif high > 3 * values[name]:
            doubts.append(f"{name} may be {high:.2g} as well as {values[name]:.2g}; add runs")
    if "E" in intervals and intervals["E"][0] < 0.5 * values["E"]:
        doubts.append(
            f"E is known only to {intervals['E'][0]:.2g} to {intervals['E'][1]:.2g}; predictions far out are guesses"
        )
    return doubts


def _held_out(points: Points, form: str, share: float, floor: float, every: int) -> dict[str, Any]:
    if not 0 < share < 1:
        raise UserError(f"--hold-out {share:g} is no share of the runs; use a number between 0 and 1, such as 0.5")
    order = np.argsort(points.flops, kind="stable")
    cut = len(order) - max(1, round(share * len(order)))
    cheap, dear = points.take(order[:cut]), points.take(order[cut:])
    fitted = fit_law(cheap, form, floor=floor, draws=0, every=every).law
    if isinstance(fitted, T2Law):
        assert dear.samples is not None
        predicted = fitted.loss(dear.params, dear.tokens, dear.samples)
    else:
        predicted = fitted.loss(dear.params, dear.tokens)
    error = np.abs(predicted / dear.loss - 1)
    return {
        "fitted": len(cheap),
        "predicted": len(dear),
        "from_flops": float(dear.flops.min()),
        "mean_relative_error": float(error.mean()),
        "max_relative_error": float(error.max()),
    }
