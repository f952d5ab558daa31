"""Python for a model, in a process that can compute and nothing else."""

from __future__ import annotations

import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from minnow.agent.tools import Tool
from minnow.data.calls import CallError
from minnow.errors import UserError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_START = 30.0  # seconds until the process has locked itself in, on a busy machine


@dataclass(frozen=True)
class SandboxLimits:
    """What one piece of code may use: seconds (of the clock and of CPU), memory, and characters of output."""

    seconds: int = 5
    megabytes: int = 256
    characters: int = 2000


def run_python(code: str, limits: SandboxLimits | None = None) -> str:
    """What ``code`` prints, and the value of its last expression.

    It reads nothing but Python's own library, writes nothing, starts nothing and reaches no network
    (:mod:`minnow.agent.sandbox_child` says by which means).

    Raises:
        CallError: it ran out of time.
        UserError: this system cannot hold it.
    """
    limits = limits or SandboxLimits()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UserError(
            f"the Python sandbox needs Linux on x86-64, not {sys.platform} on {platform.machine()}; leave that tool out"
        )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD), str(limits.seconds), str(limits.megabytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"LANG": "C.UTF-8", "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(code.encode("utf-8", "replace"))
        process.stdin.close()
        output = process.stdout.fileno()
        first, _ = _read(output, time.monotonic() + _START, 4000, b"\n")
        word, _, rest = first.partition(b"\n")
        if word != b"locked":
            why = word.decode("utf-8", "replace")[:200].removeprefix("no: ") or "it did not start"
            raise UserError(f"the Python sandbox cannot be closed on this system ({why}); leave that tool out")
        said, ended = _read(output, time.monotonic() + limits.seconds, 4 * limits.characters, None)
        text = (rest + said).decode("utf-8", "replace").rstrip()[: limits.characters]
    finally:
        process.kill()
        process.stdout.close()
        status = process.wait()
    if not ended or status == -signal.SIGXCPU:
        raise CallError(f"the code ran for more than {limits.seconds} s and was stopped; it had printed: {text!r}.")
    return text or "(nothing was printed)"


def _read(output: int, deadline: float, most: int, until: bytes | None) -> tuple[bytes, bool]:
    """What comes before the deadline (or up to ``until``), the first ``most`` bytes of it, and whether it ended in time."""
    body = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(output, 1 << 16)
                body += chunk[: most - len(body)]
                if not chunk or (until is not None and until in chunk):
                    return bytes(body), True
    return bytes(body), False


def python_tool(limits: SandboxLimits | None = None) -> Tool:
    """``python(code)`` in the sandbox.

    Raises:
        UserError: this system cannot hold it, which is tried at once.
    """
    run_python("1", limits)
    about = "Run Python (its standard library only, no files, no network); gives what it prints."
    return Tool("python", about, {"code": "string"}, lambda code: run_python(code, limits))
