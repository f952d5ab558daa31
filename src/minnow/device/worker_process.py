"""A Python module in a process of its own that is asked and answers: one JSON request a line, one JSON answer a line.

An assertion inside a runtime then ends that process and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import minnow

LOG_BYTES = 1 << 18
"""Of what a worker writes so much is kept, the latest; a server may write for weeks."""


def worker_environment() -> dict[str, str]:
    """The environment of a process that runs a module of this package, llama.cpp in it."""
    root = str(Path(minnow.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # A failed assertion would start a debugger to print a backtrace, which takes seconds.
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"}


class WorkerDied(Exception):
    """The process ended instead of answering; the text says how: its signal or exit code."""


class WorkerProcess:
    """The parent's side; use it as a context manager.

    Args:
        module: run with ``python -m``; its ``main`` says its answers through :func:`answers`.
        environment: added to this process's own.
    """

    def __init__(self, module: str, **environment: str) -> None:
        self._log, self._reading = bytearray(), threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=worker_environment() | environment,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the worker
        )
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        threading.Thread(target=self._keep_reading, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``request``.

        Raises:
            WorkerDied: there is none.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerDied(f"signal {-code}" if code < 0 else f"exit code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _keep_reading(self) -> None:
        """A pipe that nobody empties would stop the worker once it is full."""
        while self._read_log():
            select.select([self._stderr], [], [])
        with self._reading:
            self._stderr.close()

    def _read_log(self) -> bool:
        """Take what there is in the pipe; whether more may come."""
        with self._reading:
            try:
                while not self._stderr.closed and (some := os.read(self._stderr.fileno(), LOG_BYTES)):
                    self._log += some
                    del self._log[:-LOG_BYTES]
            except BlockingIOError:
                return True
            return False

    def _written(self) -> str:
        """The last of what the worker has written to stdout and stderr, all of it that came before its latest answer."""
        self._read_log()
        return self._log.decode("utf-8", "replace")

    def _complaints(self) -> list[str]:
        """The lines of it that say what went wrong."""
        lines = self._written().splitlines()
        return [line.strip() for line in lines if re.search(r"GGML_ASSERT|[Ee]rror|failed", line)]


class FileWorker(WorkerProcess):
    """A worker with an exported file or folder open, asked by :func:`serve`'s operations."""

    def __init__(self, module: str, **environment: str) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        super().__init__(module, **environment)

    def close(self) -> None:
        """End the worker."""
        super().close()
        self._scratch.cleanup()

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """What is expected after every token of ``ids`` but the last: float32 ``[n - 1, vocab]``."""
        place = Path(self._scratch.name) / "log_probs.npy"  # too much for the pipe
        self._ask("log_probs", ids=list(ids), file=str(place))
        return np.load(place)

    def ends(self, ids: Sequence[int]) -> list[bool]:
        """Which of ``ids`` the runtime ends an answer at."""
        return self._ask("ends", ids=list(ids))

    def _ask(self, op: str, **arguments: Any) -> Any:
        """What the operation gives; UserError where it fails, or the worker dies."""
        raise NotImplementedError


def serve(worker: object) -> None:
    """In the worker: answer ``{"op": name, ...arguments}`` by ``worker``'s method of that name until stdin ends.

    An answer is ``{"ok": ...}`` or ``{"error": sentence, "kind": kind}``.
    """
    say = answers()
    for line in sys.stdin:
        request = json.loads(line)
        operation: Callable[..., Any] = getattr(worker, request.pop("op"))
        try:
            answer: dict[str, Any] = {"ok": operation(**request)}
        except Exception as error:  # noqa: BLE001  the parent makes a sentence of it; this process goes on answering
            answer = {"error": str(error), "kind": type(error).__name__}
        say(answer)


def answers() -> Callable[[dict[str, Any]], None]:
    """In the worker: what says an answer. What libraries print to stdout goes to stderr from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        stream.write(json.dumps(answer) + "\n")
        stream.flush()

    return say
