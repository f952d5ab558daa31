"""How fast and how large a model is on this machine.

Follows Pipette's method (Liquid AI) and field names: random tokens, greedy, end token ignored, one warm-up, repeats with
spread, load timed apart, peak memory from VmHWM. Every model and length runs in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minnow.device.bench import Bench, Engine, Timing, interleaved
from minnow.device.folder_export import SETTINGS, FolderEngine, engine_of
from minnow.device.gguf_export import export_gguf, gguf_metadata
from minnow.device.machine import cpu_ticks, describe_machine, energy_joules, load_average, steal_share
from minnow.device.random_gguf import write_random_gguf
from minnow.errors import UserError
from minnow.files import read_json
from minnow.machine import usable_cores
from minnow.model.accounting import parameter_parts
from minnow.model.config import ModelConfig
from minnow.model.presets import PRESETS, find_preset
from minnow.progress import track

NOISY_SPREAD = 0.10  # standard deviation over mean of the repeats
_LOAD_SLACK = 0.5  # load average that an idle machine shows anyway
_WAITED = 0.9  # of the time, the one thread must have had its core
_DECODED = 100  # tokens that decoding speed is taken over, as in Pipette
_FOLDERS: dict[FolderEngine, tuple[str, Callable[[Any], int]]] = {
    "onnx": ("onnxruntime-genai", lambda said: said["model"]["context_length"]),
    "executorch": ("ExecuTorch", lambda said: said["get_max_context_len"]),
}
"""Of folders for other runtimes: the runtime's name, and the context that their settings give."""
_UNKNOWN: dict[str, Any] = {
    "type": None, "bytes": None, "parameters": None, "threads": None, "load_seconds": None, "peak_rss_bytes": None,
    "peak_rss_before_bytes": None, "memory": [], "steal_share": None, "energy_joules": None,
}  # fmt: skip
"""What a profile that was taken from afar does not say."""


@dataclass(frozen=True)
class _Subject:
    """A model as a bench takes it."""

    name: str
    path: Path
    engine: Engine | FolderEngine
    type: str | None
    bytes: int
    parameters: int | None
    context: int


def profile(
    models: Path | str | Sequence[Path | str],
    threads: int | None = None,
    prompts: Sequence[int] = (32, 128, 512),
    decode_depths: Sequence[int] = (32, 512),
    repeats: int = 5,
    answer: int = 256,
    engine: Engine = "llama.cpp",
    kind: str = "F16",
) -> dict[str, Any]:
    """Measure models: GGUF files, checkpoint folders, folders for onnxruntime-genai or ExecuTorch, or published shapes by
    name, which get random weights.

    Args:
        threads: for prefill and decode; all usable cores by default.
        prompts: prompt lengths for prefill and time to first token. Lengths beyond a model's context are left out.
        decode_depths: tokens already in context when decoding is timed; likewise.
        repeats: timed repeats after one warm-up.
        answer: tokens decoded at each depth; end-to-end latency is of prompt and answer.
        kind: GGUF type that folders and names are written in, into a temporary folder, for llama.cpp.

    Returns:
        ``machine``, and ``files`` with, per model: ``file``, ``type``, ``bytes``, ``parameters``, ``engine``,
        ``threads``, ``repeats``, ``runtime``, ``runtime_build``, ``load_seconds`` (median over its processes);
        ``prefill``: ``tokens``, ``tokens_per_second`` (by the median), ``ttft_ms`` and ``p50_ms`` (median), ``p95_ms``,
        ``spread``; ``decode``: ``depth``, ``tokens_per_second`` (median over repeats of the first 100 tokens),
        ``p50_ms`` and ``p95_ms`` (per token), ``spread`` (standard deviation over mean of the repeats);
        ``end_to_end``: ``tokens``, ``answer``, ``p50_ms``, ``p95_ms``; ``memory``: ``tokens``, ``peak`` and its parts in
        bytes (:meth:`minnow.device.bench.Bench.memory`); ``peak_rss_bytes`` (the largest peak, whole process) and
        ``peak_rss_before_bytes`` (before the model: Python and libraries); ``pipette``: the same under Pipette's names, each ``mean`` and ``stddev``;
        ``load_average`` and ``steal_share``; ``noisy`` and ``noise``, why. ``energy_joules`` is None where the machine
        has no counter.

    Raises:
        UserError: fewer than 2 repeats, lengths that do not fit a model's context, more threads than usable cores, a
            name that is not known, or a model that the engine cannot run.
    """
    threads = usable_cores() if threads is None else threads
    if not 1 <= threads <= usable_cores():
        raise UserError(
            f"{threads} threads asked for but {usable_cores()} cores are usable here; choose within 1..that"
        )
    if repeats < 2:
        raise UserError(f"{repeats} repeats give no spread; ask for at least 2 (5 is usual)")
    entries = []
    for model in [models] if isinstance(models, Path | str) else models:
        with _opened(model, engine, kind) as subject:
            lengths = [n for n in prompts if 1 <= n <= subject.context]
            depths = [n for n in decode_depths if n >= 1 and n + answer <= subject.context]
            if not lengths or not depths:
                raise UserError(
                    f"no prompt of {list(prompts)} or no depth of {list(decode_depths)} tokens and {answer} more fits "
                    f"the context of {subject.context} of {subject.name}; ask for shorter ones"
                )
            entries.append(_measured(subject, threads, lengths, depths, repeats, answer))
    return {"machine": describe_machine(), "files": entries}


