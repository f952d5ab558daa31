"""Write a checkpoint as one GGUF file that llama.cpp opens, a few rows of a tensor in memory at a time.

Own writer over the ``gguf`` package: llama.cpp's converter is not on PyPI and refuses tokenizers it has not met.
Types per tensor:

- vectors (norms), convolution kernels and routers are always F32, as llama.cpp's converter has them;
- embedding and head take a type of their own, finer than the rest unless told otherwise;
- every other matrix takes the asked type where its row length is a multiple of the block, F16 otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minnow.device.gguf_families import (
    ARCHITECTURES,
    KEPT_F32,
    Edit,
    add_keys,
    checkpoint_shapes,
    computed_tensors,
    file_tensors,
    read_exportable,
)
from minnow.device.gguf_vocabulary import Vocabulary, read_vocabulary
from minnow.device.quantise import HEAD_TYPES, TYPES, block_size, check_native, encode, head_type, matrix_type
from minnow.errors import UserError, require
from minnow.files import read_json, whole_file
from minnow.model.adapter import is_adapter
from minnow.model.checkpoint import weight_files
from minnow.model.config import ModelConfig
from minnow.model.families import FAMILIES
from minnow.model.tensor_files import Stored, stored_tensors
from minnow.progress import track

if TYPE_CHECKING:
    from gguf import GGUFWriter

_CHUNK = 1 << 19  # weights that are in memory together
_ALIGNMENT = 32  # of tensors in the file, bytes
_TOKEN_BYTES = 32  # of a vocabulary's entry in a file, merges included, generously


@dataclass(frozen=True)
class GgufFile:
    """One exported file.

    ``tensors`` maps each GGUF tensor name to its type; ``kept_f16`` names the matrices that stayed F16 because their
    row length is not a multiple of the block of ``type``.
    """

    file: Path
    type: str
    bytes: int
    tensors: dict[str, str]
    kept_f16: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """A tensor of the file: ``parts`` one below the other, or along a new first dimension where there are several."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parts: tuple[Stored | Tensor, ...]
    edit: Edit | None
    importance: Tensor | None

    @property
    def bytes(self) -> int:
        weights, size = block_size(self.kind)
        return torch.Size(self.shape).numel() // weights * size

    def rows(self) -> Iterator[Tensor]:
        """The tensor's rows, some at a time; an edited part whole."""
        for part in self.parts:
            if isinstance(part, Tensor):
                yield part.view(1, -1)
                continue
            count = part.entries // part.row
            if self.edit is not None:
                edited = self.edit(part.rows(0, count).view(part.shape))
                yield edited.reshape(-1, edited.shape[-1])
                continue
            step = max(1, _CHUNK // part.row)
            for start in range(0, count, step):
                yield part.rows(start, min(start + step, count))


@dataclass(frozen=True)
class Export:
    """A file that could be written: everything is read and checked but the weights themselves.

    Attributes:
        bytes: of the file, to within a few kilobytes and never below.
        kept_f16: as :class:`GgufFile`.
    """

    checkpoint: Path
    type: str
    config: ModelConfig
    vocabulary: Vocabulary
    targets: tuple[_Target, ...]
    kept_f16: tuple[str, ...]

    @property
    def bytes(self) -> int:
        tensors = sum(target.bytes + _ALIGNMENT for target in self.targets)
        entries = len(self.vocabulary.tokens) + len(self.vocabulary.merges)
        return tensors + _TOKEN_BYTES * entries + len(str(self.vocabulary.chat_template)) + 4096

    def write(self, file: Path) -> GgufFile:
        """Write ``file``, which appears whole or not at all.

        Raises:
            UserError: the disk is full, or as :func:`minnow.device.quantise.encode`.
        """
        from gguf import GGMLQuantizationType

        total = sum(torch.Size(target.shape).numel() for target in self.targets)
        with whole_file(file) as temporary, track(total, f"export {self.type}", "weight") as bar:
            writer = begun(temporary, self.checkpoint.resolve().name, self.config, self.type, self.vocabulary)
            for target in self.targets:
                kind = GGMLQuantizationType[target.kind]
                writer.add_tensor_info(target.name, target.shape, np.dtype(np.float32), target.bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            assert writer.fout is not None
            stream = writer.fout[0]
            writer.write_padding(stream, stream.tell())
            for target in self.targets:
                for rows in target.rows():
                    stream.write(encode(rows, target.kind, target.importance, target.name).data)
                    bar.advance(rows.numel())
                writer.write_padding(stream, target.bytes)
            writer.close()
            size = temporary.stat().st_size
        return GgufFile(file, self.type, size, {each.name: each.kind for each in self.targets}, self.kept_f16)


def plan_export(
    checkpoint: Path,
    type: str = "F16",
    embedding_type: str | None = None,
    importance: Mapping[str, Tensor] | None = None,
) -> Export:
    """Read and check all that a file of ``type`` needs before any of it is written.

    Args:
        type: one of :data:`~minnow.device.quantise.TYPES`.
        embedding_type: of embedding and head, one of :data:`~minnow.device.quantise.HEAD_TYPES`; None for
            :func:`~minnow.device.quantise.head_type`.
        importance: what errors in the columns of the checkpoint's tensors cost (:mod:`minnow.device.importance`);
            without it all the same.

    Raises:
        UserError: the ``gguf`` package or a quantiser is missing; unknown type, or one whose blocks do not fit the
            model's width; a file of the checkpoint is missing or damaged; the network is none that llama.cpp computes;
            tokenizer and embedding do not belong together.
    """
    if type not in TYPES:
        raise UserError(f"unknown GGUF type {type!r}; choose one of {', '.join(TYPES)}")
    head = embedding_type or head_type(type)
    if head not in HEAD_TYPES:
        raise UserError(f"unknown type {head!r} for the embedding; choose one of {', '.join(HEAD_TYPES)}")
    require("gguf", "export")
    check_native(type)
    check_native(head)
    config = read_exportable(check_folder(checkpoint), checkpoint)
    vocabulary = read_vocabulary(checkpoint, config)
    stored = _stored(checkpoint, config)
    targets: list[_Target] = []
    kept = []
    for named, shape in file_tensors(config):
        parts = tuple(stored[source] for source in named.sources)
        kind, whole = tensor_type(named.name, shape, type, config, embedding_type)
        if not whole:
            _refuse_width(checkpoint, config, type, head)
            kept.append(named.name)
        costs = None if importance is None else importance.get(named.sources[0])
        if costs is not None and named.edit is not None:
            costs = named.edit(costs.expand(parts[0].shape))[0]  # its columns may have moved
        targets.append(_Target(named.name, kind, shape, parts, named.edit, costs))
    for name, tensor in computed_tensors(config).items():
        targets.append(_Target(name, "F32", tuple(tensor.shape), (tensor,), None, None))
    return Export(checkpoint, type, config, vocabulary, tuple(targets), tuple(kept))


def export_gguf(checkpoint: Path, file: Path, type: str = "F16", embedding_type: str | None = None) -> GgufFile:
    """Write ``checkpoint`` to ``file``; arguments and errors as :func:`plan_export` and :func:`check_disk`."""
    export = plan_export(checkpoint, type, embedding_type)
    check_disk(export.bytes, file.parent)
    return export.write(file)


def check_folder(checkpoint: Path) -> Any:
    """What ``config.json`` says.

    Raises:
        UserError: ``checkpoint`` is no checkpoint folder.
    """
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a checkpoint folder; give a folder with config.json and model.safetensors"
        )
    if is_adapter(checkpoint):
        raise UserError(f"{checkpoint} is an adapter; export the checkpoint that was written beside it")
    return read_json(checkpoint / "config.json")


def check_disk(needed: int, folder: Path) -> None:
    """Raise UserError where the disk of ``folder`` has not the room for ``needed`` bytes."""
    there = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"the files take {needed / 1e6:.0f} MB and {there} has {free / 1e6:.0f} MB free; free some space or choose "
            "another folder"
        )


