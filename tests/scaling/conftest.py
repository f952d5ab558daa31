from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minnow.scaling.laws import EPOCH, Law
from minnow.scaling.points import Points


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., Points]:
    """Runs that follow a law, with noise on the log loss, in the range of the Chinchilla study."""

    def make(seed: int = 0, noise: float = 0.009, law: Law = EPOCH, count: int = 240) -> Points:
        random = np.random.default_rng(seed)
        flops = np.exp(random.uniform(math.log(6e18), math.log(3e21), count))
        params = np.sqrt(flops / 120) * np.exp(random.uniform(-1.8, 1.8, count))
        tokens = flops / (6 * params)
        loss = law.loss(params, tokens) * np.exp(noise * random.standard_normal(count))
        return Points(params, tokens, loss, places=tuple(f"run {row}" for row in range(count)))

    return make


@pytest.fixture(scope="session")
def public_runs() -> Path:
    """The table of arXiv 2403.08540, where it lies beside the checkout."""
    for folder in Path(__file__).resolve().parents:
        file = folder / "shared/data/scaling_overtraining_gadre_c4_rpj.csv"
        if file.exists():
            return file
    pytest.skip("scaling_overtraining_gadre_c4_rpj.csv is not in shared/data beside or above the checkout")
