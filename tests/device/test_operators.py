"""Operators' costs from models whose times are made up of known costs, and that the real runtimes open those models."""

from __future__ import annotations

import math
from typing import Any

import pytest

from minnow.device import operators as module
from minnow.device.bench import Engine
from minnow.device.operators import FEED_FORWARD, operator_costs, operators
from minnow.device.timing import Speed, time_shapes
from minnow.errors import UserError
from minnow.model.config import Attention, GatedDelta, GatedLinear, ModelConfig, ShortConv

COSTS = {ShortConv: 1.0, Attention: 2.0, GatedDelta: 5.0, GatedLinear: 7.0}


def known_times(shapes: dict[str, ModelConfig], prompts: list[int], *more: Any, **named: Any) -> dict[str, list[Speed]]:
    found = {}
    for name, config in shapes.items():
        layers = sum(COSTS[type(layer.mixer)] + layer.feed_forward.width / 1000 for layer in config.layers)
        found[name] = [Speed(n, 10 + n * layers, 1 + layers, 0.0, 1.0, 0, 0) for n in prompts]
    return found


@pytest.mark.parametrize("engine", ["llama.cpp", "torch"])
def test_costs_of_single_layers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_shapes", known_times)
    rows = operator_costs(512, (100,), engine)["rows"]
    mixers = operators(512)
    assert [row["operator"] for row in rows] == [*mixers, FEED_FORWARD]
    for row in rows:
        if row["operator"] == "gated linear attention" and engine == "llama.cpp":
            assert row["prefill_ms"] is row["decode_us"] is row["decode_ratio"] is None
            continue
        mixer = mixers.get(row["operator"])
        cost = 4.5 * 512 / 1000 if mixer is None else COSTS[type(mixer)]
        assert (row["prefill_ms"], row["decode_us"]) == (pytest.approx(100 * cost), pytest.approx(1e3 * cost))
        assert (row["prefill_ratio"], row["decode_ratio"]) == (pytest.approx(cost), pytest.approx(cost))


def test_llama_cpp_runs_every_model_that_is_compared() -> None:
    pairs = module._llama_pairs(256)
    shapes = {f"{name} {end}": getattr(pair, end) for name, pair in pairs.items() for end in ("small", "large")}
    found = time_shapes(shapes, [16], 4, 1)
    assert set(found) == set(shapes) and all(speed.token_ms > 0 for (speed,) in found.values())


def test_torch_times_a_mixture_of_mixers() -> None:
    config = module._model("minnow", operators(256).values(), 256)  # type: ignore[arg-type]
    (speed,) = time_shapes({"all": config}, [16], 4, 1, engine="torch")["all"]
    assert speed.ttft_ms > 0 and speed.token_ms > 0


def test_only_after_some_prompts_are_tokens_decoded() -> None:
    config = module._model("minnow", operators(256).values(), 256)  # type: ignore[arg-type]
    first, last = time_shapes({"all": config}, [8, 16], 4, 1, engine="torch", decoded=[16])["all"]
    assert first.ttft_ms > 0 and math.isnan(first.token_ms) and last.token_ms > 0


def test_refusals() -> None:
    with pytest.raises(UserError, match="500 is not a multiple of 128"):
        operator_costs(500, (128,))
    with pytest.raises(UserError, match="at least one context"):
        operator_costs(512, ())
