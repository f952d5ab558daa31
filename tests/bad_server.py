"""An OpenAI-compatible server in a thread that answers as it is told, and behaves badly where it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG, CUT = "hang", "cut"
Step = bytes | str
Reply = tuple[int, dict[str, str], list[Step]]
"""Status, headers, and what is sent in turn: bytes, HANG (until the client goes) or CUT (the connection breaks)."""


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}, ensure_ascii=False).encode() + b"\n\n"


def spoken(text: str, reason: str | None = "stop", pieces: int = 8, tokens: int | None = None) -> Reply:
    """A stream that says ``text`` in some pieces, as llama.cpp's server does."""
    size = max(1, -(-len(text) // pieces))
    parts: list[Step] = [event(delta={"content": text[at : at + size]}) for at in range(0, len(text), size)]
    if reason is not None:
        parts.append(event(delta={}, finish_reason=reason))
    if tokens is not None:
        parts.append(b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n")
    return stream([*parts, *([b"data: [DONE]\n\n"] if reason is not None else [])])


def stream(parts: list[Step]) -> Reply:
    return 200, {"Content-Type": "text/event-stream; charset=utf-8"}, parts


def refusal(status: int, message: str = "busy", **headers: str) -> Reply:
    return status, headers, [json.dumps({"error": {"message": message}}).encode()]


class BadServer:
    """``reply(body, n)``: what the ``n``-th request (from 0) for this prompt is answered with."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once, self.most_at_once = 0, 0
        self.closing = threading.Event()
        self._lock, self._asked = threading.Lock(), Counter[str]()
        self.url = ""

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        with self._lock:
            count = self._asked[prompt]
            self._asked[prompt] += 1
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            status, headers, steps = self.reply(body, count)
        finally:
            with self._lock:  # before the answer goes out: its last bytes may bring the next request at once
                self.at_once -= 1
        if steps and steps[0] == HANG:
            self.closing.wait(20)
            return
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        for step in steps:
            if step == HANG:
                self.closing.wait(20)
            elif step == CUT:
                handler.connection.close()
                return
            elif isinstance(step, bytes):
                handler.wfile.write(step)
                handler.wfile.flush()


@contextmanager
def bad_server(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[BadServer]:
    server = BadServer(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                server.serve(self)
            except (OSError, ValueError):
                time.sleep(0)  # the client has gone

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()
