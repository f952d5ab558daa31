"""Rows of weights as the bytes of a GGUF type: the plain ones here, K-quants by llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache

import numpy as np
import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.blocks import BLOCK, q4_0, q8_0

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
"""What a file can be written as. Those with a K need llama.cpp's quantiser."""

HEAD_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
"""What embedding and head can be written as."""

_MOST_F16 = 65504.0


def head_type(type: str) -> str:
    """The type of the head (or the embedding that is the head too) in a file of ``type``, where none is asked for.

    llama.cpp gives the head more bits than the rest too: it is read whole for every token, and errs into every logit.
    """
    return {"Q4_0": "Q8_0", "Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}.get(type, type)


def matrix_type(type: str, name: str, layer: int, layers: int) -> str:
    """The type of a matrix in a file of ``type``: llama.cpp's mixtures give some values and down projections more bits."""
    if type not in ("Q4_K_M", "Q5_K_M"):
        return type
    some = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if some and ("attn_v." in name or "ffn_down" in name) else type.removesuffix("_M")


def block_size(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def encode(rows: Tensor, kind: str, importance: Tensor | None, where: str) -> np.ndarray:
    """Bytes of ``rows [n, columns]``, uint8 ``[n, bytes]``.

    Args:
        importance: ``[columns]``, see :func:`minnow.model.blocks.q4_0`; for Q4_0 and K-quants.
        where: the tensor, for messages.

    Raises:
        UserError: a weight is not finite or too large for the type, or there is no quantiser for it.
    """
    largest = float(rows.abs().max()) if rows.numel() else 0.0
    if not largest < float("inf"):
        raise UserError(f"{where} holds weights that are not finite; export a checkpoint from before training diverged")
    if kind not in ("F32", "BF16") and largest > _MOST_F16:
        raise UserError(f"{where} holds a weight of {largest:.3g}, too large for {kind}; use BF16 or F32")
    if kind in ("F32", "F16", "BF16"):
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return rows.to(dtype).contiguous().view(torch.uint8).numpy()
    if kind == "Q8_0":
        levels, scales = q8_0(rows)
        blocks = torch.cat([scales.view(torch.uint8), levels.view(torch.uint8)], dim=1)
    elif kind == "Q4_0":
        codes, scales = q4_0(rows, importance)
        low, high = codes.split(BLOCK // 2, dim=1)
        blocks = torch.cat([scales.view(torch.uint8), low | high << 4], dim=1)
    else:
        return _encode_natively(rows, kind, importance)
    return blocks.view(len(rows), -1).numpy()


def check_native(kind: str) -> None:
    """Raise UserError where ``kind`` needs llama.cpp's quantiser and there is none."""
    if "_K" in kind and _native() is None:
        raise UserError(f'{kind} is written by llama.cpp\'s own quantiser; run: pip install "minnow[export]"')


@cache
def _native() -> ctypes.CDLL | None:
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return library


def _encode_natively(rows: Tensor, kind: str, importance: Tensor | None) -> np.ndarray:
    # In this process: the function only computes, and what it would abort for (odd widths, weights that are not
    # finite) was refused before.
    from gguf import GGMLQuantizationType

    library, (weights, size) = _native(), block_size(kind)
    assert library is not None, "check_native() comes first"
    values = np.ascontiguousarray(rows.float().numpy())
    made = np.empty((len(rows), rows.shape[1] // weights * size), np.uint8)
    costs = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    count, width = values.shape
    library.ggml_quantize_chunk(
        GGMLQuantizationType[kind], values.ctypes.data, made.ctypes.data, 0, count, width,
        None if costs is None else costs.ctypes.data,
    )  # fmt: skip
    return made
