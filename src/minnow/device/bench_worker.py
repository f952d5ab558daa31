"""A process that holds one model and times it: one JSON request a line on stdin, one JSON answer a line on stdout.

Run as ``python -m minnow.device.bench_worker`` by :class:`minnow.device.bench.Bench`. The first request opens the model,
every later one is a timed run. What the runtime writes to stdout or stderr goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minnow.device.worker_process import answers
from minnow.machine import peak_rss_bytes


class Runner(Protocol):
    """A model that reads a prompt and then decodes greedily, one sequence at a time."""

    vocab_size: int

    def prefill(self, ids: np.ndarray) -> int:
        """Forget everything, read the prompt, give the likeliest next id."""

    def step(self, token: int) -> int:
        """Read one more id, give the likeliest next one."""

    def facts(self) -> dict[str, Any]:
        """``runtime``, ``runtime_build``, and ``memory``: bytes of the parts that the runtime itself can name."""


class LlamaRunner:
    """A GGUF file under llama.cpp."""

    def __init__(self, model: str, positions: int, threads: int) -> None:
        from minnow.device.llama_cpp_api import Llama

        self._llama = Llama(model, positions, 1, threads, "f16")
        self.vocab_size = self._llama.vocab_size
        self._position = 0

    def prefill(self, ids: np.ndarray) -> int:
        self._llama.clear()
        logits = self._llama.prefill(ids)
        self._position = len(ids)
        return int(logits[0].argmax())

    def step(self, token: int) -> int:
        place = np.array([self._position])
        self._position += 1
        return int(self._llama.decode(np.array([token]), place, np.zeros(1), np.ones(1, bool))[0].argmax())

    def facts(self) -> dict[str, Any]:
        # The parent reads the sizes of llama.cpp's buffers in its log.
        build = self._llama.system_info.strip(" |")
        return {"runtime": f"xllamacpp {self._llama.version}", "runtime_build": build, "memory": {}}


class TorchRunner:
    """A checkpoint, or a ``config.json`` alone with random weights, under Minnow's own kernels."""

    def __init__(self, model: str, positions: int, threads: int) -> None:
        import torch

        from minnow.files import read_json
        from minnow.model.backbone import Backbone
        from minnow.model.checkpoint import load_model
        from minnow.model.config import ModelConfig
        from minnow.model.language_model import LanguageModel
        from minnow.train.precision import compute_dtype

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        folder, dtype = Path(model), compute_dtype()
        self._torch, self._positions = torch, positions
        if any(folder.glob("*.safetensors")):
            self._model: LanguageModel = load_model(folder, dtype)
            self._model.to(dtype)
        else:
            torch.set_default_dtype(dtype)  # or the peak would be that of weights in float32
            self._model = Backbone(ModelConfig.from_hf(read_json(folder / "config.json")))
            torch.set_default_dtype(torch.float32)
            self._model.initialise(0)
        self.vocab_size = self._model.config.vocab_size
        # For the life of the process: weights are packed once, as for decoding many tokens.
        self._packed = self._model.decoding()
        self._packed.__enter__()

    def prefill(self, ids: np.ndarray) -> int:
        torch = self._torch
        hidden, self._state = self._model.prefill(
            torch.from_numpy(ids[None].astype(np.int64)), torch.tensor([len(ids)]), self._positions
        )
        return int(self._model.logits(hidden).argmax())

    def step(self, token: int) -> int:
        hidden = self._model.step(self._torch.tensor([token]), self._state)
        return int(self._model.logits(hidden).argmax())

    def facts(self) -> dict[str, Any]:
        from minnow.model.kernels import describe

        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        layers = getattr(self._state, "layers", [])
        state = sum(t.numel() * t.element_size() for layer in layers for t in layer.tensors())
        return {
            "runtime": f"torch {self._torch.__version__}",
            "runtime_build": f"{self._torch.backends.cpu.get_cpu_capability()}, {describe()}",
            "memory": {"weights": weights, "state": state},
        }


class OnnxRunner:
    """A folder that ``minnow export --to onnx`` wrote, under onnxruntime-genai."""

    def __init__(self, model: str, positions: int, threads: int) -> None:
        from minnow.device.folder_worker import OnnxNetwork

        self._network, self._positions = OnnxNetwork(Path(model), threads), positions
        self.vocab_size = self._network.settings["vocab_size"]

    def prefill(self, ids: np.ndarray) -> int:
        self._generator = self._network.generator(self._positions)
        return self._after(ids.tolist())

    def step(self, token: int) -> int:
        return self._after([token])

    def _after(self, ids: list[int]) -> int:
        self._generator.append_tokens(ids)
        return int(self._generator.get_logits()[0, -1].argmax())

    def facts(self) -> dict[str, Any]:
        import onnxruntime

        build = f"onnxruntime {onnxruntime.__version__}, {onnxruntime.get_build_info()}"
        return {"runtime": f"onnxruntime-genai {self._network.version}", "runtime_build": build, "memory": {}}


class ExecutorchRunner:
    """A folder that ``minnow export --to executorch`` wrote."""

    def __init__(self, model: str, positions: int, threads: int) -> None:
        from minnow.device.folder_worker import ExecutorchNetwork

        self._network, self._position = ExecutorchNetwork(Path(model), threads), 0
        self.vocab_size = self._network.vocab_size

    def prefill(self, ids: np.ndarray) -> int:
        self._position = 0
        return self._after(ids.tolist())

    def step(self, token: int) -> int:
        return self._after([token])

    def _after(self, ids: list[int]) -> int:
        logits = self._network.after(ids, self._position)
        self._position += len(ids)
        return int(logits.argmax())

    def facts(self) -> dict[str, Any]:
        from executorch.version import __version__

        return {"runtime": f"executorch {__version__}", "runtime_build": "XNNPACK", "memory": {}}


_RUNNERS: dict[str, Callable[[str, int, int], Runner]] = {
    "llama.cpp": LlamaRunner,
    "torch": TorchRunner,
    "onnx": OnnxRunner,
    "executorch": ExecutorchRunner,
}


def _time(runner: Runner, ids: np.ndarray, answer: int) -> dict[str, Any]:
    """When the first token and each of the ``answer`` tokens after it were known, in seconds from the start: by the
    clock (``wall``) and in processor time of all threads (``cpu``). The end token is ignored."""
    marks = [(time.perf_counter(), time.process_time())]
    token = runner.prefill(ids)
    marks.append((time.perf_counter(), time.process_time()))
    for _ in range(answer):
        token = runner.step(token)
        marks.append((time.perf_counter(), time.process_time()))
    wall, cpu = (np.array(marks) - marks[0]).T[:, 1:].tolist()
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    """Open the model that the first line names, then run until stdin ends."""
    say = answers()
    opening = json.loads(sys.stdin.readline())
    before, start = peak_rss_bytes(), time.perf_counter()
    try:
        runner = _RUNNERS[opening["engine"]](opening["model"], opening["positions"], opening["threads"])
    except Exception as error:  # noqa: BLE001  the parent makes a sentence of it
        say({"error": str(error), "kind": type(error).__name__})
        return
    say({"load_seconds": time.perf_counter() - start, "before_bytes": before, "vocab_size": runner.vocab_size})
    random = np.random.default_rng(0)
    for line in sys.stdin:
        request = json.loads(line)
        ids = random.integers(runner.vocab_size, size=request["prompt"], dtype=np.int32)
        timed = _time(runner, ids, request["answer"])
        say(timed | {"peak_bytes": peak_rss_bytes()} | runner.facts())


if __name__ == "__main__":
    main()
