"""What this machine computes fast: the compute type and the number of threads, both found by asking it."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

import torch

from minnow.machine import usable_cores


def compute_dtype() -> torch.dtype:
    """bfloat16 where matrix products in it are faster than in float32 (CUDA, CPUs that multiply it natively), else float32.

    By what the processor is, not by the clock: ranks have to agree, and a training that goes on computes as it began.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if _converts_only(torch.cpu.get_capabilities()):
        return torch.float32
    # Builds without oneDNN (some for macOS) do not have the question.
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def _converts_only(cpu: Mapping[str, Any]) -> bool:
    """Whether a processor takes bfloat16 but multiplies no more of it than of float32 (docs/results/backbone.md).

    Intel's cores have one unit for it where they have two for float32, so it is AMX that makes it fast, which virtual
    machines may hide.
    """
    intel = cpu.get("cpu_name", "").startswith("Intel")
    return intel and cpu.get("avx512_bf16", False) and not cpu.get("amx_bf16", False)


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a square matrix product in the compute type, the most a step may reach; measured once in a process.

    Of 1,024 rows on the CPU with torch's present threads, of 8,192 on a GPU; the best of five.
    """
    return _square_product(device.type, torch.get_num_threads())


@functools.cache
def _square_product(device: str, threads: int) -> float:
    size = 8192 if device == "cuda" else 1024
    a = torch.full((size, size), 0.01, dtype=compute_dtype(), device=device)
    out = torch.empty_like(a)
    times = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


COMPILE_SECONDS, COMPILE_GAIN = 90.0, 1.15
"""What torch.compile takes before the first step, and what it makes of a step's speed on a GPU: torchtitan's published
5,762 to 6,667 tokens/s (Llama 3.1 8B, H100). Not measured here."""


def compile_pays(device: torch.device, seconds: float) -> bool:
    """Whether compiling the model shortens a training of ``seconds``; never on a CPU, where the fused kernels are the
    faster ones (docs/results/backbone.md)."""
    return device.type == "cuda" and seconds * (1 - 1 / COMPILE_GAIN) > COMPILE_SECONDS


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)  # how torch's CPU allocator puts it in a plain RuntimeError


def work_seconds(device: str, rounds: int) -> float:
    """Median seconds of a small matrix product and an elementwise pass, the two things a step is made of."""
    times = 4 if device == "cuda" else 1
    a = torch.ones(1024 * times, 256 * times, dtype=compute_dtype(), device=device)
    b = torch.ones(256 * times, 768, dtype=compute_dtype(), device=device)
    found = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.silu(a @ b)
        _wait(device)
        found.append(time.perf_counter() - start)
    return sorted(found)[rounds // 2]


def _probe_seconds(threads: int) -> float:
    torch.set_num_threads(threads)
    return work_seconds("cpu", rounds=15)


def choose_threads(wanted: int | None = None, processes: int = 1) -> int:
    """Set and return torch's thread count: ``wanted``, or the fastest of 1, 2, 4, … by measurement.

    ``processes`` that share the machine get a share of the cores each. On a shared machine two threads can be ten times
    slower than one, so the count is measured, never assumed.
    """
    if wanted is None:
        cores = max(1, usable_cores() // processes)
        wanted = min(sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)}), key=_probe_seconds)
    torch.set_num_threads(wanted)
    return wanted
