"""The training state of several ranks: a folder that each rank writes its part of, read by any number of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from minnow.errors import UserError
from minnow.train.state_file import StateFile, newest_save, read_file, write_file

_REST = "state.pt"
"""All that is no tensor, and the checksums of the other files."""


class StateFolder(StateFile):
    """As :class:`StateFile`, for ranks that call each method together.

    Each save is a numbered folder below ``path`` without its suffix, in the form of torch distributed checkpoint. It gets
    its name when all ranks have written, and the one before goes after that.
    """

    alone = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Of its own: a write beside training must not come between the collectives of training.
        self._group: Any = dist.new_group(backend="gloo")
        self._rank = dist.get_rank()

    def _is_slow(self, seconds: float) -> bool:
        return self._from_first(super()._is_slow(seconds))

    def _from_first(self, value: Any) -> Any:
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def _together(self, work: Callable[[], Any], first_alone: bool = False) -> list[Any]:
        """What ``work`` gives on each rank.

        Raises:
            UserError: on every rank, where one of them could not write.
        """
        made, trouble = None, None
        try:
            made = work() if self._rank == 0 or not first_alone else None
        except CheckpointException as error:  # which all ranks get
            rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
            trouble = f"rank {rank} ({cause})"
        except (OSError, UserError) as error:
            trouble = f"rank {self._rank} ({error})"
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (made, trouble), group=self._group)
        for _, said in everyone:
            if said is not None:
                reason = said.partition("\n")[0]
                raise UserError(
                    f"could not write {self.path.with_suffix('')} on {reason}; free some space or choose another folder, "
                    "then run the same command again (what was there before is untouched)"
                )
        return [made for made, _ in everyone]

    def _check_copies(self, state: dict[str, Any]) -> None:
        """Compare the copies of the weights (HSDP), which are updated alike, bit by bit.

        Raises:
            UserError: on every rank, where two differ.
        """
        mine: dict[tuple[str, tuple[int, ...]], int] = {}
        for name, tensor in _tensors(state).items():
            mesh = getattr(tensor, "device_mesh", None)
            if mesh is not None and "replicate" in (mesh.mesh_dim_names or ()):
                places = zip(mesh.mesh_dim_names, mesh.get_coordinate(), strict=True)
                part = tuple(place for dimension, place in places if dimension != "replicate")
                values = tensor.to_local().contiguous().cpu()
                mine[name, part] = zlib.crc32(values.view(torch.uint8).numpy())
        if not mine:
            return
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine, group=self._group)
        seen: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        for rank, theirs in enumerate(everyone):
            for key, digest in theirs.items():
                first, known = seen.setdefault(key, (rank, digest))
                if known != digest:
                    raise UserError(
                        f"ranks {first} and {rank} hold copies of {key[0]} that differ, though they are updated alike: a "
                        "memory, processor or link of one has failed; look at both machines, then run the same command "
                        "again (the save before is whole)"
                    )

    def _write(self, state: dict[str, Any]) -> None:
        self._check_copies(state)
        folder, before = self.path.with_suffix(""), newest_save(self.path)
        number = self._from_first(int(before.name) + 1 if before else 1)
        temporary, final = folder / f".{number:08}.tmp", folder / f"{number:08}"

        def publish() -> None:
            digests = {name: digest for part in parts for name, digest in part.items()}
            write_file(temporary / _REST, {"rest": _rest(state), "digests": digests})
            os.replace(temporary, final)
            for old in (path for path in folder.iterdir() if path != final):
                shutil.rmtree(old, ignore_errors=True)
            self.path.unlink(missing_ok=True)

        try:
            # What a killed run left there, of more ranks perhaps, is not to be taken for a part of this.
            self._together(lambda: shutil.rmtree(temporary, ignore_errors=True), first_alone=True)
            writer = dcp.FileSystemWriter(temporary)
            self._together(lambda: dcp.save(_tensors(state), storage_writer=writer, process_group=self._group))
            files = f"__{self._rank}_*"
            parts = self._together(lambda: {file.name: _digest(file) for file in temporary.glob(files)})
            self._together(publish, first_alone=True)
        finally:
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)


def read_folder(folder: Path, like: dict[str, Any], alone: bool) -> dict[str, Any]:
    """Read a save, of however many ranks, into the tensors of ``like``.

    Args:
        alone: this process reads by itself; else all ranks call it, each for its part.

    Raises:
        ValueError: a file is cut short or a byte of it changed, or a tensor is not as in ``like``.
    """
    held = read_file(folder / _REST)
    rank, count = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    for name in sorted(held["digests"])[rank::count]:
        if not (folder / name).is_file() or _digest(folder / name) != held["digests"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
    reader, tensors = dcp.FileSystemReader(folder), _tensors(like)
    theirs: dict[str, Any] = reader.read_metadata().state_dict_metadata
    if other := theirs.keys() ^ tensors.keys():
        raise ValueError(f"{min(other)} is not in both")
    for name, tensor in tensors.items():
        if theirs[name].size != tensor.shape:
            raise ValueError(f"{name} is {list(theirs[name].size)} there and {list(tensor.shape)} here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads is no accident
        dcp.load(tensors, storage_reader=reader, no_dist=alone)
    return _joined(held["rest"], like)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, item in value.items():
        if isinstance(item, Tensor):
            yield f"{path}{key}", item
        elif isinstance(item, dict):
            yield from _leaves(item, f"{path}{key}/")


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a state by the path to each."""
    return dict(_leaves(state))


def _rest(value: Any) -> Any:
    """A state without its tensors."""
    if not isinstance(value, dict):
        return value
    return {key: _rest(item) for key, item in value.items() if not isinstance(item, Tensor)}


def _joined(rest: Any, like: dict[str, Any]) -> dict[str, Any]:
    """``rest`` with the tensors of ``like``."""
    tensors = {key: item for key, item in like.items() if isinstance(item, Tensor)}
    inner = {key: _joined(item, like[key]) if isinstance(like.get(key), dict) else item for key, item in rest.items()}
    return inner | tensors
