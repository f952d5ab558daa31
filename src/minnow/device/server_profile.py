"""Speed of a model behind an OpenAI-compatible server, as its client sees it: the connection and the queue included.

No tokenizer is at hand: a prompt is drawn from common words, as many as make the server count the tokens asked for, and
differs from the first word on each time, so that a cache of prompts does not answer for the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from minnow.device.bench import Timing
from minnow.device.machine import load_average
from minnow.device.profile import figures, model_entry
from minnow.errors import UserError
from minnow.progress import track
from minnow.rollout.records import Sampling
from minnow.rollout.reply import Reply
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import ChatPrompt

_WORDS = [
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with",
    "his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what",
]  # fmt: skip
_TRIES = 6  # to meet a number of tokens
_LEAST = 8  # tokens that a decoding speed is taken over


def profile_server(
    engine: ServerEngine, prompts: Sequence[int], depths: Sequence[int], repeats: int, answer: int
) -> dict[str, Any]:
    """One entry of ``files`` as :func:`minnow.device.profile.profile` has them; what only the server knows is None.

    One request at a time; a warm-up, then ``repeats``. Servers that know ``ignore_eos`` are asked to.

    Raises:
        UserError: the server fails, does not count tokens, or ends its answers too early to time them.
    """
    asker, before = _Asker(engine), load_average()
    every = sorted({*prompts, *depths})
    runs: dict[int, list[Timing]] = {}
    with track(len(every), f"profile {engine.model}", "lengths") as bar:
        for n in every:
            words = asker.words_of(n)
            runs[n] = [asker.run(words, answer if n in depths else 0) for _ in range(repeats + 1)][1:]
            bar.advance(1)
    shortest = min(len(run.token_ms) for n in depths for run in runs[n])
    if shortest < min(_LEAST, answer):
        raise UserError(
            f"{engine.model} ended an answer after {shortest + 1} tokens, too few to time; ask for other --depths, or a server "
            "that knows ignore_eos"
        )
    cut = {n: [replace(run, token_ms=run.token_ms[:shortest]) for run in found] for n, found in runs.items()}
    return model_entry(
        figures(cut, prompts, depths, shortest),
        file=f"{engine.model} at {engine.url}",
        engine="server",
        repeats=repeats,
        runtime="a server",
        runtime_build="as it answers over HTTP",
        load_average={"before": before, "after": load_average()},
    )


class _Asker:
    """Asks for timed answers; remembers whether the server takes ``ignore_eos``, and draws every prompt once."""

    def __init__(self, engine: ServerEngine) -> None:
        self._engine, self._random = engine, np.random.default_rng(0)
        self._more: dict[str, Any] = {"ignore_eos": True}

    def words_of(self, tokens: int) -> int:
        """How many words make a prompt of ``tokens`` tokens, the chat format included."""
        words, found = tokens, 0
        for _ in range(_TRIES):
            if (found := self._ask(words, 1)[0]) == tokens:
                return words
            words = max(1, words + tokens - found)
        if abs(found - tokens) <= 0.05 * tokens:
            return words
        raise UserError(
            f"no prompt of {tokens} tokens could be made for {self._engine.model}, whose chat format alone may take more; ask "
            "for other --prompts and --depths"
        )

    def run(self, words: int, answer: int) -> Timing:
        """The time to the first piece and then of each of ``answer`` tokens, which share the time where several came at once."""
        _, tokens, marks = self._ask(words, answer + 1)
        first = 1e3 * (marks[1] - marks[0])
        steps = 1e3 * np.diff(marks[1:])
        if len(steps) != tokens - 1:
            steps = np.full(tokens - 1, steps.sum() / max(1, tokens - 1))
        return Timing(first, steps, first, steps)

    def _ask(self, words: int, answer: int) -> tuple[int, int, list[float]]:
        """Tokens of prompt and answer as the server counts them; when it was asked and when each piece came."""
        text = " ".join(self._random.choice(_WORDS, words))
        prompt = ChatPrompt("0", [{"role": "user", "content": text}])
        sampling = Sampling(0.0, answer, stop_on_loop=False)
        marks, reply = [perf_counter()], Reply()
        try:
            marks += [perf_counter() for piece in self._engine.stream(prompt, sampling, reply, **self._more) if piece]
        except UserError:
            if not self._more:
                raise
            self._more = {}
            return self._ask(words, answer)
        if len(marks) == 1 or not {"prompt_tokens", "completion_tokens"} <= reply.usage.keys():
            raise UserError(
                f"{self._engine.url} does not say how many tokens it read and wrote, or wrote none; a profile needs that"
            )
        return reply.usage["prompt_tokens"], reply.usage["completion_tokens"], marks
