"""How long one training step takes on this machine, measured in about two seconds."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch

from minnow.data.rows import Batch
from minnow.model.accounting import flops_per_token
from minnow.model.backbone import Backbone
from minnow.model.config import ModelConfig
from minnow.train.objectives import next_token
from minnow.train.optimizer import Optimizer, OptimizerSettings, choose_muon
from minnow.train.precision import compute_dtype, peak_flops

BUDGET_SECONDS = 2.0
_PASSES = 3  # of a step that must fit the budget: one to warm up, two to time
_OVERHEAD = 2.0  # a whole step over its matrix products, to judge what fits
_PRODUCT_TOKENS = 256


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step and how they were found.

    Attributes:
        method: ``"steps"`` (real ones of ``measured_rows`` rows; the forward and backward pass is scaled up to all of
            them) or ``"products"`` (matrix products of the model's shapes alone, so a step takes longer than this).
        repeats: timed steps; of the matrix shapes, how many were timed.
    """

    seconds: float
    method: str
    measured_rows: int
    repeats: int


def measure_step(
    config: ModelConfig,
    rows: int,
    length: int,
    muon: bool = True,
    budget: float = BUDGET_SECONDS,
    real_steps: bool = True,
) -> StepTime:
    """Time a next-token step of ``rows`` rows of ``length`` tokens, random ones: time does not depend on which.

    Args:
        budget: seconds this may take, set-up included.
        real_steps: False where the model's training state would not fit the memory.
    """
    started = time.perf_counter()
    per_row = flops_per_token(config, length // 2) * length
    fitting = int(budget * peak_flops(torch.device("cpu")) / (_OVERHEAD * _PASSES * per_row)) if real_steps else 0
    if not fitting:
        return _product_time(config, rows * per_row, started + budget)
    return _real_time(config, rows, min(rows, fitting), length, muon, started + budget)


def takes_muon(settings: OptimizerSettings, config: ModelConfig, tokens: int) -> bool:
    """Whether Muon updates the matrices in steps of ``tokens`` tokens."""
    with torch.device("meta"):
        model = Backbone(config)
    return bool(choose_muon(settings, model, tokens).muon)


def _real_time(config: ModelConfig, rows: int, measured: int, length: int, muon: bool, deadline: float) -> StepTime:
    model = Backbone(config)
    model.initialise(seed=0)
    settings = OptimizerSettings(muon=muon)
    optimizer = Optimizer(model, settings, compute_dtype(), model.matrices())
    tokens = torch.randint(config.vocab_size, (measured, length), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.ones((measured, length), dtype=torch.int16))

    def step() -> tuple[float, float]:
        begin = time.perf_counter()
        loss = next_token(model, batch)
        loss.total.backward()
        optimizer.collect()
        middle = time.perf_counter()
        optimizer.step(settings.learning_rate, loss.weight)
        return middle - begin, time.perf_counter() - middle

    step()
    times = [step()]
    while time.perf_counter() + sum(times[-1]) < deadline:
        times.append(step())
    passes, updates = (statistics.median(part) for part in zip(*times, strict=True))
    return StepTime(passes * rows / measured + updates, "steps", measured, len(times))


def _product_time(config: ModelConfig, flops: float, deadline: float) -> StepTime:
    """From the three products (output, two gradients) of each matrix shape, small ones first, while there is time."""
    with torch.device("meta"):
        model = Backbone(config)
    names = model.matrices().keys() | {"embedding"}
    shapes = {tuple(weight.shape) for name, weight in model.named_parameters() if name in names}
    done, seconds, timed = 0.0, 0.0, 0
    for outputs, inputs in sorted(shapes, key=math.prod):
        work = 3 * 2.0 * _PRODUCT_TOKENS * outputs * inputs
        if timed and time.perf_counter() + work * seconds / done > deadline:
            break
        x, g, w = _full(_PRODUCT_TOKENS, inputs), _full(_PRODUCT_TOKENS, outputs), _full(outputs, inputs)
        seconds += sum(_product_seconds(*pair) for pair in ((x, w.t()), (g, w), (g.t(), x)))
        done, timed = done + work, timed + 1
    return StepTime(flops * seconds / done, "products", 0, timed)


def _product_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    torch.mm(left[:8], right)  # wakes the threads and brings the operand in
    begin = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - begin


def _full(rows: int, columns: int) -> torch.Tensor:
    return torch.full((rows, columns), 0.01, dtype=compute_dtype())
