"""Shapes timed side by side with random weights: operators, block tables and finalists are all measured by this."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minnow.device.bench import Bench, Engine, Timing, interleaved
from minnow.device.random_gguf import write_random_gguf
from minnow.model.config import ModelConfig
from minnow.model.footprint import BATCH


@dataclass(frozen=True)
class Speed:
    """A shape after a prompt of ``prompt`` tokens. Of one thread, times are processor time, so that a thread that waits
    for its core does not spoil them.

    Attributes:
        ttft_ms: median over the repeats.
        token_ms: of one decoded token, median over all tokens of all repeats; NaN where none was decoded.
        spread: the larger of the two standard deviations over mean, over the repeats.
        cpu_share: the least of the repeats', see :class:`minnow.device.bench.Timing`.
        peak_bytes: the process's peak; ``before_bytes`` before the model was opened.
    """

    prompt: int
    ttft_ms: float
    token_ms: float
    spread: float
    cpu_share: float
    peak_bytes: int
    before_bytes: int


def time_shapes(
    shapes: Mapping[str, ModelConfig],
    prompts: Sequence[int],
    answer: int,
    repeats: int,
    threads: int = 1,
    engine: Engine = "llama.cpp",
    kind: str = "Q4_0",
    positions: int = 0,
    decoded: Collection[int] | None = None,
) -> dict[str, list[Speed]]:
    """The speed of each shape after each of ``prompts``; all are open together and take turns.

    Args:
        answer: tokens decoded after each prompt, or after those of ``decoded`` alone.
        kind: GGUF type; of no meaning to torch.
        positions: room for tokens that the runtime sets aside, at least; the memory depends on it. With it every shape
            also reads the longest batch that fits, since buffers count only once they were written.
    """
    found: dict[str, list[Speed]] = {name: [] for name in shapes}
    room = max(positions, max(prompts) + answer + 1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        benches = []
        for place, config in enumerate(shapes.values()):
            path = _written(config, Path(folder) / str(place), engine, kind)
            benches.append(stack.enter_context(Bench(engine, path, room, threads)))
        timings = [
            interleaved(benches, prompt, answer if decoded is None or prompt in decoded else 0, repeats)
            for prompt in prompts
        ]
        if positions:
            for bench in benches:
                bench.run(min(BATCH, room - 2), 1)
        for prompt, by_bench in zip(prompts, timings, strict=True):
            for name, bench, runs in zip(shapes, benches, by_bench, strict=True):
                found[name].append(_speed(prompt, runs, bench.memory(), threads == 1))
    return found


def _written(config: ModelConfig, place: Path, engine: Engine, kind: str) -> Path:
    if engine == "llama.cpp":
        file = place.with_suffix(".gguf")
        write_random_gguf(config, file, kind)
        return file
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config.to_hf()))
    return place


def _speed(prompt: int, runs: Sequence[Timing], memory: Mapping[str, int], alone: bool) -> Speed:
    first = np.array([run.busy_ttft_ms if alone else run.ttft_ms for run in runs])
    tokens = np.array([run.busy_token_ms if alone else run.token_ms for run in runs])
    spreads = [first.std() / first.mean()]
    if tokens.size:
        means = np.median(tokens, axis=1)
        spreads.append(means.std() / means.mean())
    return Speed(
        prompt,
        float(np.median(first)),
        float(np.median(tokens)) if tokens.size else math.nan,
        float(max(spreads)),
        min(run.cpu_share for run in runs),
        memory["peak"],
        memory["before"],
    )
