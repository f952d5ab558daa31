"""How fast and how large a GGUF file is on this machine.

Follows Pipette's method (Liquid AI): random tokens, greedy, end token ignored, one warm-up, repeats with spread,
load and tokenization timed apart, peak memory from VmHWM. Each file runs in a process of its own.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minnow.device.gguf_export import export_gguf, gguf_metadata
from minnow.device.llama_cpp import LlamaCpp
from minnow.errors import UserError

_NOISY_SPREAD = 0.10  # standard deviation over mean of the repeats
_LOAD_SLACK = 0.5  # load average that an idle machine shows anyway
_DECODED_TOKENS = 32  # per repeat and depth


def profile(
    models: Path | Sequence[Path],
    threads: int | None = None,
    prompts: Sequence[int] = (32, 128, 512),
    decode_depths: Sequence[int] = (32, 512),
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure GGUF files, or checkpoint folders (exported as F16 into a temporary folder first).

    Args:
        threads: of llama.cpp, for prefill and decode; all usable cores by default.
        prompts: prompt lengths for prefill and time to first token. Lengths beyond the file's context are left out.
        decode_depths: tokens already in context when decoding is timed; likewise.
        repeats: timed repeats after one warm-up; the lengths take turns within each repeat.

    Returns:
        ``{"machine": {...}, "files": [...]}`` with a file entry as :func:`profile_file` gives it.

    Raises:
        UserError: as :func:`profile_file`.
    """
    files = [models] if isinstance(models, Path) else list(models)
    entries = []
    for model in files:
        if model.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                exported = export_gguf(model, Path(folder) / f"{model.resolve().name}-F16.gguf", "F16")
                entries.append(profile_file(exported.file, threads, prompts, decode_depths, repeats))
        else:
            entries.append(profile_file(model, threads, prompts, decode_depths, repeats))
    return {"machine": describe_machine(), "files": entries}


def profile_file(
    file: Path,
    threads: int | None = None,
    prompts: Sequence[int] = (32, 128, 512),
    decode_depths: Sequence[int] = (32, 512),
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure one GGUF file; arguments as :func:`profile`.

    Returns:
        ``file``, ``type``, ``bytes``, ``parameters``, ``threads``, ``repeats``, ``load_seconds``, ``peak_rss_bytes``
        (whole worker) and ``peak_rss_before_bytes`` (the worker before loading: Python and libraries);
        ``prefill``: ``tokens``, ``tokens_per_second`` (from the median prompt time), ``ttft_ms`` (median until the
        first token is known), ``p50_ms`` and ``p95_ms`` (prompt time over repeats), ``spread``;
        ``decode``: ``depth``, ``tokens_per_second`` (median over repeats), ``p50_ms`` and ``p95_ms`` (per token),
        ``spread``; ``spread`` is standard deviation over mean of the repeats. ``noisy`` when a spread exceeds 10% or
        the load average before leaves fewer cores free than ``threads``. ``energy_joules`` is None: not measured.

    Raises:
        UserError: fewer than 2 repeats, lengths that do not fit the file's context, more threads than usable cores, or
            as :class:`LlamaCpp`.
    """
    threads = usable_cores() if threads is None else threads
    if not 1 <= threads <= usable_cores():
        raise UserError(
            f"{threads} threads asked for but {usable_cores()} cores are usable here; choose within 1..that"
        )
    if repeats < 2:
        raise UserError(f"{repeats} repeats give no spread; ask for at least 2 (5 is usual)")
    facts = gguf_metadata(file)
    context = facts["context_length"]
    lengths = [n for n in prompts if 1 <= n <= context]
    depths = [n for n in decode_depths if n >= 1 and n + _DECODED_TOKENS <= context]
    if not lengths or not depths:
        raise UserError(
            f"no prompt of {list(prompts)} or no depth of {list(decode_depths)} tokens fits the context of {context} "
            f"of {file.name}; ask for shorter ones"
        )

    random = np.random.default_rng(0)
    load_before, steal_before = _load_average(), _cpu_ticks()
    ttft: dict[int, list[float]] = {n: [] for n in lengths}
    prefill: dict[int, list[float]] = {n: [] for n in lengths}
    decode: dict[int, list[list[float]]] = {n: [] for n in depths}
    with LlamaCpp(file, max(max(lengths), max(depths) + _DECODED_TOKENS), threads) as llama:
        for repeat in range(repeats + 1):
            for n in lengths:
                times = llama.time_prefill(random.integers(facts["vocab_size"], size=n).tolist())
                if repeat:
                    prefill[n].append(times["prefill_ms"])
                    ttft[n].append(times["ttft_ms"])
            for n in depths:
                steps = llama.time_decode(random.integers(facts["vocab_size"], size=n).tolist(), _DECODED_TOKENS)
                if repeat:
                    decode[n].append(steps)
        info, peak = llama.info, llama.peak_rss_bytes()
    entry: dict[str, Any] = {
        "file": file.name,
        "type": facts["type"],
        "bytes": file.stat().st_size,
        "parameters": facts["parameters"],
        "threads": threads,
        "repeats": repeats,
        "runtime": f"xllamacpp {info['version']}",
        "runtime_build": info["system_info"].strip(" |"),
        "load_seconds": info["load_seconds"],
        "peak_rss_bytes": peak,
        "peak_rss_before_bytes": info["peak_rss_before_bytes"],
        "prefill": [_prefill_entry(n, prefill[n], ttft[n]) for n in lengths],
        "decode": [_decode_entry(n, decode[n]) for n in depths],
        "load_average": {"before": load_before, "after": _load_average()},
        "steal_share": _steal_share(steal_before, _cpu_ticks()),
        "energy_joules": None,
    }
    spreads = [each["spread"] for each in entry["prefill"] + entry["decode"]]
    entry["noisy"] = max(spreads) > _NOISY_SPREAD or load_before > usable_cores() - threads + _LOAD_SLACK
    return entry


def describe_machine() -> dict[str, Any]:
    """What the numbers were taken on: processor, cores, memory, system."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prefill_entry(tokens: int, prompt_ms: list[float], ttft_ms: list[float]) -> dict[str, Any]:
    p50 = float(np.median(prompt_ms))
    return {
        "tokens": tokens,
        "tokens_per_second": 1e3 * tokens / p50,
        "ttft_ms": float(np.median(ttft_ms)),
        "p50_ms": p50,
        "p95_ms": float(np.percentile(prompt_ms, 95)),
        "spread": float(np.std(prompt_ms) / np.mean(prompt_ms)),
    }


def _decode_entry(depth: int, repeats: list[list[float]]) -> dict[str, Any]:
    times = np.array(repeats)
    means = times.mean(axis=1)
    return {
        "depth": depth,
        "tokens_per_second": float(1e3 / np.median(means)),
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "spread": float(means.std() / means.mean()),
    }


def _load_average() -> float:
    return os.getloadavg()[0]


def _cpu_ticks() -> tuple[int, int] | None:
    """Ticks stolen by the hypervisor and ticks in all, where the system tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(each) for each in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def _steal_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
