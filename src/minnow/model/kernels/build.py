"""Loads the C kernels, compiled on first use for this processor and for torch's threads."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import platform
import re
from pathlib import Path

import torch
from torch import Tensor

from minnow.native import Library, Loaded, NotCompiled

DTYPES = (torch.bfloat16, torch.float32)
"""Of the tensors that the kernels are compiled for."""

SMALL = 1 << 15
"""Elements below which a second thread costs more than it brings."""

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "delta.c", "decode.c", "products.c", "attention.c")]
HEADERS = [Path(__file__).with_name(name) for name in ("common.h", "packed.h", "tiles.h")]
_FLAGS = ["-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_CODES = {"p": _POINTER, "l": _LONG, "f": _FLOAT}
# Arguments after the leading thread count: p pointer, l long, f float.
_SIGNATURES = {
    "rms_norm_forward": "llpppppfpp",
    "rms_norm_backward": "lllpppppppp",
    "swiglu_forward": "llpp",
    "swiglu_backward": "llppp",
    "geglu_forward": "llpp",
    "geglu_backward": "llppp",
    "conv_silu_forward": "lllllppppp",
    "conv_silu_backward": "lllllpppppppp",
    "rope": "llllllpppp",
    "short_conv_forward": "llllppppp",
    "short_conv_backward": "llllpppppppp",
    "norm_rope_forward": "lllllppppfp",
    "norm_rope_backward": "llllllppppfpppp",
    "attention_forward": "llllllfplplplpppp",
    "attention_backward": "llllllfplplplpppppppp",
    "delta_forward": "llllllplplplppppppp",
    "delta_backward": "llllllplplplppppppppppp",
    "cross_entropy": "llppppp",
    "accumulate": "lpp",
    "adamw": "lppppppfffffff",
    "sum_squares": "lppp",
    "short_conv_step": "lllpppp",
    "attention_step": "lllllllpppppfpppfpppp",
    "highest": "lllppp",
}
_PACKED_SIGNATURES = {
    "pack": "llpp",
    "linear_packed": "lllpppp",
}
"""Only where the processor has what products of packed weights are written for."""
_PAIRED_SIGNATURES = {
    "pack_down": "llpp",
    "outer_packed": "lllpppp",
    "attention_pairs_forward": "llllllfplplplpppp",
    "attention_pairs_backward": "llllllfplplplpppppppp",
}
"""Only where the processor multiplies pairs of bfloat16."""


TORCH_ONLY = "MINNOW_KERNELS=torch"
"""What in the environment asks for plain torch."""


def torch_only() -> bool:
    return os.environ.get("MINNOW_KERNELS") == "torch"


@functools.cache
def load(dtype: torch.dtype) -> Loaded:
    """The library for tensors of ``dtype``, bfloat16 or float32, compiled if needed; never raises for a machine that
    cannot, the description then says why.

    ``MINNOW_KERNELS=torch`` in the environment asks for plain torch.
    """
    if torch_only():
        return Loaded(None, f"pure torch: {TORCH_ONLY}")
    openmp = _loaded_openmp()
    try:
        library, compiler = _sources(dtype, openmp is not None).load()
    except NotCompiled as error:
        return Loaded(None, f"pure torch: {error}")
    packing = bool(library.can_pack())
    pairing = packing and dtype == torch.bfloat16
    some = (_SIGNATURES, _PACKED_SIGNATURES if packing else {}, _PAIRED_SIGNATURES if pairing else {})
    for name, codes in itertools.chain.from_iterable(each.items() for each in some):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_int, *(_CODES[code] for code in codes)]
        function.restype = None
    library.sum_squares.restype = ctypes.c_double
    library.document_starts.argtypes = [_LONG, _LONG, _POINTER, _POINTER]
    library.document_starts.restype = None
    sizes = ["short_conv_blocks", "attention_scratch", "short_conv_scratch", "conv_silu_scratch", "delta_scratch"]
    sizes += ["attention_step_scratch", *(["attention_pairs_scratch"] if pairing else [])]
    for name in sizes:
        function = getattr(library, name)
        function.argtypes = [_LONG] if name.startswith(("short_conv_scratch", "conv_silu")) else [_LONG, _LONG]
        function.restype = _LONG
    library.keep_memory()
    threads = "OpenMP of torch" if openmp else "one thread"
    vectors = torch.backends.cpu.get_cpu_capability() + (" and AMX" if library.use_tiles(1) else "")
    return Loaded(library, f"fused C ({compiler}, {vectors}, {threads})")


def _loaded_openmp() -> str | None:
    """Make the OpenMP runtime that torch has loaded visible to our library and return its path.

    Linking a runtime of our own would start a second pool of threads that fights with torch's for the cores.
    """
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = re.search(r"/.*lib(?:gomp|iomp5).*", mapped)
    if found is None:
        return None
    ctypes.CDLL(found[0], mode=ctypes.RTLD_GLOBAL)
    return found[0]


def _sources(dtype: torch.dtype, openmp: bool) -> Library:
    flags = [*_FLAGS, *(["-DSINGLE"] if dtype == torch.float32 else [])]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-mprefer-vector-width=512")
    flags.append("-fopenmp" if openmp else "-fopenmp-simd")
    # Linked without -fopenmp: the OpenMP symbols are to be those of the runtime already loaded.
    return Library("kernels", SOURCES, flags, HEADERS, ["-lm"], processor())


def processor() -> bytes:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def library(dtype: torch.dtype = torch.bfloat16) -> ctypes.CDLL:
    """The loaded library; ask only where :func:`load` found one. What says nothing of tensors' type is in both."""
    loaded = load(dtype).library
    assert loaded is not None, "fused kernels are dispatched to only where they are loaded"
    return loaded


@functools.cache
def pairs() -> bool:
    """Whether the library has products of pairs of bfloat16, which need a processor with them (AVX512-BF16)."""
    return bool(library().can_pack())


def threads(elements: int) -> int:
    """Threads for an operation over so many elements: torch's number, or one."""
    return 1 if elements < SMALL else torch.get_num_threads()


def pointer(tensor: Tensor | None) -> int | None:
    """For an argument that may be NULL."""
    return None if tensor is None else tensor.data_ptr()


def floats(*shape: int) -> Tensor:
    """Memory for the library to fill."""
    return torch.empty(shape, dtype=torch.float32)
