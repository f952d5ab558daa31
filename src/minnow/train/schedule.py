"""What changes over a run, as pure functions of the step: the learning rate, the batch's size and its rows' length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minnow.errors import UserError

Schedule = Literal["wsd", "cosine", "linear"]
DecayShape = Literal["linear", "cosine", "1-sqrt", "exponential"]

DECAY_SHAPES: dict[DecayShape, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "1-sqrt": lambda left: 1 - math.sqrt(1 - left),
    "exponential": lambda left: 0.01 ** (1 - left) if left else 0.0,
}
"""Multipliers of the peak rate from the share of the decay that is left, 1 at its start and 0 at its end
(1-sqrt: arXiv 2405.18392; exponential: to a hundredth)."""


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float, shape: DecayShape = "linear") -> float:
    """WSD (arXiv 2404.06395): linear up, flat, then down to zero.

    Args:
        step: 0-based.
        warmup, decay: shares of ``steps``.
        shape: one of :data:`DECAY_SHAPES`.
    """
    warmup_steps, decay_steps = warmup * steps, decay * steps
    up = (step + 1) / warmup_steps if warmup_steps else 1.0
    left = (steps - step) / decay_steps if decay_steps else 1.0
    return max(0.0, min(1.0, up, DECAY_SHAPES[shape](max(0.0, min(1.0, left)))))


def cosine(step: int, steps: int, warmup: float, decay: float, shape: DecayShape = "linear") -> float:
    """Linear up over ``warmup * steps``, then half a cosine that ends at ``1 - decay`` of the peak."""
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    progress = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return 1 - decay * 0.5 * (1 - math.cos(math.pi * progress))


def linear(step: int, steps: int, warmup: float, decay: float, shape: DecayShape = "linear") -> float:
    """Linear up over ``warmup * steps``, then a straight line that ends at ``1 - decay`` of the peak."""
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    return 1 - decay * (step - warmup_steps) / max(1.0, steps - warmup_steps)


SCHEDULES: dict[Schedule, Callable[[int, int, float, float, DecayShape], float]] = {
    "wsd": warmup_stable_decay,
    "cosine": cosine,
    "linear": linear,
}
"""Multipliers of the peak rate at a step; only ``wsd`` has a decay phase whose shape can be chosen."""


@dataclass(frozen=True)
class Ramp:
    """Batch-size and sequence-length warm-up: both double in equal stages until they are whole.

    Attributes:
        steps: of the warm-up; 0 for none.
        rows: the first stage's steps read one of so many of a step's rows; a power of two.
        length: the first stage's rows are cut into so many, the tokens of a step staying the same; a power of two.
    """

    steps: int = 0
    rows: int = 1
    length: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0 or any(value < 1 or value & (value - 1) for value in (self.rows, self.length)):
            raise UserError(
                f"ramp: steps is {self.steps}, rows {self.rows} and length {self.length}; steps is 0 or more, the "
                "others are 1, 2, 4, 8, ..."
            )
        if (self.rows > 1 or self.length > 1) != bool(self.steps):
            raise UserError("ramp: give its steps, and rows or length above 1, or neither")

    def check(self, rows: int, length: int) -> None:
        """Raise UserError where a whole batch of ``rows`` rows of ``length`` tokens cannot be divided so."""
        if rows % self.rows or length % self.length or length // self.length < 2:
            raise UserError(
                f"ramp: {rows} rows of {length} tokens cannot be divided into {self.rows} and {self.length}; use "
                "divisors of both, and pieces of at least 2 tokens"
            )

    def divisors(self, step: int) -> tuple[int, int]:
        """By how much a step's rows and their length are divided."""
        return _stage(self.rows, step, self.steps), _stage(self.length, step, self.steps)

    def rows_before(self, step: int, rows: int) -> int:
        """Rows that all steps before ``step`` have read, of whole batches of ``rows`` rows."""
        doublings = self.rows.bit_length() - 1
        if not doublings:
            return step * rows
        ends = [-(-(stage + 1) * self.steps // doublings) for stage in range(doublings)]
        read, begin = max(0, step - self.steps) * rows, 0
        for stage, end in enumerate(ends):
            read += max(0, min(step, end) - begin) * (rows * 2**stage // self.rows)
            begin = end
        return read


def _stage(whole: int, step: int, steps: int) -> int:
    if step >= steps:
        return 1
    doublings = whole.bit_length() - 1
    return whole >> (step * doublings // steps)
