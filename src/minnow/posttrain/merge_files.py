"""Merging checkpoint folders larger than memory: some rows of one tensor at a time, from file to file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minnow.data.tokenizer import FILES, Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.model.checkpoint import SHARD_BYTES, weight_files
from minnow.model.tensor_files import Stored, shards, start_file, stored_tensors, write_index, write_part
from minnow.posttrain.merge import Merge, merge_chunks
from minnow.progress import track

CHUNK = 1 << 21
"""Entries of every model that are in memory together."""


def merge_folders(
    models: Sequence[Path],
    settings: Merge,
    out: Path,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the merged checkpoint, which appears whole; config and tokenizer are the first model's.

    Args:
        base: the model that the others were trained from, where the method merges what training changed.
        dtype: of the file; None for that of each tensor in the first model.

    Raises:
        UserError: the models differ in shape or vocabulary, a file is missing or damaged, there is no base or no need
            for one, the weights do not go with the models, or the disk is full.
    """
    settings.shares(len(models))
    if settings.needs_base and base is None:
        raise UserError(f"{settings.method} merges what training has changed in a common base; name that base")
    if not settings.needs_base and base is not None:
        raise UserError(f"{settings.method} has no base; leave it out, or name it as one of the models")
    folders = [*([base] if base is not None else []), *models]
    tensors = [stored_tensors(weight_files(folder)) for folder in folders]
    _check_alike(folders, tensors)
    first = tensors[-len(models)]
    wanted = {
        name: replace(each, dtype=dtype or each.dtype) if each.dtype.is_floating_point else each
        for name, each in first.items()
    }
    files = shards(wanted, shard_bytes)
    total = sum(each.entries for each in first.values())
    with whole_folder(out) as temporary, track(total, "merge", "value") as bar:
        for file, group in files.items():
            with (temporary / file).open("wb") as stream:
                start_file(stream, group)
                for name, target in group.items():
                    for part in _merged([each[name] for each in tensors], settings, name, first[name]):
                        write_part(stream, part.to(target.dtype))
                        bar.advance(part.numel())
        write_index(temporary, files)
        config = read_json(models[0] / "config.json")
        if dtype is not None:
            config["dtype"] = str(dtype).removeprefix("torch.")
        write_json(temporary / "config.json", config)
        for kept in {path for pattern in (*FILES, "generation_config.json") for path in models[0].glob(pattern)}:
            if kept.is_file():
                shutil.copyfile(kept, temporary / kept.name)


def _merged(tensors: Sequence[Stored], settings: Merge, name: str, first: Stored) -> Iterator[Tensor]:
    count = first.entries // first.row if first.entries else 0
    step = max(1, CHUNK // first.row)

    def chunks() -> Iterator[list[Tensor]]:
        for start in range(0, count, step):
            yield [each.rows(start, min(start + step, count)) for each in tensors]

    if not first.dtype.is_floating_point:
        yield from (first.rows(start, min(start + step, count)) for start in range(0, count, step))
    elif count:
        yield from merge_chunks(chunks, settings, name)


def _check_alike(folders: Sequence[Path], tensors: Sequence[dict[str, Stored]]) -> None:
    words = {folder: Tokenizer.load(folder).digest for folder in folders if (folder / "tokenizer.json").exists()}
    for folder, found in zip(folders[1:], tensors[1:], strict=True):
        for name in sorted(tensors[0].keys() | found.keys()):
            shapes = [list(each[name].shape) if name in each else None for each in (tensors[0], found)]
            if shapes[0] != shapes[1]:
                here, there = ("has none" if shape is None else f"is {shape}" for shape in shapes)
                raise UserError(
                    f"{folders[0]} and {folder} are not of one model: {name} {here} in the one and {there} in the other; "
                    "merge checkpoints that were trained from one"
                )
        if words.get(folder) != words.get(folders[0]):
            raise UserError(
                f"{folders[0]} and {folder} have different tokenizers, so their rows stand for different tokens; merge "
                "checkpoints of one tokenizer"
            )