def begun(file: Path, name: str, config: ModelConfig, type: str, vocabulary: Vocabulary) -> GGUFWriter:
    """A writer that holds all of a file but its tensors."""
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(file, ARCHITECTURES[config.family].lower())
    writer.add_name(name)
    add_keys(writer, config)
    writer.add_file_type(LlamaFileType.ALL_F32 if type == "F32" else LlamaFileType[f"MOSTLY_{type}"])
    writer.add_quantization_version(2)
    vocabulary.add_to(writer)
    return writer


def tensor_type(
    name: str, shape: Sequence[int], type: str, config: ModelConfig, embedding_type: str | None = None
) -> tuple[str, bool]:
    """The type of a tensor in a file of ``type``; False where it is F16 because its rows are not whole blocks."""
    if len(shape) == 1 or not name.endswith(".weight") or name.endswith(KEPT_F32):
        return "F32", True
    # A table that is not the head too is read one row a token, and needs no finer type.
    if name == "output.weight" or (name == "token_embd.weight" and (config.tied or embedding_type)):
        kind = embedding_type or head_type(type)
    else:
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        kind = matrix_type(type, name, layer, config.num_layers)
    whole = shape[-1] % block_size(kind)[0] == 0
    return (kind, True) if whole else ("F16", False)


def _refuse_width(checkpoint: Path, config: ModelConfig, type: str, head: str) -> None:
    """Raise UserError where not even the residual stream is a whole number of blocks."""
    for kind in (head, matrix_type(type, "", 0, 1)):
        block = block_size(kind)[0]
        if config.hidden_size % block:
            raise UserError(
                f"{kind} holds weights in blocks of {block}, and the rows of {checkpoint} are {config.hidden_size} wide; "
                f"choose {'Q4_0 or Q8_0' if block > 32 and config.hidden_size % 32 == 0 else 'F16'}, or a width that is "
                f"a multiple of {block}"
            )


