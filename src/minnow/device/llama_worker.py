"""Worker process around llama.cpp: one JSON request a line on stdin, one JSON answer a line on stdout.

Run as ``python -m minnow.device.llama_worker`` by :class:`minnow.device.llama_cpp.LlamaCpp`. An assertion inside
llama.cpp ends this process and nothing else. What llama.cpp writes to stdout or stderr goes to stderr.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minnow.device.worker_process import serve
from minnow.loops import Lexicon, Loop, LoopWatch

if TYPE_CHECKING:
    from minnow.device.llama_cpp_api import Grammar, Llama


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


@dataclass
class _Slot:
    """One prompt being answered."""

    index: int
    position: int
    random: np.random.Generator
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    loop: Loop | None = None

    def draw(self, scores: np.ndarray, temperature: float) -> int:
        """An id by its logit, float ``[vocab]``, at most 0, among those that the grammar allows."""
        token = self._draw(scores, temperature)
        if self.grammar is not None:
            # Mostly the grammar allows what the network chooses, and looking at one id is cheap.
            if not self.grammar.allows(np.array([token]))[0]:
                allowed = self.grammar.allows(np.arange(len(scores)))
                if not allowed.any():
                    raise ValueError("no token of this file goes on as the grammar wants")
                scores = np.where(allowed, scores, -np.inf)
                token = self._draw(scores - scores.max(), temperature)
            self.grammar.take(token)
        return token

    def _draw(self, scores: np.ndarray, temperature: float) -> int:
        if temperature == 0:
            return int(scores.argmax())
        cumulative = np.exp(scores / temperature).cumsum(dtype=np.float64)
        # Scaling the draw rather than the sums keeps it inside the vocabulary.
        return int(np.searchsorted(cumulative, self.random.random() * cumulative[-1], side="right"))


def _finish(slot: _Slot, stops: set[int], max_new_tokens: int, n_ctx: int) -> str | None:
    if slot.tokens[-1] in stops:
        return "stop"
    if slot.loop is not None:
        return "loop"
    return "length" if len(slot.tokens) >= max_new_tokens or slot.position >= n_ctx else None


class Worker:
    """The operations; every public method is one."""

    def __init__(self) -> None:
        self._llama: Llama | None = None

    @property
    def llama(self) -> Llama:
        if self._llama is None:
            raise ValueError("no file is loaded")
        return self._llama

    def load(self, file: str, n_ctx: int, threads: int, kv: str, sequences: int) -> dict[str, Any]:
        from minnow.device.llama_cpp_api import Llama

        self._llama = Llama(file, n_ctx, sequences, threads, kv)
        return {"vocab_size": self._llama.vocab_size, "eos": self._llama.eos}

    def tokenize(self, texts: list[str], special: bool) -> list[list[int]]:
        return [self.llama.tokenize(text, special) for text in texts]

    def ends(self, ids: list[int]) -> list[bool]:
        return [self.llama.is_end(token) for token in ids]

    def score(self, ids: list[int]) -> dict[str, list[Any]]:
        """Teacher-forced: for every position but the last, the likeliest next id and the next one's log-probability."""
        best, next_log_prob = [], []
        for following, log_probs in self._teacher_forced(ids):
            best += log_probs.argmax(axis=-1).tolist()
            next_log_prob += np.take_along_axis(log_probs, following[:, None], 1)[:, 0].tolist()
        return {"best": best, "next_log_prob": next_log_prob}

    def log_probs(self, ids: list[int], file: str) -> None:
        """The same for all ids, into a file: float32 ``[n - 1, vocab]``."""
        np.save(file, np.concatenate([each.astype(np.float32) for _, each in self._teacher_forced(ids)]))

    def _teacher_forced(self, ids: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids that follow some positions, and log-probabilities there, float64 ``[positions, vocab]``."""
        self.llama.clear()
        tokens = np.asarray(ids, np.int32)
        for start in range(0, len(tokens) - 1, self.llama.n_batch):
            span = np.arange(start, min(start + self.llama.n_batch, len(tokens) - 1))
            logits = self.llama.decode(tokens[span], span, np.zeros(len(span)), np.ones(len(span), bool))
            yield tokens[span + 1], log_softmax(logits)

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stop: list[int],
        ids_in_use: int,
        stop_on_loop: bool,
        persistence: int,
        pieces: list[str],
        grammar: str,
    ) -> list[dict[str, Any]]:
        """Answer every prompt, as many at once as there are sequences; the stop token is the answer's last."""
        llama, stops = self.llama, set(stop)
        llama.clear()
        slots: dict[int, _Slot] = {}
        watch = None
        if stop_on_loop:
            watch = LoopWatch(
                llama.sequences,
                lexicon=Lexicon(pieces) if pieces else None,
                persistence=persistence,
                text=(lambda row: "".join(pieces[token] for token in slots[row].tokens)) if pieces else None,
            )
        answers: list[dict[str, Any]] = [{} for _ in prompts]
        waiting = deque(range(len(prompts)))
        while waiting or slots:
            for row in range(llama.sequences):
                if row not in slots and waiting:
                    index = waiting.popleft()
                    rules = llama.grammar(grammar, stops) if grammar else None
                    slots[row] = _Slot(index, len(prompts[index]), np.random.default_rng([seed, index]), rules)
                    llama.forget(row)
                    if watch is not None:
                        watch.reset(row)
                    logits = llama.prefill(np.asarray(prompts[index], np.int32), row)
                    self._sample({row: slots[row]}, logits[:, :ids_in_use], temperature, watch)
            for row, slot in list(slots.items()):
                finish = _finish(slot, stops, max_new_tokens, llama.n_ctx)
                if finish is not None:
                    loop = asdict(slot.loop) if slot.loop is not None else None
                    answers[slot.index] = {
                        "tokens": slot.tokens,
                        "log_probs": slot.log_probs,
                        "finish": finish,
                        "loop": loop,
                    }
                    del slots[row]
            # A row that has just come free is filled before the next step, so that steps stay wide.
            if slots and not (waiting and len(slots) < llama.sequences):
                rows = np.fromiter(slots, np.int32)
                last = np.array([slot.tokens[-1] for slot in slots.values()])
                positions = np.array([slot.position for slot in slots.values()])
                logits = llama.decode(last, positions, rows, np.ones(len(rows), bool))
                self._sample(slots, logits[:, :ids_in_use], temperature, watch)
                for slot in slots.values():
                    slot.position += 1
        return answers

    def _sample(self, slots: dict[int, _Slot], logits: np.ndarray, temperature: float, watch: LoopWatch | None) -> None:
        """Append one token to every slot; its log-probability is the network's own, at temperature 1."""
        # float32 is exact enough for one log-probability, and several times faster than log_softmax over all of them.
        shifted = logits - logits.max(axis=-1, keepdims=True)
        normaliser = np.log(np.exp(shifted).sum(axis=-1))
        for place, slot in enumerate(slots.values()):
            token = slot.draw(shifted[place], temperature)
            slot.tokens.append(token)
            slot.log_probs.append(float(shifted[place, token] - normaliser[place]))
        if watch is not None:
            tokens = np.zeros(self.llama.sequences, np.int64)
            active = np.zeros(self.llama.sequences, bool)
            rows = list(slots)
            tokens[rows], active[rows] = [slot.tokens[-1] for slot in slots.values()], True
            for row, loop in watch.push(tokens, active).items():
                slots[row].loop = loop


if __name__ == "__main__":
    serve(Worker())
