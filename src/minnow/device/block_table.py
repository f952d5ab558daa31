"""An additive model of latency: what each block costs on this machine, fitted to models that differ in one block.

The models are of the size that is searched, because what a block costs depends on whether the whole fits the processor's
caches. For one width and type, milliseconds are linear in: one, the vocabulary, convolution layers, attention layers, their
key/value heads, and the feed-forwards' widths (times the layers). Between widths nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from minnow.device.design_space import Design

Array = NDArray[np.float64]

BLOCKS = ("fixed", "head, per 1,000 tokens", "convolution layer", "attention layer", "key/value head of a layer",
          "feed-forward, per 1,000 of width")  # fmt: skip


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
    """Designs of one width and type whose times tell its blocks apart: a middle one, and one change at a time."""
    depths, widths = sorted(one.depth for one in kept), sorted(one.feed_forward for one in kept)
    vocabs, heads = sorted({one.vocab for one in kept}), sorted({one.kv_heads for one in kept})
    depth, wide = max(4, depths[len(depths) // 2]), widths[len(widths) // 2]
    middle = replace(
        kept[0], depth=depth, attention_layers=max(1, depth // 3), kv_heads=heads[len(heads) // 2], feed_forward=wide,
        vocab=vocabs[0],
    )  # fmt: skip
    many = replace(middle, attention_layers=depth - 1)
    changed = [
        middle,
        replace(middle, depth=max(2, depth // 2), attention_layers=max(1, depth // 6)),
        replace(middle, depth=depth + max(2, depth // 3)),
        many,
        replace(many, kv_heads=heads[-1]),
        replace(many, kv_heads=heads[0]),
        replace(middle, feed_forward=max(64, widths[0])),
        replace(middle, feed_forward=max(widths[-1], wide + 64)),
        replace(middle, vocab=vocabs[-1] if len(vocabs) > 1 else 2 * vocabs[0]),
    ]
    return list(dict.fromkeys(changed))


@dataclass(frozen=True)
class BlockTable:
    """Costs of the blocks of one width and type, in milliseconds.

    Attributes:
        ttft, token: of :data:`BLOCKS`, for a prompt and for a decoded token.
        errors: largest relative residual of the fit, of the two.
    """

    width: int
    kind: str
    ttft: Array
    token: Array
    errors: tuple[float, float]

    def predict(self, design: Design) -> tuple[float, float]:
        """Milliseconds until the first token, and for a decoded token."""
        counts = features(design)
        return float(counts @ self.ttft), float(counts @ self.token)


def fit_table(width: int, kind: str, measured: Sequence[tuple[Design, float, float]]) -> BlockTable:
    """Least squares on relative errors over ``(design, ttft_ms, token_ms)``; no block costs less than nothing."""
    counts = np.array([features(design) for design, _, _ in measured])
    found = []
    for column in (1, 2):
        times = np.array([row[column] for row in measured])
        costs = _non_negative(counts / times[:, None], np.ones(len(times)))
        found.append((costs, float(np.abs(counts @ costs / times - 1).max())))
    (ttft, first), (token, second) = found
    return BlockTable(width, kind, ttft, token, (first, second))


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
