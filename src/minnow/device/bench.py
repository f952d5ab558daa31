"""One model in a process of its own, timed from outside: what profiles, block tables and finalists are measured with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

import minnow
from minnow.errors import UserError

Engine = Literal["llama.cpp", "torch"]

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


class Bench:
    """A worker process with one model open; use it as a context manager.

    Args:
        model: a GGUF file (``llama.cpp``), or a checkpoint folder or one with a ``config.json`` alone (``torch``, random
            weights then).
        positions: prompt and answer together, of the longest run.
        threads: for prefill and decode alike.

    Raises:
        UserError: the runtime is missing or the worker died, as an assertion inside llama.cpp makes it.
    """

    def __init__(self, engine: Engine, model: Path, positions: int, threads: int) -> None:
        self.model = model
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        root = str(Path(minnow.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "minnow.device.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # A failed assertion would start a debugger to print a backtrace, which takes seconds.
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the worker
        )
        try:
            #: load_seconds, before_bytes (held before the model was opened), vocab_size
            self.opened = self._ask(engine=engine, model=str(model), positions=positions, threads=threads)
        except BaseException:
            self.close()
            raise
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass
        self._log.close()

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
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"the runtime died ({reason}) on {self.model}{self._complaint()}; it cannot be measured here"
            )
        answer = json.loads(line)
        if "error" in answer:
            if answer["kind"] == "ModuleNotFoundError":
                raise UserError(f'{answer["error"]}; run: pip install "minnow[export]"')
            raise UserError(f"{self.model} could not be opened: {answer['error']}{self._complaint()}; check the file")
        return answer

    def _written(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _complaint(self) -> str:
        telling = [each for each in self._written().splitlines() if re.search(r"GGML_ASSERT|[Ee]rror|failed", each)]
        return f": {telling[-1].strip()}" if telling else ""


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
