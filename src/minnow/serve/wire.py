"""Answers in OpenAI's form: whole, and in chunks."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from minnow.data.calls import Call
from minnow.serve.bodies import Ask
from minnow.serve.desk import Event
from minnow.serve.guarded import Taken
from minnow.serve.router import Looked, Routed
from minnow.serve.source import Piece


@dataclass
class Reply:
    """One answer being written down.

    Its objects have, beside OpenAI's fields, ``route`` (``action``, ``reason``, what was ``tried``), ``timings``, ``guard`` and the
    ``tool_trace`` of the server's own calls.
    """

    ask: Ask
    model: str
    id: str = ""
    created: int = 0
    _text: list[str] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    _looked: list[dict[str, Any]] = field(default_factory=list)
    _begun: bool = False
    _length: int = 0  # of the tokens that have been listed, in characters

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    @property
    def chat(self) -> bool:
        return self.ask.messages is not None

    def chunks(self, event: Event) -> bytes:
        """The server-sent events that tell of ``event``."""
        parts: list[dict[str, Any]] = []
        if not self._begun and self.chat:
            parts.append(self._chunk({"role": "assistant", "content": ""}))
        self._begun = True
        if isinstance(event, Piece):
            parts.append(self._chunk({"content": event.text}, event))
        elif isinstance(event, Taken):
            parts.append(self._chunk({}) | {"guard": {"rewinds": event.rewinds, "discarded": event.characters}})
        elif isinstance(event, Looked):
            parts.append(self._chunk({}) | {"tool_trace": [_looked(event)]})
        else:
            finished = event.finished
            if finished.calls:
                parts.append(self._chunk({"tool_calls": [_call(i, call) for i, call in enumerate(finished.calls)]}))
            last = self._chunk({}) | _extras(event)
            last["choices"][0]["finish_reason"] = finished.reason
            parts.append(last)
            if self.ask.usage_in_stream:
                parts.append(self._chunk({}) | {"choices": [], "usage": finished.usage})
        written = "".join(f"data: {_dumps(part)}\n\n" for part in parts)
        return (written + ("data: [DONE]\n\n" if isinstance(event, Routed) else "")).encode()

    def take(self, event: Event) -> dict[str, Any] | None:
        """Collect ``event``; the whole answer after the last."""
        if isinstance(event, Piece):
            self._text.append(event.text)
            self._logprobs += event.logprobs
        elif isinstance(event, Looked):
            self._looked.append(_looked(event))
        if not isinstance(event, Routed):
            return None
        finished, text = event.finished, "".join(self._text)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": finished.reason,
            "logprobs": self._listed(self._logprobs),
        }
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if finished.calls:
                message |= {"content": text or None}
                message["tool_calls"] = [
                    {key: value for key, value in _call(i, call).items() if key != "index"}
                    for i, call in enumerate(finished.calls)
                ]
            choice["message"] = message
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        looked = {"tool_trace": self._looked} if self._looked else {}
        return head | {"choices": [choice], "usage": finished.usage} | _extras(event) | looked

    def _chunk(self, delta: dict[str, Any], piece: Piece | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        choice["logprobs"] = self._listed(list(piece.logprobs)) if piece is not None else None
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": [choice]} | ({"usage": None} if self.ask.usage_in_stream else {})

    def _listed(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        if self.ask.logprobs is None:
            return None
        if self.chat:
            return {"content": entries, "refusal": None}
        tops = [{other["token"]: other["logprob"] for other in entry["top_logprobs"]} for entry in entries]
        tokens = [entry["token"] for entry in entries]
        offsets = list(accumulate(map(len, tokens), initial=self._length))
        self._length = offsets.pop()
        return {
            "tokens": tokens,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": tops if self.ask.logprobs else None,
            "text_offset": offsets,
        }


def embedded(model: str, vectors: Sequence[np.ndarray], tokens: int, encoding: str) -> dict[str, Any]:
    """A list of embeddings; ``encoding`` is ``"float"``, or ``"base64"`` of float32 in little-endian order."""

    def written(vector: np.ndarray) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()

    data = [{"object": "embedding", "index": place, "embedding": written(one)} for place, one in enumerate(vectors)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _looked(event: Looked) -> dict[str, Any]:
    return {"name": event.call.name, "arguments": event.call.arguments, "result": event.result}


def error_event(body: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, and its end."""
    return f"data: {_dumps(body)}\n\ndata: [DONE]\n\n".encode()


def _extras(routed: Routed) -> dict[str, Any]:
    finished = routed.finished
    extras: dict[str, Any] = {
        "route": {"action": routed.action, "reason": routed.reason, "tried": list(routed.tried)},
        "timings": {name: round(value, 3) for name, value in finished.timings.items()},
    }
    if finished.rewinds:
        extras["guard"] = {"rewinds": finished.rewinds, "discarded": finished.discarded}
    if finished.trimmed:
        extras["trimmed_messages"] = finished.trimmed
    return extras


def _call(index: int, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"index": index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _dumps(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
