"""Loads ``judge.c``, compiled on first use; without a compiler, Python judges."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.native import Library, Loaded, NotCompiled

SOURCE = Path(__file__).with_name("judge.c")
_FLAGS = ["-std=c11", "-O3", "-fPIC"]
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


@functools.cache
def load() -> Loaded:
    """Compile if needed and load; never raises for a machine that cannot, the description then says why.

    ``MINNOW_LOOPS=python`` in the environment asks for Python: the same verdicts, about a hundred times slower.
    """
    if os.environ.get("MINNOW_LOOPS") == "python":
        return Loaded(None, "Python: MINNOW_LOOPS=python")
    try:
        library, compiler = Library("loops", [SOURCE], _FLAGS).load()
    except NotCompiled as error:
        return Loaded(None, f"Python: {error}")
    for name, signature in _SIGNATURES.items():
        result, arguments = signature.split(".")
        function = getattr(library, name)
        function.restype, function.argtypes = _CODES[result], [_CODES[code] for code in arguments]
    return Loaded(library, f"C ({compiler})")


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
