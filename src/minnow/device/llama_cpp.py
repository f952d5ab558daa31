"""llama.cpp in a process of its own: load a GGUF file, tokenize, score, generate, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minnow.device.worker_process import FileWorker, WorkerDied
from minnow.errors import UserError, require
from minnow.loops import CUT_AFTER, Loop

_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Scores:
    """Teacher-forced scores of one sequence of ``n`` ids, natural logarithms; both arrays have ``n - 1`` entries."""

    best: np.ndarray
    next_log_prob: np.ndarray


@dataclass(frozen=True)
class Generated:
    """One answer; ``finish`` is "stop" (``tokens`` then ends with the stop token), "length" or "loop".

    ``log_probs`` are the network's own (temperature 1), natural logarithms.
    """

    tokens: list[int]
    log_probs: list[float]
    finish: str
    loop: Loop | None = None


class LlamaCpp(FileWorker):
    """A worker process with one GGUF file loaded; use it as a context manager.

    Args:
        file: the GGUF file.
        n_ctx: positions per sequence (prompt and answer together).
        threads: threads of llama.cpp, for prefill and decode alike. One is fastest for networks of a few million
            parameters, and safest where other processes hold cores.
        kv: element type of the attention cache, "f16" (llama.cpp's default) or "f32" (for parity).
        sequences: prompts answered at once by :meth:`generate`.

    Raises:
        UserError: ``xllamacpp`` is missing or of another interface, the file is missing, cut short or of a network
            llama.cpp does not run, or the worker died.
    """

    spells = True  #: see :class:`minnow.device.runtimes.Runtime`

    def __init__(self, file: Path, n_ctx: int = 2048, threads: int = 1, kv: str = "f16", sequences: int = 1) -> None:
        require("xllamacpp", "export")
        if not file.is_file():
            raise UserError(f"{file} does not exist; give a .gguf file written by 'minnow export'")
        with file.open("rb") as head:
            if head.read(4) != _GGUF_MAGIC:
                raise UserError(f"{file} is not a GGUF file; give a .gguf file written by 'minnow export'")
        self.file, self.n_ctx, self.sequences = file, n_ctx, sequences
        super().__init__("minnow.device.llama_worker")
        try:
            #: vocab_size, eos
            self.info: dict[str, Any] = self._ask(
                "load", file=str(file), n_ctx=n_ctx, threads=threads, kv=kv, sequences=sequences
            )
        except BaseException:
            self.close()
            raise

    def tokenize(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids llama.cpp gives each text, BOS included if the file asks for one; ``special``: read special tokens."""
        return self._ask("tokenize", texts=list(texts), special=special)

    def score(self, ids: Sequence[int]) -> Scores:
        """Score every token of ``ids`` after the first, given those before it.

        Raises:
            UserError: more ids than ``n_ctx``, or ids outside the vocabulary.
        """
        self._check(ids, room=0)
        answer = self._ask("score", ids=list(ids))
        return Scores(np.asarray(answer["best"], np.int64), np.asarray(answer["next_log_prob"]))

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """As :meth:`FileWorker.log_probs`.

        Raises:
            UserError: as :meth:`score`.
        """
        self._check(ids, room=0)
        return super().log_probs(ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] | None = None,
        ids_in_use: int | None = None,
        stop_on_loop: bool = False,
        persistence: int = CUT_AFTER,
        pieces: Sequence[str] = (),
        grammar: str = "",
    ) -> list[Generated]:
        """Answer each prompt, greedily at temperature 0; the draw of prompt ``i`` depends on ``(seed, i)`` alone.

        Args:
            stop: ids that end an answer; the file's end token by default.
            ids_in_use: ids from here on (rows that only pad the embedding) are never drawn.
            stop_on_loop: end an answer once a loop has lasted ``persistence`` tokens.
            pieces: what each id spells, so that numbers, marks and records are known when a loop is judged.
            grammar: what no answer leaves, in llama.cpp's GBNF.

        Raises:
            UserError: an empty prompt, one that leaves no room for an answer within ``n_ctx``, or a grammar that
                cannot be read.
        """
        for prompt in prompts:
            self._check(prompt, room=1)
        answers = self._ask(
            "generate",
            prompts=[list(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=[self.info["eos"]] if stop is None else list(stop),
            ids_in_use=self.info["vocab_size"] if ids_in_use is None else ids_in_use,
            stop_on_loop=stop_on_loop,
            persistence=persistence,
            pieces=list(pieces),
            grammar=grammar,
        )
        return [
            Generated(each["tokens"], each["log_probs"], each["finish"], Loop(**each["loop"]) if each["loop"] else None)
            for each in answers
        ]

    def _check(self, ids: Sequence[int], room: int) -> None:
        if not ids:
            raise UserError("a prompt of no tokens cannot be run; start it with <|startoftext|>")
        if len(ids) + room > self.n_ctx:
            raise UserError(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten them or raise n_ctx")
        if min(ids) < 0 or max(ids) >= self.info["vocab_size"]:
            raise UserError(
                f"token ids must lie in 0..{self.info['vocab_size'] - 1} for {self.file.name}; "
                "these come from another tokenizer, use the one exported with the file"
            )

    def _ask(self, op: str, **arguments: Any) -> Any:
        try:
            answer = self._exchange({"op": op, **arguments})
        except WorkerDied as death:
            complaint = self._complaint()
            raise UserError(
                f"llama.cpp died ({death}) during '{op}' on {self.file}{': ' + complaint if complaint else ''}; "
                "start it again, and export the checkpoint again if it dies once more"
            ) from None
        if "error" not in answer:
            return answer["ok"]
        if answer["kind"] == "UnknownLayout":
            raise UserError(
                f"this build of xllamacpp has another interface than Minnow knows ({answer['error']}); "
                'run: pip install "minnow[export]" to get a known one'
            )
        if op == "load":
            raise UserError(
                f"{self.file} could not be loaded: {self._complaint() or answer['error']}; "
                "if the file was cut short, export the checkpoint again"
            )
        raise UserError(f"llama.cpp could not {op.replace('_', ' ')} with {self.file.name}: {answer['error']}")

    def _complaint(self) -> str:
        """The line of llama.cpp's log that says what went wrong, if there is one."""
        return next(iter(self._complaints()), "")
