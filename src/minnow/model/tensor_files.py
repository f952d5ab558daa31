"""Tensors of safetensors files in pieces: read and written without a whole model, or a whole tensor, in memory.

Plain reads and writes rather than a memory map, whose pages count as the process's memory once they are touched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.files import write_json

WEIGHTS_INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its first byte is ``offset`` of ``file``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row(self) -> int:
        """Entries of one row: of the last dimension, or all of a vector."""
        return self.shape[-1] if self.shape else 1

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.entries * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the tensor as a matrix.

        Raises:
            UserError: the file is cut short.
        """
        size = (stop - start) * self.row
        data = bytearray(size * self.dtype.itemsize)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset + start * self.row * self.dtype.itemsize)
            view, read = memoryview(data), 0
            while read < len(data):
                got = stream.readinto(view[read:])
                if not got:
                    raise UserError(f"{self.file} is cut short; restore it")
                read += got
        return torch.frombuffer(data, dtype=self.dtype).view(stop - start, self.row)


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of some safetensors files by name, from their headers.

    Raises:
        UserError: a file is damaged or cut short, or holds a type that is not known.
    """
    found: dict[str, Stored] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(min(length, _LONGEST_HEADER)))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                if entry["dtype"] not in DTYPES:
                    raise UserError(f"{name} of {file} is stored as {entry['dtype']}, which cannot be computed with")
                begin, end = entry["data_offsets"]
                tensor = Stored(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
                if end - begin != tensor.nbytes or 8 + length + end > os.path.getsize(file):
                    raise ValueError(f"{name} does not fit")
                found[name] = tensor
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged or cut short ({error}); restore it") from error
    return found


def start_file(stream: BinaryIO, tensors: Mapping[str, Stored]) -> None:
    """Write the header of a file of ``tensors`` (types and shapes count); their bytes follow in the same order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)


def write_part(stream: BinaryIO, part: Tensor) -> None:
    """Append a tensor's bytes."""
    stream.write(part.contiguous().flatten().view(torch.uint8).numpy().data)


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=_Sized)


def shards(tensors: Mapping[str, S], limit: int) -> dict[str, dict[str, S]]:
    """The tensors in files of at most ``limit`` bytes, in order, by transformers' names; a larger one has its own."""
    groups: list[dict[str, S]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_index(folder: Path, files: Mapping[str, Mapping[str, _Sized]]) -> None:
    """Write down which of several files each tensor is in; a single one needs no index."""
    if len(files) > 1:
        size = sum(tensor.nbytes for group in files.values() for tensor in group.values())
        places = {name: file for file, group in files.items() for name in group}
        write_json(folder / WEIGHTS_INDEX, {"metadata": {"total_size": size}, "weight_map": places})
