from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import scaling_fit
from minnow.scaling.points import Points


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., Points]:
    """Runs that follow a law, with noise on the log loss, as the benchmark draws them."""
    return scaling_fit.synthetic


@pytest.fixture(scope="session")
def public_runs() -> Path:
    """The table of arXiv 2403.08540, where it lies beside the checkout."""
    for folder in Path(__file__).resolve().parents:
        file = folder / "shared/data/scaling_overtraining_gadre_c4_rpj.csv"
        if file.exists():
            return file
    pytest.skip("scaling_overtraining_gadre_c4_rpj.csv is not in shared/data beside or above the checkout")
