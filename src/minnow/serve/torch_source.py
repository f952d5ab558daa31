"""A checkpoint behind torch: one answer at a time, for models that llama.cpp does not run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.model.language_model import LanguageModel
from minnow.rollout.scoring import hidden_states
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.local import prepare
from minnow.serve.source import Ended, Piece, Prompt, Turn, begun_length


class TorchSource:
    """Answers from a language model in this process (:class:`minnow.serve.source.Source`)."""

    enforces = False
    slots = 1

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, name: str, context: int) -> None:
        self.model, self.tokenizer, self.name, self.context = model, tokenizer, name, context
        self._taken = threading.Lock()

    async def close(self) -> None:
        return

    async def prepare(self, ask: Ask) -> Prompt:
        if ask.frequency_penalty or ask.presence_penalty or ask.top_p < 1:
            raise ApiError(
                400, "the torch engine has no penalties and no top_p; leave them out", "unsupported", "top_p"
            )
        return await asyncio.to_thread(prepare, ask, self.tokenizer, self.context)

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        assert prompt.ids is not None
        ids = [*prompt.ids, *self.tokenizer.encode_chat(text)]

        def work() -> np.ndarray:
            with self._taken:
                return hidden_states(self.model, ids).numpy()

        return await asyncio.to_thread(work)

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[Piece | Ended | Exception]()
        stopped = threading.Event()

        def work() -> None:
            try:
                with self._taken:
                    for part in self._decode(prompt, turn):
                        loop.call_soon_threadsafe(parts.put_nowait, part)
                        if stopped.is_set():
                            return
            except Exception as error:  # noqa: BLE001  raised again where the parts are taken
                loop.call_soon_threadsafe(parts.put_nowait, error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                part = await parts.get()
                if isinstance(part, Exception):
                    raise ApiError(500, f"the engine failed: {part}") from part
                yield part
                if isinstance(part, Ended):
                    return
        finally:
            stopped.set()

    @torch.no_grad()
    def _decode(self, prompt: Prompt, turn: Turn) -> Iterator[Piece | Ended]:
        assert prompt.ids is not None and prompt.max_tokens is not None
        begun = self.tokenizer.encode_chat(turn.text)
        ids = [*prompt.ids, *begun]
        banned = [self.tokenizer.encode_chat(text)[0] for text in turn.banned]
        random = torch.Generator().manual_seed(turn.seed % 2**63)
        budget = prompt.max_tokens - len(begun)
        written: list[int] = []
        text, stops = "", prompt.ask.stop
        with self.model.decoding():
            hidden, state = self.model.prefill(torch.tensor([ids]), torch.tensor([len(ids)]), len(ids) + budget)
            while len(written) < budget:
                logits = self.model.logits(hidden).float()[0, : self.tokenizer.vocab_size]
                allowed = logits.clone()
                if not written and banned:
                    allowed[banned] = -torch.inf
                if turn.temperature > 0:
                    shares = torch.softmax(allowed / turn.temperature, -1)
                    token = int(torch.multinomial(shares, 1, generator=random))
                else:
                    token = int(allowed.argmax())
                if token in self.tokenizer.stop_ids:
                    yield Ended("stop", len(prompt.ids), 0)
                    return
                written.append(token)
                whole = self.tokenizer.decode(written, keep_special=True)
                # A character may still lack its last bytes, and a stop text its end.
                safe = whole.rstrip("\ufffd")
                found = min((at for stop in stops if (at := whole.find(stop)) >= 0), default=None)
                safe = whole[:found] if found is not None else safe[: len(safe) - begun_length(safe, stops)]
                logprobs = () if turn.logprobs is None else (self._logprob(logits, token, turn.logprobs),)
                yield Piece(safe[len(text) :], 1, logprobs)
                text = safe if len(safe) > len(text) else text
                if found is not None:
                    yield Ended("stop", len(prompt.ids), 0)
                    return
                hidden = self.model.step(torch.tensor([token]), state)
        yield Piece(self.tokenizer.decode(written, keep_special=True)[len(text) :], 0)
        yield Ended("length", len(prompt.ids), 0)

    def _logprob(self, logits: torch.Tensor, token: int, most: int) -> dict[str, Any]:
        logs = torch.log_softmax(logits, -1)

        def entry(one: int) -> dict[str, Any]:
            piece = self.tokenizer.decode([one], keep_special=True)
            return {"token": piece, "bytes": list(piece.encode()), "logprob": float(logs[one])}

        top = logs.topk(most).indices.tolist() if most else []
        return entry(token) | {"top_logprobs": [entry(one) for one in top]}