@contextmanager
def _opened(model: Path | str, engine: Engine, kind: str) -> Iterator[_Subject]:
    """The file or folder that a bench opens; what had to be written for it is gone afterwards."""
    if isinstance(model, Path) and not model.is_dir():
        facts = gguf_metadata(model)
        if engine != "llama.cpp":
            raise UserError(f"{model} is a GGUF file, which only llama.cpp runs; leave out --engine {engine}")
        size = model.stat().st_size
        yield _Subject(model.name, model, engine, facts["type"], size, facts["parameters"], facts["context_length"])
        return
    if isinstance(model, Path) and (runs := engine_of(model)) is not None:
        runtime, context = _FOLDERS[runs]
        if engine != "llama.cpp":
            raise UserError(f"{model} is a folder that only {runtime} runs; leave out --engine {engine}")
        size = sum(file.stat().st_size for file in model.iterdir())
        yield _Subject(model.name, model, runs, None, size, None, context(read_json(model / SETTINGS[runs])))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _written(model, engine, kind, Path(folder))


def _written(model: Path | str, engine: Engine, kind: str, folder: Path) -> _Subject:
    if isinstance(model, Path):
        name = model.resolve().name
        if engine == "torch":
            config = ModelConfig.from_hf(read_json(model / "config.json"))
            size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
            return _Subject(name, model, engine, "checkpoint", size, _parameters(config), config.max_positions)
        file = export_gguf(model, folder / f"{name}-{kind}.gguf", kind).file
        facts = gguf_metadata(file)
        return _Subject(
            file.name, file, engine, kind, file.stat().st_size, facts["parameters"], facts["context_length"]
        )
    preset = find_preset(model)
    if preset is None:
        raise UserError(
            f"there is no file or folder {model}, and no published shape of that name ({', '.join(PRESETS)})"
        )
    if engine == "torch":
        (folder / "config.json").write_text(json.dumps(preset.to_hf()))
        count = _parameters(preset)
        return _Subject(model, folder, engine, "random", 2 * count, count, preset.max_positions)
    file = folder / f"{model}-{kind}.gguf"
    size = write_random_gguf(preset, file, kind)
    return _Subject(f"{model} (random weights)", file, engine, kind, size, _parameters(preset), preset.max_positions)


def _parameters(config: ModelConfig) -> int:
    return sum(parameter_parts(config).values())


def _measured(
    subject: _Subject,
    threads: int,
    lengths: Sequence[int],
    depths: Sequence[int],
    repeats: int,
    answer: int,
) -> dict[str, Any]:
    load_before, steal_before, energy_before = load_average(), cpu_ticks(), energy_joules()
    runs: dict[int, list[Timing]] = {}
    memory: list[dict[str, int]] = []
    loads: list[float] = []
    every = sorted({*lengths, *depths})
    facts: dict[str, Any] = {}
    with track(len(every), f"profile {subject.name}", "lengths") as bar:
        for n in every:
            asked = answer if n in depths else 0
            with Bench(subject.engine, subject.path, n + asked + 1, threads) as bench:
                (runs[n],) = interleaved([bench], n, asked, repeats)
                memory.append({"tokens": n, **bench.memory()})
                loads.append(bench.opened["load_seconds"])
                facts = bench.last
            bar.advance(1)
    energy = energy_joules()
    entry = model_entry(
        figures(runs, lengths, depths, answer),
        loaded=load_before > usable_cores() - threads + _LOAD_SLACK,
        waited=threads == 1 and min(each.cpu_share for found in runs.values() for each in found) < _WAITED,
        file=subject.name,
        type=subject.type,
        bytes=subject.bytes,
        parameters=subject.parameters,
        engine=subject.engine,
        threads=threads,
        repeats=repeats,
        runtime=facts["runtime"],
        runtime_build=facts["runtime_build"],
        load_seconds=float(np.median(loads)),
        peak_rss_bytes=max(each["peak"] for each in memory),
        peak_rss_before_bytes=max(each["before"] for each in memory),
        memory=memory,
        load_average={"before": load_before, "after": load_average()},
        steal_share=steal_share(steal_before, cpu_ticks()),
        energy_joules=None if energy is None or energy_before is None else energy - energy_before,
    )
    entry["pipette"] |= {f"max_memory_usage_{m['tokens']}": m["peak"] for m in memory}
    return entry


