"""Learning-rate schedules: multipliers of the peak rate, pure functions of the step."""

from __future__ import annotations

import math


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """WSD (arXiv 2404.06395): linear up, flat, linear down to zero.

    Args:
        step: 0-based.
        warmup, decay: shares of ``steps``.
    """
    warmup_steps, decay_steps = warmup * steps, decay * steps
    up = (step + 1) / warmup_steps if warmup_steps else 1.0
    down = (steps - step) / decay_steps if decay_steps else 1.0
    return max(0.0, min(1.0, up, down))


def cosine(step: int, steps: int, warmup: float, decay: float) -> float:
    """Linear up over ``warmup * steps``, then half a cosine that ends at ``1 - decay`` of the peak."""
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    progress = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return 1 - decay * 0.5 * (1 - math.cos(math.pi * progress))


SCHEDULES = {"wsd": warmup_stable_decay, "cosine": cosine}
