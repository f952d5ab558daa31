"""Escapes are tried for real: each must fail, and end at most a second after its limit."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from pathlib import Path

import pytest

from minnow.agent.sandbox import SandboxLimits, python_tool, run_python
from minnow.agent.tools import call_tool
from minnow.data.calls import Call, CallError
from minnow.errors import UserError

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the sandbox is for Linux on x86-64"
)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 + 1", "2"),
        ("x = 6\nprint(x)\nx * 7", "6\n42"),
        ("None", "(nothing was printed)"),
        ("import math, decimal, json, re, statistics, datetime, hashlib\nmath.comb(50, 25)", "126410606437752"),
        ("print('größe 🦋')", "größe 🦋"),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)\nf(20)", "2432902008176640000"),
        ("1 / 0", "ZeroDivisionError in line 1: division by zero"),
        ("x = 1\ny = [\n", "SyntaxError: '[' was never closed (code, line 2)"),
        ("import sys\nsys.exit()", "(nothing was printed)"),
        ("import threading\nt = threading.Thread(target=print, args=(3,))\nt.start(); t.join()", "3"),
        ("__name__", "'__main__'"),
    ],
)
def test_what_code_says(code: str, said: str) -> None:
    assert run_python(code) == said


CAUGHT = "\nexcept BaseException as error:\n    print(type(error).__name__)\nelse:\n    print('ESCAPED')"
ESCAPES = {
    "fork": "import os\nos.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "spawn": "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
    "program": "import subprocess\nsubprocess.run(['id'])",
    "exec": "import os\nos.execv('/bin/sh', ['sh'])",
    "system": "import os\nif os.system('touch {folder}/x'): raise OSError",
    "processes": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('{folder}/socket')",
    "raw socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "read": "open('{folder}/secret').read()",
    "read passwords": "open('/etc/passwd').read()",
    "read processes": "open('/proc/self/environ').read()",
    "read the parent": "open('/proc/{pid}/environ').read()",
    "list": "import os\nos.listdir('{folder}')",
    "write": "open('{folder}/new', 'w')",
    "write to tmp": "open('/tmp/minnow-escape', 'w').write('x')",
    "write shared memory": "open('/dev/shm/minnow-escape', 'w').write('x')",
    "append": "open('{folder}/secret', 'a').write('x')",
    "truncate": "import os\nos.truncate('{folder}/secret', 0)",
    "remove": "import os\nos.remove('{folder}/secret')",
    "rename": "import os\nos.rename('{folder}/secret', '{folder}/other')",
    "link": "import os\nos.symlink('/etc/passwd', '{folder}/link')",
    "mode": "import os\nos.chmod('{folder}/secret', 0)",
    "times": "import os\nos.utime('{folder}/secret', (0, 0))",
    "attribute": "import os\nos.setxattr('{folder}/secret', 'user.x', b'x')",
    "folder": "import os\nos.mkdir('{folder}/new')",
    "kill": "import os\nos.kill({pid}, 0)",
    "trace": "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nif l.ptrace(16, {pid}, 0, 0) < 0: raise OSError",
    "own limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (999, 999))",
    "others' limits": "import resource\nresource.prlimit({pid}, resource.RLIMIT_NOFILE)",
    "namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError",
    "root": "import os\nos.chroot('/')",
    "io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 1, None) < 0: raise OSError",
    "keys": "import ctypes\nif ctypes.CDLL(None).syscall(248, b'user', b'a', b'b', 1, -1) < 0: raise OSError",
    "too much memory": "x = bytearray(1 << 30)",
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_escapes_fail(escape: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    before = os.stat(tmp_path / "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        fill = {"folder": str(tmp_path), "port": str(server.getsockname()[1]), "pid": str(os.getpid())}
        code = ESCAPES[escape]
        for name, value in fill.items():
            code = code.replace("{" + name + "}", value)
        said = run_python("try:\n    " + code.replace("\n", "\n    ") + CAUGHT)
        assert "ESCAPED" not in said and said.endswith(("Error", "Exception")), said
        with pytest.raises(BlockingIOError):
            server.accept()
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]
    after = os.stat(tmp_path / "secret")
    assert (before.st_mode, before.st_mtime, before.st_size) == (after.st_mode, after.st_mtime, after.st_size)
    assert not Path("/tmp/minnow-escape").exists() and not Path("/dev/shm/minnow-escape").exists()


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "while True: print('x' * 1000)",
        "try:\n    while True: pass\nexcept BaseException: pass\nwhile True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import threading\nt = threading.Thread(target=lambda: any(iter(int, 1)))\nt.start(); t.join()",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        "9 ** 9 ** 9",
    ],
)
def test_endless_code_ends_in_time(code: str) -> None:
    started = time.monotonic()
    with pytest.raises(CallError, match="more than 1 s"):
        run_python(code, SandboxLimits(seconds=1, characters=50))
    # What it takes to start Python is not the code's.
    empty = time.monotonic()
    run_python("1")
    assert time.monotonic() - started < 2 + 2 * (time.monotonic() - empty)


def test_a_memory_bomb_hits_the_limit() -> None:
    said = run_python("x = []\nwhile True: x.append(bytearray(1 << 20))", SandboxLimits(megabytes=128))
    assert said.startswith("MemoryError in line 2")


def test_output_is_cut() -> None:
    assert run_python("print('x' * 10**7)", SandboxLimits(characters=100)) == "x" * 100


def test_nothing_of_the_caller_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "key")
    assert "key" not in run_python("import os\ndict(os.environ)")
    assert run_python("import sys\nsys.stdin.read()") == "''"
    assert run_python("try:\n    import minnow\nexcept ImportError: print('no')") == "no"


def test_the_tool_and_a_system_that_cannot_hold_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = python_tool()
    assert call_tool([tool], Call("python", {"code": "2**10"}), 99) == ("1024", True)
    assert not tool.effects and not tool.outside
    weak = tmp_path / "child.py"
    weak.write_text("print('no: Function not implemented')")
    monkeypatch.setattr("minnow.agent.sandbox._CHILD", weak)
    with pytest.raises(UserError, match="cannot be closed .*Function not implemented"):
        python_tool()
    monkeypatch.setattr("minnow.agent.sandbox.platform.machine", lambda: "riscv64")
    with pytest.raises(UserError, match="needs Linux on x86-64"):
        python_tool()
