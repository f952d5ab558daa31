"""What a token seen again is worth (arXiv 2305.16264), from runs of one epoch and of many."""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnow.errors import UserError
from minnow.scaling import minimise
from minnow.scaling.laws import Array, Law, Repeats, worth_of_repeats
from minnow.scaling.points import Points, resampled


def fit_repeats(
    points: Points, law: Law, draws: int = 0, seed: int = 0
) -> tuple[Repeats, dict[str, tuple[float, float]]]:
    """What repeated tokens are worth, with the law's constants held fixed, as arXiv 2305.16264 fits it.

    R*_D is searched over 0.1 to 1,000 by zooming in on the Huber loss; R*_N likewise where some size exceeds the one
    that its unique tokens feed, else the published value stays. Intervals are over ``draws`` bootstrap draws.

    Raises:
        UserError: no column of unique tokens, or no run repeats its tokens.
    """
    if points.unique is None:
        raise UserError("the repeated form needs the number of different tokens of each run; name it with --unique")
    unique = np.minimum(points.unique, points.tokens)
    if not (points.tokens > 1.01 * points.unique).any():
        raise UserError("no run sees its tokens more than once, so nothing tells what repeats are worth; add such runs")
    fed = np.minimum(points.params, law.params_for(unique))
    excess = bool((points.params > 1.01 * fed).any())
    weights = np.concatenate([np.ones((1, len(points))), resampled(len(points), draws, seed)])

    def cost(tokens_decay: Array, params_decay: Array) -> Array:
        """Weighted Huber losses ``[W, G]`` of ``G`` pairs of decays for each row of weights."""
        d, n = tokens_decay[..., None], params_decay[..., None]
        seen, size = worth_of_repeats(points.tokens, unique, d), worth_of_repeats(points.params, fed, n)
        off = np.abs(np.log(law.E + law.A * size**-law.alpha + law.B * seen**-law.beta) - np.log(points.loss))
        huber = np.where(off < minimise.HUBER, off**2 / 2, minimise.HUBER * (off - minimise.HUBER / 2))
        return np.asarray((huber * weights[:, None]).sum(axis=-1))

    # Both at once, for they trade against each other: a square of candidates that halves around the best of them.
    side = np.linspace(-1, 1, 9)
    square = np.array(list(itertools.product(side, side if excess else (0.0,))))
    decays = np.log(np.tile([10.0, 10.0 if excess else Repeats().params], (len(weights), 1)))
    width = math.log(100.0)
    for _ in range(16):
        tried = decays[:, None] + width * square
        best = cost(np.exp(tried[..., 0]), np.exp(tried[..., 1])).argmin(axis=1)
        decays = tried[np.arange(len(tried)), best]
        width /= 2
    found = np.exp(decays)
    intervals = {
        name: (float(np.percentile(found[1:, which], 2.5)), float(np.percentile(found[1:, which], 97.5)))
        for which, name in enumerate(("tokens", "params"))
        if draws and (which == 0 or excess)
    }
    return Repeats(float(found[0, 0]), float(found[0, 1])), intervals
