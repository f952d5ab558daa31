"""A GGUF file behind llama.cpp's own server, which keeps what it has read of a conversation for its next turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from minnow.agent.grammar import call_grammar
from minnow.data.chat import END, END_OF_TEXT
from minnow.data.tokenizer import Tokenizer
from minnow.device.worker_process import WorkerDied, WorkerProcess
from minnow.errors import UserError, require
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.events import events
from minnow.serve.local import prepare
from minnow.serve.sessions import Sessions
from minnow.serve.source import Ended, Piece, Prompt, Turn, connections

_DYING = 5.0  # seconds that a process whose connections failed is given to be gone
_SCHEMAS = 1000  # that are remembered to have been tried


class LlamaServer(WorkerProcess):
    """llama.cpp's own server in a process of its own; use it as a context manager.

    Args:
        context: positions of a prompt and its answer; slots: answers at once; threads: of llama.cpp.
        sessions: folder that slots' states may be saved to.

    Attributes:
        url: its address.

    Raises:
        UserError: llama.cpp cannot load the file.
    """

    def __init__(self, file: Path, context: int, slots: int, threads: int, sessions: Path | None = None) -> None:
        super().__init__("minnow.serve.llama_process")
        wanted = {"file": str(file), "context": context, "slots": slots, "threads": threads}
        try:
            self.url = str(self._exchange(wanted | {"sessions": sessions and str(sessions)})["url"])
        except WorkerDied as error:
            said = next(reversed(self._complaints()), str(error))
            self.close()
            raise UserError(f"llama.cpp could not serve {file}: {said}") from error


class LlamaSource:
    """Answers from a GGUF file (:class:`minnow.serve.source.Source`).

    Prompts go to llama.cpp as token ids of our own tokenizer, so that no text of a client's is read for special tokens.

    Args:
        tokenizer: the one the file was exported with.
        context: positions of a prompt and its answer.
        slots: answers at once.
        threads: of llama.cpp.
        sessions: folder in which what was read of conversations outlives the server.

    Raises:
        UserError: ``xllamacpp`` is missing, or llama.cpp cannot load the file.
    """

    enforces = True

    def __init__(
        self,
        file: Path,
        tokenizer: Tokenizer,
        context: int,
        name: str,
        slots: int = 4,
        threads: int = 1,
        sessions: Path | None = None,
    ) -> None:
        require("xllamacpp", "export")
        self.file, self.tokenizer, self.context, self.name, self.slots = file, tokenizer, context, name, slots
        marks = (tokenizer.encode_chat(mark) for mark in (END, END_OF_TEXT))
        # Whatever the model's own end is, llama.cpp ends an answer at either.
        self._ends = tokenizer.stop_ids | {ids[0] for ids in marks if len(ids) == 1}
        self._threads = threads
        self._sessions = None if sessions is None else Sessions(sessions, file)
        self._held: set[str] = set()  # schemas that answers were seen to be held to
        self._starting = asyncio.Lock()
        self._server = self._start()
        self._client = httpx.AsyncClient(timeout=None, trust_env=False, limits=connections(self.url))

    def _start(self) -> LlamaServer:
        kept = self._sessions
        folder = None if kept is None else kept.folder
        while True:
            server = LlamaServer(self.file, self.context, self.slots, self._threads, folder)
            if kept is None or kept.restore(server.url, self.slots):
                return server
            server.close()

    @property
    def url(self) -> str:
        """Address of llama.cpp's server."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Process id of llama.cpp's server."""
        return self._server.pid

    async def close(self) -> None:
        if self._sessions is not None:
            await self._sessions.close()
        await self._client.aclose()
        self._server.close()

    async def prepare(self, ask: Ask) -> Prompt:
        return await asyncio.to_thread(prepare, ask, self.tokenizer, self.context)

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        assert prompt.ids is not None
        ids, server = [*prompt.ids, *self.tokenizer.encode_chat(text)], self._server
        try:
            response = await self._client.post(f"{server.url}/embedding", json={"content": ids})
        except httpx.HTTPError as error:
            raise await self._died(server) from error
        if response.status_code != 200:
            raise _refused(response.status_code, response.text)
        return np.array(response.json()[0]["embedding"], np.float32)

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        ask = prompt.ask
        assert prompt.ids is not None and prompt.max_tokens is not None
        ids = [*prompt.ids, *self.tokenizer.encode_chat(turn.text)]
        body: dict[str, Any] = {
            "prompt": ids,
            "n_predict": prompt.max_tokens - (len(ids) - len(prompt.ids)),
            "temperature": turn.temperature,
            "seed": turn.seed % 2**32,
            # Neutral unless asked for: llama.cpp cuts the tail of the distribution by default.
            "top_p": ask.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "frequency_penalty": ask.frequency_penalty,
            "presence_penalty": ask.presence_penalty,
            "repeat_penalty": 1.0,
            "stop": list(ask.stop),
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
        }
        if turn.logprobs is not None:
            body["n_probs"] = max(1, turn.logprobs)
        if ask.schema is not None:
            body["json_schema"] = ask.schema
            await self._try(body)
        elif ask.must_call:
            named = [tool for tool in ask.tools if tool["name"] in ask.must_call]
            body["grammar"] = call_grammar(named, many=not ask.one_call)
        if body["n_predict"] < 1:
            yield Ended("length")
            return
        if turn.banned:
            # A bias holds for a whole request, and only the first token is forbidden.
            forbidden = {self.tokenizer.encode_chat(text)[0] for text in turn.banned}
            first = body | {"n_predict": 1, "logit_bias": [[token, False] for token in sorted(forbidden)]}
            text = ""
            async for part in self._complete(first, turn.logprobs):
                if isinstance(part, Piece):
                    text += part.text
                    yield part
                elif part.reason == "stop":
                    yield part
                    return
            body |= {"prompt": [*ids, *self.tokenizer.encode_chat(text)], "n_predict": body["n_predict"] - 1}
            if body["n_predict"] < 1:
                yield Ended("length")
                return
        async for part in self._complete(body, turn.logprobs):
            yield part

    async def _try(self, body: dict[str, Any]) -> None:
        """Refuse a schema that no answer is held to: llama.cpp drops one that it cannot work with, and says nothing.

        One token is asked for, with so much weight on one that begins no JSON that only a grammar keeps it out.

        Raises:
            ApiError: 400.
        """
        schema = json.dumps(body["json_schema"], sort_keys=True)
        if schema in self._held:
            return
        no_json = self.tokenizer.encode("~")[0]
        tried = body | {"n_predict": 1, "temperature": 0.0, "logit_bias": [[no_json, 1e4]]}
        if "~" in "".join([part.text async for part in self._complete(tried, None) if isinstance(part, Piece)]):
            raise ApiError(400, "llama.cpp cannot hold an answer to this schema: a reference leads nowhere, a format or pattern is unknown to it, or nothing satisfies it", "invalid_schema", "response_format.json_schema.schema")  # fmt: skip
        if len(self._held) == _SCHEMAS:
            self._held.clear()
        self._held.add(schema)

    async def _complete(self, body: dict[str, Any], logprobs: int | None) -> AsyncGenerator[Piece | Ended]:
        server = self._server
        try:
            async with self._client.stream("POST", f"{server.url}/completion", json=body) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, (await response.aread()).decode(errors="replace"))
                async for some in events(response.aiter_raw()):
                    text, tokens, listed, last = "", 0, [], None
                    for event in some:
                        if "error" in event:
                            raise ApiError(500, f"llama.cpp failed: {event['error'].get('message')}")
                        if event.get("stop"):
                            last = event
                            continue
                        ids = event.get("tokens", ())
                        if ids and ids[-1] in self._ends:
                            continue  # its text is the mark that ends a turn
                        text += event["content"]
                        tokens += len(ids)
                        if logprobs is not None:
                            listed += [_logprob(each, logprobs) for each in event.get("completion_probabilities", ())]
                    if text or tokens:
                        yield Piece(text, tokens, tuple(listed))
                    if last is not None:
                        if self._sessions is not None:
                            self._sessions.changed(last["id_slot"], self.url)
                        yield _ended(last)
                        return
            raise ApiError(502, "llama.cpp's answer broke off")
        except httpx.HTTPError as error:
            raise await self._died(server) from error

    async def _died(self, server: LlamaServer) -> ApiError:
        """Start the process again if it has gone; what to tell the client whom it failed."""
        async with self._starting:
            # Its connections are gone before it is, on a busy machine by much.
            late = time.monotonic() + _DYING
            while self._server is server and not server.ended and time.monotonic() < late:
                await asyncio.sleep(0.02)
            if self._server.ended:
                await asyncio.to_thread(self._server.close)
                self._server = await asyncio.to_thread(self._start)
        return ApiError(503, "the model's process died and was started again; send the request once more", "engine_died", retry_after=1)  # fmt: skip


def _ended(event: dict[str, Any]) -> Ended:
    timings = event.get("timings", {})
    return Ended(
        "length" if event.get("stop_type") == "limit" else "stop",
        event.get("tokens_evaluated"),
        timings.get("cache_n"),
        event.get("tokens_predicted"),
        timings={name: value for name, value in timings.items() if isinstance(value, (int, float))},
    )


def _logprob(entry: dict[str, Any], most: int) -> dict[str, Any]:
    kept = ("token", "bytes", "logprob")
    top = [{name: other[name] for name in kept} for other in entry.get("top_logprobs", ())[:most]]
    return {name: entry[name] for name in kept} | {"top_logprobs": top}


def _refused(status: int, said: str) -> ApiError:
    try:
        message = str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = said[:300]
    return ApiError(500 if status >= 500 else 400, f"llama.cpp refused: {message}")
