"""How likely a local answer is good, read off the hidden states of its beginning by a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minnow.errors import UserError
from minnow.files import read_json, write_json

_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A logistic regression on an answer's hidden states.

    Attributes:
        weights: ``[2 width]``, for the mean of the states and for the last; ``bias``: added to their product.
        tokens: of an answer's beginning, that it was fitted on.
        calibration: its signal on earlier answers it was not fitted on, and whether each was good.
    """

    weights: np.ndarray
    bias: float
    tokens: int
    calibration: tuple[tuple[float, bool], ...] = ()

    def __call__(self, hidden: np.ndarray) -> float:
        """The probability that the answer is good.

        Args:
            hidden: ``[positions, width]``, from the prompt's last token on.

        Raises:
            UserError: it is the probe of a model of another width.
        """
        return self.of(summary(hidden))

    def of(self, features: np.ndarray) -> float:
        """The same of a :func:`summary`."""
        if len(features) != len(self.weights):
            raise UserError(
                f"the probe was fitted on a model of width {len(self.weights) // 2}, and this one has {len(features) // 2}; "
                "fit one with 'minnow route fit'"
            )
        return float(_sigmoid(features @ self.weights + self.bias))

    def save(self, path: Path) -> None:
        write_json(path, {"weights": self.weights.tolist(), "bias": self.bias, "tokens": self.tokens, "calibration": self.calibration})  # fmt: skip


def load_probe(path: Path) -> Probe:
    """
    Raises:
        UserError: ``path`` is no file that :meth:`Probe.save` wrote.
    """
    try:
        saved = read_json(path)
        rows = tuple((float(signal), bool(good)) for signal, good in saved["calibration"])
        return Probe(np.array(saved["weights"], float), float(saved["bias"]), int(saved["tokens"]), rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no probe; make one with 'minnow route fit'") from error


def summary(hidden: np.ndarray) -> np.ndarray:
    """What a probe reads of hidden states ``[positions, width]``: their mean and the last, ``[2 width]``."""
    return np.concatenate([hidden.mean(0), hidden[-1]]).astype(float)


def fit_probe(features: np.ndarray, good: Sequence[bool], tokens: int) -> Probe:
    """Fit a probe to earlier answers, its L2 penalty chosen by cross-validation.

    Args:
        features: ``[answers, 2 width]``, of :func:`summary`.
        tokens: of the beginnings they are of.

    Raises:
        UserError: too few answers, or all good or all bad.
    """
    labels = np.asarray(good, float)
    if min(labels.sum(), (1 - labels).sum()) < 2 * _FOLDS:
        raise UserError(
            f"{int(labels.sum())} good and {int((1 - labels).sum())} bad answers are too few to tell them apart; "
            f"at least {2 * _FOLDS} of each are needed"
        )
    center, scale = features.mean(0), features.std(0) + 1e-6
    whitened = (features - center) / scale
    folds = np.arange(len(labels)) % _FOLDS

    def loss(penalty: float) -> float:
        total = 0.0
        for fold in range(_FOLDS):
            inside, outside = folds != fold, folds == fold
            weights, bias = logistic_regression(whitened[inside], labels[inside], penalty)
            score = whitened[outside] @ weights + bias
            total += float(np.logaddexp(0, np.where(labels[outside] > 0, -score, score)).sum())
        return total

    weights, bias = logistic_regression(whitened, labels, min(_PENALTIES, key=loss))
    return Probe(weights / scale, bias - float(center @ (weights / scale)), tokens)


def logistic_regression(features: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and bias that minimise ``sum log loss + penalty/2 |weights|^2``, by Newton's method.

    Args:
        features: ``[n, d]``; labels: ``[n]`` of 0 and 1.
    """
    wide = np.column_stack([features, np.ones(len(features))])
    ridge = np.full(wide.shape[1], penalty)
    ridge[-1] = 1e-9
    found = np.zeros(wide.shape[1])
    for _ in range(50):
        shares = _sigmoid(wide @ found)
        gradient = wide.T @ (shares - labels) + ridge * found
        hessian = (wide * (shares * (1 - shares))[:, None]).T @ wide + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        found -= step / max(1.0, float(np.abs(wide @ step).max()) / 5)  # far steps overshoot where shares saturate
        if np.abs(step).max() < 1e-8:
            break
    return found[:-1], float(found[-1])


def auroc(signals: Sequence[float], good: Sequence[bool]) -> float:
    """How often a good answer's signal is above a bad one's, ties counted half; NaN where there is only one kind."""
    values, labels = np.asarray(signals, float), np.asarray(good, bool)
    wins = sum(float((values[~labels] < each).sum()) + float((values[~labels] == each).sum()) / 2 for each in values[labels])  # fmt: skip
    pairs = int(labels.sum()) * int((~labels).sum())
    return wins / pairs if pairs else float("nan")


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))
