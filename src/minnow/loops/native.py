"""Compiles ``judge.c`` on first use, once per source and compiler, and loads it; without a compiler, Python judges."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.errors import UserError
from minnow.files import whole_file

SOURCE = Path(__file__).with_name("judge.c")
_FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared"]
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
# p pointer, l int64; the letter before the dot is what comes back, n for nothing.
_SIGNATURES = {
    "scratch_bytes": "l.",
    "judge_many": "n.ppppllpp",
    "read_text": "l.plppppp",
    "read_tokens": "l.pllppppppppp",
    "watch_push": "l.pppp",
}
_CODES: dict[str, Any] = {"p": _POINTER, "l": _LONG, "n": None}


@dataclass(frozen=True)
class Native:
    """The loaded library, or None, and a line that says what runs and why."""

    library: ctypes.CDLL | None
    description: str


@functools.cache
def load() -> Native:
    """Compile if needed and load; never raises for a machine that cannot, the description then says why.

    ``MINNOW_LOOPS=python`` in the environment asks for Python: the same verdicts, about a hundred times slower.
    """
    if os.environ.get("MINNOW_LOOPS") == "python":
        return Native(None, "Python: MINNOW_LOOPS=python")
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or shutil.which(compiler) is None:
        return Native(None, "Python: no C compiler found")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        library = ctypes.CDLL(str(_compiled(compiler, version)))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines()
        return Native(None, f"Python: {compiler} failed: {reason[0] if reason else error}")
    except OSError as error:
        return Native(None, f"Python: {error}")
    for name, signature in _SIGNATURES.items():
        result, arguments = signature.split(".")
        function = getattr(library, name)
        function.restype, function.argtypes = _CODES[result], [_CODES[code] for code in arguments]
    return Native(library, f"C ({Path(compiler).name})")


def _compiled(compiler: str, version: str) -> Path:
    """Path of the shared library for this source and compiler."""
    key = hashlib.sha256()
    for part in (SOURCE.read_bytes(), compiler.encode(), version.encode(), " ".join(_FLAGS).encode()):
        key.update(part + b"\0")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minnow" / key.hexdigest()[:16]
    target = folder / "loops.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "loops.so"
        subprocess.run([compiler, *_FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True, check=True)
        try:
            with whole_file(target) as partial:
                shutil.copyfile(built, partial)
        except (UserError, OSError):
            # No place to keep it (read-only home, full disk): a private copy for this process.
            target = Path(tempfile.mkdtemp(prefix="minnow-loops-")) / "loops.so"
            shutil.copyfile(built, target)
    return target


def address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


@functools.cache
def _scratch_bytes() -> int:
    library = load().library
    assert library is not None
    return int(library.scratch_bytes())


def scratch() -> NDArray[np.uint8]:
    """Working memory of one thread's ``judge_many`` calls."""
    return np.empty(_scratch_bytes(), dtype=np.uint8)
