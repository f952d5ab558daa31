"""Worker process around an exported folder: the operations of :class:`minnow.device.runtimes.FolderRuntime`.

A folder with ``genai_config.json`` is opened by onnxruntime-genai, one with ``executorch.json`` by ExecuTorch, any other by
mlx-lm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minnow.device.folder_export import SETTINGS, engine_of
from minnow.device.llama_worker import log_softmax
from minnow.device.worker_process import serve
from minnow.files import read_json


class Network(Protocol):
    """A model and its tokenizer as a runtime holds them, one sequence at a time."""

    ends: set[int]

    def tokenize(self, text: str) -> list[int]:
        """Ids, special tokens recognised."""

    def read(self, parts: list[list[int]]) -> Iterator[np.ndarray]:
        """Logits ``[n, vocab]`` at the ids of each part, which goes on from the parts before it."""

    def answer(self, prompt: list[int], room: int) -> Iterator[int]:
        """The greedy continuation, at most ``room`` tokens, whatever ends it."""


class OnnxNetwork:
    """A folder under onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        self._runtime = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._words = onnxruntime_genai.Tokenizer(self._model)
        self.settings, self.version = read_json(folder / SETTINGS["onnx"])["model"], onnxruntime_genai.__version__
        ends = self.settings["eos_token_id"]
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def tokenize(self, text: str) -> list[int]:
        return [int(each) for each in self._words.encode(text)]

    def read(self, parts: list[list[int]]) -> Iterator[np.ndarray]:
        generator = self.generator(sum(map(len, parts)) + 1)
        for part in parts:
            generator.append_tokens(part)
            yield generator.get_output("logits")[0]

    def answer(self, prompt: list[int], room: int) -> Iterator[int]:
        generator = self.generator(len(prompt) + room)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def generator(self, positions: int) -> Any:
        """A sequence of at most ``positions`` tokens, greedily continued."""
        window = self.settings["decoder"].get("sliding_window", {}).get("window_size", 0)
        parameters = self._runtime.GeneratorParams(self._model)
        # The cache is as long as that, and no kernel takes one that is shorter than its window.
        parameters.set_search_options(max_length=max(positions, window), do_sample=False)
        return self._runtime.Generator(self._model, parameters)


class MlxNetwork:
    """A folder under mlx-lm."""

    def __init__(self, folder: Path) -> None:
        from mlx_lm import load

        self._model, self._words = load(str(folder))
        self.ends = set(self._words.eos_token_ids)

    def tokenize(self, text: str) -> list[int]:
        return [int(each) for each in self._words.encode(text)]

    def read(self, parts: list[list[int]]) -> Iterator[np.ndarray]:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._model)
        for part in parts:
            logits = self._model(mx.array([part]), cache=cache)[0].astype(mx.float32)
            yield np.array(logits)

    def answer(self, prompt: list[int], room: int) -> Iterator[int]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        for token, _ in generate_step(mx.array(prompt), self._model, max_tokens=room):
            yield int(token)


def load_operators() -> None:
    """Make known to torch and to the runtime: attention, and embeddings of 8 bits."""
    for name in ("executorch.extension.llm.custom_ops.custom_ops", "executorch.kernels.quantized"):
        import_module(name)


class ExecutorchNetwork:
    """A folder under ExecuTorch, with the tokenizer of its runners."""

    def __init__(self, folder: Path, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
        from pytorch_tokenizers import CppHFTokenizer

        load_operators()
        portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(folder / "model.pte")
        self._forward = program.load_method("forward")
        said = {name: program.load_method(name).execute([]) for name in program.method_names - {"forward"}}
        self.ends = {int(each) for each in said["get_eos_ids"]}
        (self.vocab_size,), (self._at_once,) = said["get_vocab_size"], said["get_max_seq_len"]
        self._words = CppHFTokenizer()
        self._words.load(str(folder / "tokenizer.json"))

    def tokenize(self, text: str) -> list[int]:
        return [int(each) for each in self._words.encode(text, 0, 0)]

    def read(self, parts: list[list[int]]) -> Iterator[np.ndarray]:
        # A call gives the logits after its last token: token by token for all of them, then the first part at once, which
        # the others go on from.
        first, *others = parts
        yield np.stack([self.after([token], place) for place, token in enumerate(first)])
        self.after(first, 0)
        place = len(first)
        for part in others:
            yield np.stack([self.after([token], place + i) for i, token in enumerate(part)])
            place += len(part)

    def answer(self, prompt: list[int], room: int) -> Iterator[int]:
        logits = self.after(prompt, 0)
        for place in range(len(prompt), len(prompt) + room):
            yield (token := int(logits.argmax()))
            logits = self.after([token], place)

    def after(self, ids: list[int], place: int) -> np.ndarray:
        """Logits ``[vocab]`` after ``ids``, the first of which stands at ``place``; a text begins at 0."""
        import torch

        for i in range(0, len(ids), self._at_once):
            tokens = torch.tensor([ids[i : i + self._at_once]])
            (logits,) = self._forward.execute([tokens, torch.tensor([place + i])])
        return logits[0].numpy()


class Worker:
    """The operations; every public method is one."""

    def load(self, folder: str) -> None:
        place = Path(folder)
        self._network: Network
        match engine_of(place):
            case "onnx":
                self._network = OnnxNetwork(place, threads=1)
            case "executorch":
                self._network = ExecutorchNetwork(place, threads=1)
            case None:
                self._network = MlxNetwork(place)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [self._network.tokenize(text) for text in texts]

    def ends(self, ids: list[int]) -> list[bool]:
        return [each in self._network.ends for each in ids]

    def log_probs(self, ids: list[int], file: str) -> None:
        # Read in two parts, so that what is kept between them is seen too.
        half = len(ids) // 2
        parts = [part for part in (ids[:half], ids[half:-1]) if part]
        np.save(file, log_softmax(np.concatenate(list(self._network.read(parts)))).astype(np.float32))

    def generate(self, prompt: list[int], max_new_tokens: int, stop: list[int]) -> list[int]:
        answer = []
        for token in islice(self._network.answer(prompt, max_new_tokens), max_new_tokens):
            answer.append(token)
            if token in stop:
                break
        return answer


if __name__ == "__main__":
    serve(Worker())
