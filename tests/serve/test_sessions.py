"""What was read of a conversation outlives the server that read it, and how it died."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.files import seal
from minnow.serve.app import create_app
from minnow.serve.desk import Desk, Settings
from minnow.serve.llama import LlamaSource
from minnow.serve.metrics import Metrics
from served import running

FIRST = [{"role": "user", "content": "Where is Velm, and who rules Val Tordan?"}]


def ask(url: str, messages: list[dict[str, str]]) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt came from the cache."""
    reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, "max_tokens": 12}, timeout=60).json()
    message, usage = reply["choices"][0]["message"], reply["usage"]
    return message["content"], usage["prompt_tokens_details"]["cached_tokens"]


def further(said: str) -> list[dict[str, str]]:
    return [*FIRST, {"role": "assistant", "content": said}, {"role": "user", "content": "And Orrin?"}]


@contextmanager
def served(gguf: Path, words: Tokenizer, sessions: Path | None = None) -> Iterator[tuple[str, LlamaSource]]:
    source = LlamaSource(gguf, words, 512, "tiny", slots=2, sessions=sessions)
    with running(create_app(Desk(source, Settings(guard=None), Metrics()))) as url:
        yield url, source


def kept(sessions: Path) -> list[Path]:
    """The files, once there is one and none is being written."""
    deadline = time.monotonic() + 20
    while not (files := sorted(sessions.glob("*/*.state"))) or list(sessions.glob("*/.*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return files


@contextmanager
def launched(gguf: Path, folder: Path, sessions: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "minnow",
        "serve",
        str(gguf),
        "--tokenizer",
        str(folder),
        "--sessions",
        str(sessions),
    ]
    command += ["--port", "0", "--guard", "off", "--context", "512"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"MINNOW_SERVE_KEY": ""})
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.search(r"http://\S+(?=/v1)", said)
        assert found, said + process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_kill_and_a_restart_change_nothing(gguf: Path, folder: Path, words: Tokenizer, tmp_path: Path) -> None:
    with served(gguf, words) as (url, _):
        said, fresh = ask(url, FIRST)
        assert fresh == 0
        expected, warm = ask(url, further(said))
        assert warm > 0
    with launched(gguf, folder, tmp_path) as (url, process):
        assert ask(url, FIRST) == (said, 0)
        kept(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
    (made,) = tmp_path.iterdir()
    assert made.stat().st_mode & 0o077 == 0
    with launched(gguf, folder, tmp_path) as (url, _):
        assert ask(url, further(said)) == (expected, warm)


def test_a_runtime_that_dies_takes_nothing_with_it(gguf: Path, words: Tokenizer, tmp_path: Path) -> None:
    with served(gguf, words, tmp_path) as (url, source):
        said, _ = ask(url, FIRST)
        kept(tmp_path)
        died = source.pid
        os.kill(died, signal.SIGKILL)
        refused = httpx.post(f"{url}/v1/chat/completions", json={"messages": FIRST}, timeout=60)
        assert refused.status_code == 503 and source.pid != died
        assert ask(url, further(said))[1] > 0


def test_what_is_damaged_is_read_again(
    gguf: Path, words: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(gguf, words, tmp_path) as (url, _):
        said, _ = ask(url, FIRST)
        expected, _ = ask(url, further(said))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for bad in (whole[: len(whole) // 2], bytes(changed), b""):
        file.write_bytes(bad)
        (file.parent / f".{file.name}.begun.tmp").write_bytes(bad)
        with served(gguf, words, tmp_path) as (url, _):
            assert f"{file} is of no use" in capsys.readouterr().err
            assert [*file.parent.iterdir()] == []
            assert ask(url, further(said)) == (expected, 0)
    # Of another shape, though whole: llama.cpp itself finds out.
    file.write_bytes(b"no state of llama.cpp's")
    seal(file)
    with served(gguf, words, tmp_path) as (url, _):
        assert not file.exists() and ask(url, further(said)) == (expected, 0)
