"""How hard worked examples are: the share of answers that a ladder of models gets wrong, and a cheap guess at it.

The guess is ridge regression on a few numbers of the texts, so that a sample can be measured and the rest foretold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minnow.data.duplicates import words_of
from minnow.errors import UserError

FEWEST = 20
"""Measured examples below which nothing is foretold."""

_RIDGE = 1.0  # in units of the standardised features
_FOLDS = 5


def features(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Numbers ``[N, F]`` of prompts with their ideal answers.

    Words of either, digits of either, different words of the answer, the rarity of the prompt's words among all prompts,
    and the share of the answer's words that the prompt has not.
    """
    asked = [words_of(prompt) for prompt, _ in pairs]
    counts = Counter(word for words in asked for word in set(words))
    rows = []
    for (prompt, answer), words in zip(pairs, asked, strict=True):
        said, known = words_of(answer), set(words)
        rarity = [math.log((1 + len(pairs)) / counts[word]) for word in words]
        rows.append(
            [
                math.log1p(len(words)),
                math.log1p(len(said)),
                math.log1p(sum(map(str.isdigit, prompt))),
                math.log1p(sum(map(str.isdigit, answer))),
                math.log1p(len(set(said))),
                sum(rarity) / max(1, len(rarity)),
                sum(word not in known for word in said) / max(1, len(said)),
            ]
        )
    return np.array(rows, np.float64).reshape(len(rows), -1)


@dataclass(frozen=True)
class Predictor:
    """Difficulties from features: ``clip(mean + (x - centre) / scale @ weights, 0, 1)``."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    mean: float

    @classmethod
    def fit(cls, x: NDArray[np.float64], difficulty: NDArray[np.float64]) -> Predictor:
        """Ridge regression of ``difficulty [N]`` on ``x [N, F]``, standardised.

        Raises:
            UserError: fewer than :data:`FEWEST` examples.
        """
        if len(x) < FEWEST:
            raise UserError(f"{len(x)} measured examples foretell nothing; measure at least {FEWEST}")
        centre, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
        z = (x - centre) / scale
        mean = float(difficulty.mean())
        weights = np.linalg.solve(z.T @ z + _RIDGE * np.eye(x.shape[1]), z.T @ (difficulty - mean))
        return cls(centre, scale, weights, mean)

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(self.mean + (x - self.centre) / self.scale @ self.weights, 0.0, 1.0)


def foretold(x: NDArray[np.float64], difficulty: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation of measured difficulties with those foretold by the other folds; None where either
    is one number, or the folds hold fewer than :data:`FEWEST`."""
    if len(x) * (_FOLDS - 1) // _FOLDS < FEWEST:
        return None
    guess = np.empty_like(difficulty)
    for fold in range(_FOLDS):
        held = np.arange(len(x)) % _FOLDS == fold
        guess[held] = Predictor.fit(x[~held], difficulty[~held])(x[held])
    first, second = _ranks(guess), _ranks(difficulty)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
