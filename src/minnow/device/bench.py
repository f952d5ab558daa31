"""One model in a process of its own, timed from outside: what profiles, block tables and finalists are measured with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minnow.device.folder_export import FolderEngine
from minnow.device.worker_process import WorkerDied, WorkerProcess
from minnow.errors import UserError

Engine = Literal["llama.cpp", "torch"]
"""What runs files, folders and shapes."""

# Parts of llama.cpp's memory, by what its log calls their buffers.
_BUFFERS = {
    "weights": r"_Mapped model buffer size|CPU model buffer size",
    "repacked": r"REPACK model buffer size",
    "state": r"(KV|RS) buffer size",
    "compute": r"(output|compute) buffer size",
}


@dataclass(frozen=True)
class Timing:
    """One run: a prompt read, then tokens decoded greedily.

    Attributes:
        ttft_ms: until the first token is known.
        token_ms: of each token after it.
        busy_ttft_ms, busy_token_ms: the same in processor time of all threads. Of a single thread it is what the clock
            would have shown on an idle core.
        cpu_share: processor time over time by the clock; below 1 where one thread had to wait for a core.
    """

    ttft_ms: float
    token_ms: np.ndarray
    busy_ttft_ms: float
    busy_token_ms: np.ndarray

    @property
    def cpu_share(self) -> float:
        busy = self.busy_ttft_ms + float(self.busy_token_ms.sum())
        return busy / (self.ttft_ms + float(self.token_ms.sum()))


class Bench(WorkerProcess):
    """A worker process with one model open; use it as a context manager.

    Args:
        model: a GGUF file (``llama.cpp``), or a checkpoint folder or one with a ``config.json`` alone (``torch``, random
            weights then), or a folder for onnxruntime-genai (``onnx``) or ExecuTorch.
        positions: prompt and answer together, of the longest run.
        threads: for prefill and decode alike.

    Raises:
        UserError: the runtime is missing or the worker died, as an assertion inside llama.cpp makes it.
    """

    def __init__(self, engine: Engine | FolderEngine, model: Path, positions: int, threads: int) -> None:
        super().__init__("minnow.device.bench_worker", OMP_NUM_THREADS=str(threads))
        self.model, self._extra = model, engine if engine in ("onnx", "executorch") else "export"
        try:
            #: load_seconds, before_bytes (held before the model was opened), vocab_size
            self.opened = self._ask(engine=engine, model=str(model), positions=positions, threads=threads)
        except BaseException:
            self.close()
            raise
        self.last: dict[str, Any] = {}

    def run(self, prompt: int, answer: int) -> Timing:
        """Read ``prompt`` random tokens and decode ``answer`` more after the first; the end token is ignored."""
        self.last = self._ask(prompt=prompt, answer=answer)
        wall, cpu = (1e3 * np.asarray(self.last[clock]) for clock in ("wall", "cpu"))
        return Timing(float(wall[0]), np.diff(wall), float(cpu[0]), np.diff(cpu))

    def memory(self) -> dict[str, int]:
        """Bytes after the runs so far: ``peak`` of the process, ``before`` the model was opened, and what the runtime
        names between: ``weights``, ``repacked``, ``state``, ``compute``; ``other`` is the rest.

        Torch names ``weights`` and ``state``; what it packs and computes in is part of ``other``.
        """
        parts = dict(self.last["memory"]) or _buffers(self._written())
        peak, before = self.last["peak_bytes"], self.opened["before_bytes"]
        return {"peak": peak, "before": before, **parts, "other": max(0, peak - before - sum(parts.values()))}

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            answer = self._exchange(request)
        except WorkerDied as death:
            raise UserError(
                f"the runtime died ({death}) on {self.model}{self._complaint()}; it cannot be measured here"
            ) from None
        if "error" in answer:
            if answer["kind"] == "ModuleNotFoundError":
                raise UserError(f'{answer["error"]}; run: pip install "minnow[{self._extra}]"')
            raise UserError(f"{self.model} could not be opened: {answer['error']}{self._complaint()}; check the file")
        return answer

    def _complaint(self) -> str:
        telling = self._complaints()
        return f": {telling[-1]}" if telling else ""


def _buffers(log: str) -> dict[str, int]:
    """Bytes of llama.cpp's buffers, as its log gives them in MiB."""
    found = {part: 0 for part in _BUFFERS}
    for line in log.splitlines():
        size = re.search(r"buffer size =\s*([\d.]+) MiB", line)
        for part, words in _BUFFERS.items():
            if size and re.search(words, line):
                found[part] += round(float(size[1]) * 2**20)
    return found


def interleaved(benches: Sequence[Bench], prompt: int, answer: int, repeats: int) -> list[list[Timing]]:
    """Every model ``repeats`` times after one warm-up, in turns, so that a slow minute is shared by all of them."""
    timings: list[list[Timing]] = [[] for _ in benches]
    for repeat in range(repeats + 1):
        for bench, found in zip(benches, timings, strict=True):
            timing = bench.run(prompt, answer)
            if repeat:
                found.append(timing)
    return timings