def _stored(checkpoint: Path, config: ModelConfig) -> dict[str, Stored]:
    """The family's tensors in a folder, by the family's names.

    Raises:
        UserError: a tensor is missing or of another shape than ``config.json`` says.
    """
    family = FAMILIES[config.family]
    found = {family.name(name): tensor for name, tensor in stored_tensors(weight_files(checkpoint)).items()}
    shapes = checkpoint_shapes(config)
    for name, shape in shapes.items():
        if name not in found:
            raise UserError(f"{checkpoint}: the weights do not fit config.json (it lacks {name}); restore the folder")
        if found[name].shape != shape:
            raise UserError(
                f"{checkpoint}: the weights do not fit config.json ({name} is {list(found[name].shape)} and not "
                f"{list(shape)}); restore the folder"
            )
    return {name: found[name] for name in shapes}


def gguf_metadata(file: Path) -> dict[str, Any]:
    """What a GGUF file says of itself.

    Returns:
        ``architecture``, ``context_length``, ``vocab_size``, ``eos_id``, ``parameters`` and ``type`` (the one it was
        exported as).

    Raises:
        UserError: missing file, or not a whole GGUF file.
    """
    require("gguf", "export")
    from gguf import GGUFReader, LlamaFileType

    if not file.is_file():
        raise UserError(f"{file} does not exist; give a .gguf file written by 'minnow export'")
    try:
        reader = GGUFReader(file)
        architecture = reader.fields["general.architecture"].contents()
        file_type = LlamaFileType(reader.fields["general.file_type"].contents()).name
        return {
            "architecture": architecture,
            "context_length": int(reader.fields[f"{architecture}.context_length"].contents()),
            "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
            "eos_id": int(reader.fields["tokenizer.ggml.eos_token_id"].contents()),
            "parameters": int(sum(int(t.n_elements) for t in reader.tensors)),
            "type": file_type.removeprefix("MOSTLY_").removeprefix("ALL_"),
        }
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{file} is not a whole GGUF file ({error}); export the checkpoint again") from error