def figures(
    runs: Mapping[int, Sequence[Timing]], lengths: Sequence[int], depths: Sequence[int], answer: int
) -> dict[str, Any]:
    """``prefill``, ``decode``, ``end_to_end`` and ``pipette`` of runs by prompt length, each with ``answer`` tokens more at
    ``depths``."""
    return {
        "prefill": [prefill_entry(n, [each.ttft_ms for each in runs[n]]) for n in lengths],
        "decode": [decode_entry(n, [each.token_ms[:_DECODED] for each in runs[n]]) for n in depths],
        "end_to_end": [_end_to_end(n, answer, runs[n]) for n in depths],
        "pipette": _pipette(runs, lengths, depths, answer),
    }


def model_entry(speeds: Mapping[str, Any], loaded: bool = False, waited: bool = False, **facts: Any) -> dict[str, Any]:
    """One of ``files``: the :func:`figures`, the facts that are known of a model and its runs, and whether to trust them.

    Args:
        loaded: other processes held the cores at the start.
        waited: the thread had to wait for its core.
    """
    spread = max(each["spread"] for each in speeds["prefill"] + speeds["decode"])
    why = [f"repeats differ by {spread:.0%}"] if spread > NOISY_SPREAD else []
    why += ["other processes held the cores at the start"] if loaded else []
    why += ["the thread had to wait for its core"] if waited else []
    return {**_UNKNOWN, **facts, **speeds, "noise": why, "noisy": bool(why)}


def prefill_entry(tokens: int, times_ms: Sequence[float]) -> dict[str, Any]:
    """Prefill of ``tokens`` tokens from the time to the first token of each repeat."""
    p50 = float(np.median(times_ms))
    return {
        "tokens": tokens,
        "tokens_per_second": 1e3 * tokens / p50,
        "ttft_ms": p50,
        "p50_ms": p50,
        "p95_ms": float(np.percentile(times_ms, 95)),
        "spread": float(np.std(times_ms) / np.mean(times_ms)),
    }


def decode_entry(depth: int, repeats: Sequence[np.ndarray]) -> dict[str, Any]:
    """Decoding after ``depth`` tokens from the milliseconds of each token of each repeat."""
    times = np.array(repeats)
    means = times.mean(axis=1)
    return {
        "depth": depth,
        "tokens_per_second": float(1e3 / np.median(means)),
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "spread": float(means.std() / means.mean()),
    }


def _end_to_end(depth: int, answer: int, runs: Sequence[Timing]) -> dict[str, Any]:
    times = [run.ttft_ms + float(run.token_ms.sum()) for run in runs]
    p50, p95 = float(np.median(times)), float(np.percentile(times, 95))
    return {"tokens": depth, "answer": answer, "p50_ms": p50, "p95_ms": p95}


def _pipette(
    runs: Mapping[int, Sequence[Timing]], lengths: Sequence[int], depths: Sequence[int], answer: int
) -> dict[str, Any]:
    """Throughput in tokens per second and latency in seconds, by Pipette's names."""
    found: dict[str, Any] = {}
    for n in lengths:
        found[f"prefill_throughput_{n}"] = mean_and_deviation([1e3 * n / run.ttft_ms for run in runs[n]])
    for n in depths:
        first = min(_DECODED, answer)
        speeds = [1e3 / float(run.token_ms[:first].mean()) for run in runs[n]]
        found[f"decode_throughput_{n}_{first}"] = mean_and_deviation(speeds)
        seconds = [(run.ttft_ms + float(run.token_ms.sum())) / 1e3 for run in runs[n]]
        found[f"end_to_end_latency_{n}_{answer}"] = mean_and_deviation(seconds)
    return found


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """As Pipette states a figure."""
    return {"mean": float(np.mean(values)), "stddev": float(np.std(values))}
