"""What a run would take on this machine, before it is started: parameters, FLOPs, memory, time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from minnow.machine import machine, peak_rss_bytes
from minnow.model import kernels
from minnow.model.accounting import flops_per_token, parameter_parts
from minnow.model.config import ModelConfig
from minnow.recipe.schema import Recipe, StageSpec
from minnow.recipe.speed import BUDGET_SECONDS, StepTime, measure_step, takes_muon
from minnow.train.loop import TrainSettings
from minnow.train.memory import training_memory
from minnow.train.precision import compute_dtype


def plan(recipe: Recipe) -> dict[str, Any]:
    """The plan as numbers. Takes about two seconds and writes nothing.

    Returns:
        ``model`` (``parameters``, ``parts``, ``shares``), ``machine`` (with ``threads``, ``kernels``, ``dtype``),
        ``stages`` in order and ``total``. A stage that trains on packed text carries ``steps``, ``rows``,
        ``row_length``, ``tokens``, ``flops_per_token``, ``memory`` (bytes), ``seconds`` and ``measured``; any other
        one ``estimated: False`` and the ``reason``.
    """
    config = recipe.shape.config(recipe.shape.vocab_size)
    parts = parameter_parts(config)
    total = sum(parts.values())
    process = peak_rss_bytes()
    trained = [spec for spec in recipe.stages.values() if spec.trains_on_text]
    shapes = {_step_shape(spec, config) for spec in trained}
    again = recipe.parallel.activation_checkpointing
    memory = {shape: training_memory(config, *shape, checkpointed=again) for shape in shapes}
    with _threads(recipe.threads) as threads:
        times = {
            shape: measure_step(
                config,
                *shape,
                budget=BUDGET_SECONDS / len(shapes),
                real_steps=memory[shape]["peak"] < machine()["memory_bytes"] / 2,
            )
            for shape in shapes
        }
    stages: list[dict[str, Any]] = [
        _stage(spec, config, total, memory[shape := _step_shape(spec, config)], process, times[shape])
        if spec.trains_on_text
        else {"stage": spec.name, "kind": spec.kind, "estimated": False, "reason": _reason(spec)}
        for spec in recipe.stages.values()
    ]
    known = [stage for stage in stages if stage["estimated"]]
    return {
        "name": recipe.name,
        "model": {
            "parameters": total,
            "parts": parts,
            "shares": {name: count / total for name, count in parts.items()},
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "layers": config.num_layers,
        },
        "machine": {
            **machine(),
            "threads": threads,
            "dtype": str(compute_dtype()).removeprefix("torch."),
            "kernels": kernels.describe(),
        },
        "stages": stages,
        "total": {
            "tokens": sum(stage["tokens"] for stage in known),
            "flops": sum(stage["flops"] for stage in known),
            "seconds": sum(stage["seconds"] for stage in known),
            "peak_bytes": max((stage["memory"]["peak"] for stage in known), default=None),
            "not_estimated": [stage["stage"] for stage in stages if not stage["estimated"]],
        },
    }


def _step_shape(spec: StageSpec, config: ModelConfig) -> tuple[int, int, bool]:
    """What decides a step's time and memory: rows, row length and whether Muon updates the matrices."""
    rows, length = spec.settings.rows, spec.settings.row_length
    return rows, length, takes_muon(spec.settings.training.optimizer, config, rows * length)


def _reason(spec: StageSpec) -> str:
    if hasattr(spec.settings, "training"):
        return "its time hangs on the length of the model's own answers"
    return "does not train"


def _stage(
    spec: StageSpec, config: ModelConfig, parameters: int, memory: dict[str, int], process: int, time: StepTime
) -> dict[str, Any]:
    settings = spec.settings
    training: TrainSettings = settings.training
    tokens = training.steps * settings.rows * settings.row_length
    per_token = flops_per_token(config, settings.row_length // 2)
    return {
        "stage": spec.name,
        "kind": spec.kind,
        "estimated": True,
        "steps": training.steps,
        "rows": settings.rows,
        "row_length": settings.row_length,
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "memory": {"process": process, **memory, "peak": process + memory["peak"]},
        "measured": {
            "method": time.method,
            "repeats": time.repeats,
            "rows": time.measured_rows,
            "seconds_per_step": time.seconds,
            "tokens_per_second": settings.rows * settings.row_length / time.seconds,
        },
        "seconds": training.steps * time.seconds,
    }


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """The thread count the run will use, for as long as the context lasts."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted or before)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
