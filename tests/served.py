"""A model that says what it is told, and a server in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn
from starlette.applications import Starlette

from minnow.data.calls import Call
from minnow.serve.app import Limits, create_app
from minnow.serve.bodies import Ask
from minnow.serve.desk import Desk, Settings
from minnow.serve.metrics import Metrics
from minnow.serve.source import Ended, Piece, Prompt, Turn


class Scripted:
    """Says ``reply(prompt's last message)`` a word at a time, each after ``pause`` seconds."""

    name, enforces = "scripted", True

    def __init__(
        self, reply: Callable[[str], str] = lambda text: f"You said: {text}", pause: float = 0.0, slots: int = 2
    ) -> None:
        self.reply, self.pause, self.slots = reply, pause, slots
        self.logprob, self.margin, self.doubted = -0.1, 3.0, ""
        self.asked: list[Turn] = []
        self.at_once, self.most_at_once, self.closed = 0, 0, 0
        self.calls: tuple[Call, ...] = ()

    async def close(self) -> None: ...

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        """The log-probability at every position, and how long the text is."""
        return np.full((1 + len(text.split()), 2), [self.logprob, len(text.split())], np.float32)

    def _alternatives(self, text: str) -> list[dict[str, object]]:
        margin = 0.1 if text.strip() == self.doubted else self.margin
        return [{"token": text, "logprob": self.logprob}, {"token": "else", "logprob": self.logprob - margin}]

    async def prepare(self, ask: Ask) -> Prompt:
        return Prompt(ask, ask.max_tokens or 400, (1,))

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        self.asked.append(turn)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        ask = prompt.ask
        said = ask.messages[-1]["content"] if ask.messages else ask.prompt
        try:
            words = self.reply(said).split(" ")
            for place, word in enumerate(words):
                await asyncio.sleep(self.pause)
                text = word + (" " if place < len(words) - 1 else "")
                listed = () if turn.logprobs is None else ({"token": text, "bytes": list(text.encode()), "logprob": self.logprob, "top_logprobs": self._alternatives(text)},)  # fmt: skip
                yield Piece(text, 1, listed)
            yield Ended("stop", 7, 3, len(words), self.calls)
        finally:
            self.at_once -= 1
            self.closed += 1


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The address of ``app``, served in a thread."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()


def scripted_app(source: Scripted, settings: Settings | None = None, limits: Limits | None = None, key: str | None = None) -> Starlette:  # fmt: skip
    return create_app(Desk(source, settings or Settings(), Metrics()), limits, key)
