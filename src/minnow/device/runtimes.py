"""What an exported file is asked when it is compared with its checkpoint, and the runtime that answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minnow.device.llama_cpp import Generated, LlamaCpp
from minnow.device.worker_process import FileWorker, WorkerDied
from minnow.errors import UserError


class Runtime(Protocol):
    """A runtime with an exported file open.

    Attributes:
        spells: special tokens that a text holds are read as text; otherwise as the tokens.
    """

    spells: bool

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, start token included if the file asks for one."""

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """What is expected after every token of ``ids`` but the last: float32 ``[n - 1, vocab]``."""

    def ends(self, ids: Sequence[int]) -> list[bool]:
        """Which of ``ids`` end an answer."""

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, stop: Sequence[int]
    ) -> Sequence[Generated]:
        """Greedy answers, which end at one of ``stop``."""


def opened(file: Path, positions: int) -> AbstractContextManager[Runtime]:
    """The runtime of a GGUF file (its attention cache in float32) or of an exported folder.

    Args:
        positions: of the longest text and answer.

    Raises:
        UserError: the runtime is missing, died, or does not open the file.
    """
    return FolderRuntime(file) if file.is_dir() else LlamaCpp(file, positions, kv="f32")


class FolderRuntime(FileWorker):
    """onnxruntime-genai, ExecuTorch or mlx-lm with an exported folder open, in a process of its own: a context manager.

    Raises:
        UserError: the runtime is missing, died, or does not open the folder.
    """

    spells = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__("minnow.device.folder_worker", OMP_NUM_THREADS="1")
        try:
            self._ask("load", folder=str(folder))
        except BaseException:
            self.close()
            raise

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """As :meth:`Runtime.tokenize`."""
        return self._ask("tokenize", texts=list(texts))

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, stop: Sequence[int]
    ) -> Sequence[Generated]:
        """As :meth:`Runtime.generate`."""
        asked = {"max_new_tokens": max_new_tokens, "stop": list(stop)}
        answers = [self._ask("generate", prompt=list(prompt), **asked) for prompt in prompts]
        return [Generated(ids, [], "stop" if ids[-1] in stop else "length") for ids in answers]

    def _ask(self, op: str, **arguments: Any) -> Any:
        try:
            answer = self._exchange({"op": op, **arguments})
        except WorkerDied as death:
            said = ": ".join(["", *self._complaints()[-1:]])
            raise UserError(
                f"the runtime died ({death}) during '{op}' on {self.folder}{said}; export it again"
            ) from None
        if "error" in answer:
            if answer["kind"] == "ModuleNotFoundError":
                raise UserError(
                    f'{answer["error"]}; run: pip install "minnow[onnx]", "minnow[mlx]" or "minnow[executorch]"'
                )
            raise UserError(f"the runtime could not {op} {self.folder}: {answer['error']}; export it again")
        return answer["ok"]
