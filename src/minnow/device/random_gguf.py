"""GGUF files of any shape with random weights: speed and memory do not depend on what the weights are.

Written straight in the blocks of their type, so that a file of 350M parameters takes a second and no training.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from minnow.device.gguf_export import begun, tensor_type
from minnow.device.gguf_families import ARCHITECTURES, computed_tensors, file_tensors
from minnow.device.gguf_vocabulary import NORMAL, Vocabulary
from minnow.device.quantise import block_size
from minnow.errors import UserError, require
from minnow.files import whole_file
from minnow.model.config import Attention, ModelConfig

TYPES = ("F16", "BF16", "Q8_0", "Q4_0")

# The standard deviation of a block's evenly drawn integers.
_SPREAD = {"Q8_0": 73.9, "Q4_0": 4.61}


def write_random_gguf(config: ModelConfig, file: Path, kind: str = "Q4_0") -> int:
    """Write ``config`` with random weights to ``file``, which appears whole or not at all; its size in bytes.

    Args:
        kind: one of :data:`TYPES`; each tensor's own type is that of an export.

    Raises:
        UserError: the ``gguf`` package is missing, an unknown type, or a shape that llama.cpp does not run.
    """
    require("gguf", "export")
    if kind not in TYPES:
        raise UserError(f"random weights cannot be written as {kind!r}; choose one of {', '.join(TYPES)}")
    attends = any(isinstance(layer.mixer, Attention) for layer in config.layers)
    if config.family not in ARCHITECTURES or not attends:
        raise UserError(
            f"llama.cpp runs no {config.family!r} model of this shape (it runs {', '.join(ARCHITECTURES)}, with at least "
            "one attention layer); profile it with --engine torch"
        )
    from gguf import GGMLQuantizationType

    random = np.random.default_rng(0)
    with whole_file(file) as temporary:
        writer = begun(temporary, "random weights", config, kind, _vocabulary(config))
        for named, shape in file_tensors(config):
            stored, _ = tensor_type(named.name, shape, kind, config)
            values = _values(random, named.name, shape, stored)
            writer.add_tensor(named.name, values, raw_dtype=GGMLQuantizationType[stored])
        for name, tensor in computed_tensors(config).items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return temporary.stat().st_size


def _vocabulary(config: ModelConfig) -> Vocabulary:
    """Made-up tokens and as many merges: llama.cpp's tables take the memory of a real vocabulary's."""
    count = config.vocab_size
    end = config.eos_id if config.eos_id < count else 0
    merges = [f"t{i} t{i + 1}" for i in range(count - 1)]
    return Vocabulary(
        "gpt2", "llama-bpe", [f"t{i}" for i in range(count)], [NORMAL] * count, merges, bos=0, ends=(end,)
    )


def _values(random: np.random.Generator, name: str, shape: tuple[int, ...], stored: str) -> np.ndarray:
    """Weights at ``1/sqrt(fan in)``; vectors of ones, the decay rates of a delta net of minus ones."""
    if len(shape) == 1:
        return np.full(shape, -1.0 if name.endswith("ssm_a") else 1.0, np.float32)
    std = shape[-1] ** -0.5
    if stored in _SPREAD:
        weights, size = block_size(stored)
        blocks = np.frombuffer(random.bytes(math.prod(shape) // weights * size), np.uint8).reshape(-1, size).copy()
        blocks[:, :2] = np.frombuffer(np.float16(std / _SPREAD[stored]).tobytes(), np.uint8)
        return blocks.reshape(*shape[:-1], -1)
    drawn = random.standard_normal(shape, np.float32) * np.float32(std)
    if stored == "F16":
        return drawn.astype(np.float16)
    if stored == "BF16":
        return (drawn.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return drawn
