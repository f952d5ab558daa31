"""Laws that give a loss from parameters and training tokens, and their optima in closed form.

Compute is counted as in the papers: ``6 N D`` FLOPs to train ``N`` parameters on ``D`` tokens, ``2 N`` per token of
inference. Losses are nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minnow.errors import UserError

TRAIN_FLOPS = 6.0  # per parameter and token, forward and backward
INFERENCE_FLOPS = 2.0  # per parameter and token

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """How fast repeated tokens, and parameters beyond what the unique tokens feed, lose their worth (2305.16264).

    Attributes:
        tokens: R*_D; after that many repetitions a repeated token is worth 1/e of a fresh one.
        params: R*_N, the same for excess parameters.
    """

    tokens: float = 15.387756
    params: float = 5.309743


@dataclass(frozen=True)
class Law:
    """``L(N, D) = E + A N^-alpha + B D^-beta``.

    Attributes:
        params_range, tokens_range: smallest and largest of the runs it was fitted on.
        repeats: what repeated tokens are worth; used only where the unique tokens are named.
    """

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str = ""
    params_range: tuple[float, float] | None = None
    tokens_range: tuple[float, float] | None = None
    repeats: Repeats = Repeats()

    def loss(self, params: ArrayLike, tokens: ArrayLike, unique: ArrayLike | None = None) -> Array:
        """Loss in nats per token; ``unique`` is how many different tokens there are, by default all."""
        n, d = np.asarray(params, float), np.asarray(tokens, float)
        if unique is not None:
            n, d = self.effective(n, d, np.asarray(unique, float))
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    def effective(self, params: Array, tokens: Array, unique: Array) -> tuple[Array, Array]:
        """Parameters and fresh tokens worth as much as ``params`` and ``tokens`` over ``unique`` ones (2305.16264)."""
        fed = self.params_for(np.minimum(tokens, unique))
        return (
            worth_of_repeats(params, np.minimum(params, fed), self.repeats.params),
            worth_of_repeats(tokens, np.minimum(tokens, unique), self.repeats.tokens),
        )

    def params_for(self, tokens: ArrayLike) -> Array:
        """The size for which ``tokens`` is the compute-optimal number."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return np.asarray((ratio * np.asarray(tokens, float) ** self.beta) ** (1 / self.alpha))

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss for ``flops = 6 N D``."""
        exponent = self.alpha + self.beta
        factor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / exponent)
        params = factor * (flops / TRAIN_FLOPS) ** (self.beta / exponent)
        return params, flops / (TRAIN_FLOPS * params)

    def optimum_for_loss(self, loss: float) -> tuple[float, float]:
        """Parameters and tokens of least ``6 N D`` that reach ``loss``.

        At the optimum ``alpha A N^-alpha = beta B D^-beta``, so the two terms share what lies above E as beta to alpha.
        """
        above = self.above_floor(loss)
        exponent = self.alpha + self.beta
        params = (self.A * exponent / (above * self.beta)) ** (1 / self.alpha)
        return params, (self.B * exponent / (above * self.alpha)) ** (1 / self.beta)

    def tokens_for_loss(self, params: ArrayLike, loss: float) -> Array:
        """Tokens with which each size reaches ``loss``; infinite where it never does."""
        left = self.above_floor(loss) - self.A * np.asarray(params, float) ** -self.alpha
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(left > 0, (self.B / np.maximum(left, 0)) ** (1 / self.beta), np.inf)

    def gain_per_token(self, params: float, tokens: float, unique: float | None = None) -> float:
        """How much one more token lowers the loss, in nats: ``-dL/dD``."""
        if unique is None or tokens <= unique:
            return self.beta * self.B * tokens ** (-self.beta - 1)
        worth = float(worth_of_repeats(np.array(tokens), np.array(unique), self.repeats.tokens))
        fade = math.exp(-(tokens / unique - 1) / self.repeats.tokens)
        return self.beta * self.B * worth ** (-self.beta - 1) * fade

    def above_floor(self, loss: float) -> float:
        """What ``loss`` leaves above E.

        Raises:
            UserError: nothing; no size and no tokens reach it.
        """
        if loss <= self.E:
            raise UserError(
                f"a loss of {loss:g} cannot be reached: {self.name} puts the floor E at {self.E:.4g}; ask for "
                "more than that"
            )
        return loss - self.E

    def outside(self, params: float, tokens: float) -> str | None:
        """A warning when a point lies beyond the runs the law was fitted on."""
        beyond = [
            f"{human(value)} {what} against {human(known[0])} to {human(known[1])}"
            for what, value, known in (("parameters", params, self.params_range), ("tokens", tokens, self.tokens_range))
            if known is not None and not known[0] * 0.999 <= value <= known[1] * 1.001
        ]
        return f"{self.name} is used outside its runs: {' and '.join(beyond)}" if beyond else None

    def as_dict(self) -> dict[str, Any]:
        """The constants and the range, as ``minnow scaling fit --json`` writes them."""
        return {
            "name": self.name,
            **{key: getattr(self, key) for key in ("E", "A", "B", "alpha", "beta")},
            "params_range": self.params_range,
            "tokens_range": self.tokens_range,
            "repeats": vars(self.repeats).copy(),
        }


@dataclass(frozen=True)
class T2Law:
    """Train-to-test law, approach 1: ``E_i[-log pass@k] = E + A N^-alpha + B D^-beta + G k^-gamma`` (2604.01411)."""

    name: str
    E: float
    A: float
    B: float
    G: float
    alpha: float
    beta: float
    gamma: float
    params_range: tuple[float, float] | None = None
    tokens_range: tuple[float, float] | None = None

    def loss(self, params: ArrayLike, tokens: ArrayLike, samples: ArrayLike) -> Array:
        """Mean over questions of ``-log pass@k``, in nats."""
        n, d, k = (np.asarray(value, float) for value in (params, tokens, samples))
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta + self.G * k**-self.gamma)

    def slope(self, params: float, flops: float, question_flops: float) -> float:
        """``N dL/dN`` along both budgets, ``D = C / 6N`` and ``k = C_inf / 2N``; 0 at the optimum."""
        tokens, samples = flops / (TRAIN_FLOPS * params), question_flops / (INFERENCE_FLOPS * params)
        return (
            -self.alpha * self.A * params**-self.alpha
            + self.beta * self.B * tokens**-self.beta
            + self.gamma * self.G * samples**-self.gamma
        )

    def optimum(self, flops: float, question_flops: float) -> tuple[float, float, float]:
        """Parameters, tokens and samples of least loss; never fewer than one sample.

        The slope only rises with the size, so its zero is found by halving.
        """
        largest = largest_for_question(question_flops)
        params = turning_point(lambda size: self.slope(size, flops, question_flops) < 0, largest)
        return params, flops / (TRAIN_FLOPS * params), question_flops / (INFERENCE_FLOPS * params)


def largest_for_question(question_flops: float) -> float:
    """Parameters of the model that a question's FLOPs pay one sample of.

    Raises:
        UserError: they pay for none.
    """
    if question_flops <= INFERENCE_FLOPS:
        raise UserError(
            f"{question_flops:g} FLOPs per question do not pay for one token of the smallest model; give more"
        )
    return question_flops / INFERENCE_FLOPS


def turning_point(holds: Callable[[float], bool], high: float) -> float:
    """Where, between 1 and ``high``, something that holds for small numbers stops holding; found by halving."""
    low = 1.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def worth_of_repeats(total: Array, unique: Array, decay: float | Array) -> Array:
    """``u (1 + R* (1 - exp(-R / R*)))`` with ``R = total / u - 1`` repetitions."""
    return np.asarray(unique * (1 + decay * -np.expm1(-(total / unique - 1) / decay)))


def human(value: float) -> str:
    """A count in the unit of the field: ``354M``, ``1.5B``, ``28T``."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{suffix}" if value / size < 999.5 else f"{value / size:,.0f}{suffix}"
    return f"{value:.3g}"


# Fitted ranges: Hoffmann et al.'s abstract; the runs that the replication read off their figure 4.
HOFFMANN = Law(
    "Hoffmann", 1.6934, 406.4, 410.7, 0.33917, 0.28491, "arXiv 2203.15556, unrounded", (7e7, 1.6e10), (5e9, 5e11)
)
EPOCH = Law("Epoch", 1.817, 482.01, 2085.43, 0.348, 0.366, "arXiv 2404.10102", (5.73e7, 1.62e10), (2.45e8, 3.18e11))
