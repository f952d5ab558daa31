"""An additive model of latency: what each block costs on this machine, fitted to some of the models that are searched.

Of that size, because what a block costs depends on how much of the whole the processor's caches hold. For one width and
type, milliseconds are linear in: one, the vocabulary, convolution layers, attention layers, their key/value heads, and the
feed-forwards' widths (times the layers). Between widths nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minnow.device.design_space import Design

Array = NDArray[np.float64]

BLOCKS = ("fixed", "head, per 1,000 tokens", "convolution layer", "attention layer", "key/value head of a layer",
          "feed-forward, per 1,000 of width")  # fmt: skip

TABLE_DESIGNS = 12
"""Twice as many as there are blocks."""

_EXCHANGES = 20


def features(design: Design) -> Array:
    """How many of each of :data:`BLOCKS` a design has."""
    attending = design.attention_layers
    return np.array(
        [
            1.0,
            design.vocab / 1e3,
            design.depth - attending,
            attending,
            attending * design.kv_heads,
            design.depth * design.feed_forward / 1e3,
        ]
    )


def table_designs(kept: Sequence[Design]) -> list[Design]:
    """Designs of one width and type to measure for a table: :data:`TABLE_DESIGNS` of those that it is to predict.

    They are all of the size that is searched, so that they meet the caches as the others do; one change at a time of a
    middle design would leave it. They are chosen by exchange to be D-optimal: of all choices they leave the costs least
    uncertain, which keeps the largest error of a prediction small too (Kiefer and Wolfowitz 1960).
    """
    # Errors are relative, and a time is about as large as the model.
    rows = np.array([features(one) / one.parameters for one in kept])
    rows /= np.abs(rows).max(axis=0)
    spread = rows.T @ rows / len(rows) + 1e-9 * np.eye(rows.shape[1])
    chosen: list[int] = []

    def gains(places: Sequence[int]) -> Array:
        """By what each design would multiply the determinant of the information of those at ``places``, less one."""
        information = 1e-3 * spread + rows[places].T @ rows[places]
        return np.einsum("ij,ij->i", rows, np.linalg.solve(information, rows.T).T)

    while len(chosen) < min(TABLE_DESIGNS, len(kept)):
        found = gains(chosen)
        found[chosen] = -1.0
        chosen.append(int(np.argmax(found)))
    for _ in range(_EXCHANGES):
        before = sorted(chosen)
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            found = gains(rest)
            found[rest] = -1.0
            chosen[place] = max((chosen[place], int(np.argmax(found))), key=lambda one: found[one])
        if sorted(chosen) == before:
            break
    return [kept[place] for place in sorted(chosen)]


@dataclass(frozen=True)
class BlockTable:
    """Costs of the blocks of one width and type, in milliseconds.

    Attributes:
        ttft, token: of :data:`BLOCKS`, for a prompt and for a decoded token.
        library: bytes that the runtime holds here beyond what :meth:`Design.memory` says.
        errors: largest relative residual of the fit, of the two.
    """

    width: int
    kind: str
    ttft: Array
    token: Array
    library: int
    errors: tuple[float, float]

    def predict(self, design: Design) -> tuple[float, float]:
        """Milliseconds until the first token, and for a decoded token."""
        counts = features(design)
        return float(counts @ self.ttft), float(counts @ self.token)

    def memory(self, design: Design, context: int) -> int:
        """Bytes that llama.cpp holds at most on this machine."""
        return design.memory(context) + self.library


def fit_table(
    width: int, kind: str, context: int, measured: Sequence[tuple[Design, Mapping[str, float]]]
) -> BlockTable:
    """Least squares on relative errors over ``ttft_ms`` and ``token_ms`` of designs; no block costs less than nothing.

    Args:
        context: at which their ``memory`` was measured.
    """
    counts = np.array([features(design) for design, _ in measured])
    library = int(np.median([found["memory"] - design.memory(context) for design, found in measured]))
    found = []
    for name in ("ttft_ms", "token_ms"):
        times = np.array([values[name] for _, values in measured])
        costs = _non_negative(counts / times[:, None], np.ones(len(times)))
        found.append((costs, float(np.abs(counts @ costs / times - 1).max())))
    (ttft, first), (token, second) = found
    return BlockTable(width, kind, ttft, token, library, (first, second))


def _non_negative(matrix: Array, target: Array) -> Array:
    """Least squares with what comes out negative held at 0, one block after another: six unknowns need no better."""
    free = list(range(matrix.shape[1]))
    while True:
        scale = np.abs(matrix[:, free]).max(axis=0)
        solution = np.linalg.lstsq(matrix[:, free] / scale, target, rcond=1e-9)[0] / scale
        if (solution >= 0).all():
            costs = np.zeros(matrix.shape[1])
            costs[free] = solution
            return costs
        free.pop(int(np.argmin(solution * scale)))
