"""Files by name in a folder or below a URL (``s3://``, ``hf://``, ``memory://``, …) that fsspec can open."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from minnow.errors import UserError
from minnow.files import whole_file


def is_url(path: str | Path) -> bool:
    """Whether fsspec opens ``path``, not this machine's file system."""
    return "://" in str(path)


@contextmanager
def remote(url: str) -> Iterator[None]:
    """What goes wrong with ``url`` inside the block, whatever library is behind it, as one sentence."""
    try:
        yield
    except (UserError, GeneratorExit, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url} does not exist; check the address") from error
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise UserError(
            f"{protocol}:// needs a package that is not installed ({error}); install it with pip"
        ) from error
    except Exception as error:  # the libraries behind fsspec share no class of errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{url} cannot be read or written ({reason}); check the address, the network and the rights"
        ) from error


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    with remote(url):
        system, path = fsspec.core.url_to_fs(url)
    return system, path


def open_binary(path: str) -> IO[bytes]:
    """A file or URL for reading; remote errors past the opening are the caller's to name, with :func:`remote`."""
    if not is_url(path):
        return open(path, "rb")
    system, inner = _file_system(path)
    with remote(path):
        opened: IO[bytes] = system.open(inner, "rb")
    return opened


def expand(pattern: str) -> list[str]:
    """The files that ``pattern`` names, in order: itself, or with ``*``, ``?``, ``[]`` or ``**`` all that match.

    Raises:
        UserError: nothing matches, or the URL cannot be listed.
    """
    if not glob.has_magic(pattern):
        return [pattern]
    if is_url(pattern):
        system, inner = _file_system(pattern)
        with remote(pattern):
            found = [system.unstrip_protocol(path) for path in system.glob(inner)]
    else:
        found = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    if not found:
        raise UserError(f"no file matches {pattern}; check the pattern")
    return sorted(found)


class Store:
    """The files of one folder, here or remote; each is written whole or not at all."""

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self._remote = _file_system(self.location) if is_url(location) else None
        self._maps: dict[str, NDArray[Any]] = {}

    @property
    def is_remote(self) -> bool:
        return self._remote is not None

    def path(self, name: str) -> str:
        """Where the file ``name`` is, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Every file's length in bytes; empty where the folder does not exist."""
        if self._remote is None:
            folder = Path(self.location)
            return {each.name: each.stat().st_size for each in os.scandir(folder)} if folder.is_dir() else {}
        system, inner = self._remote
        with remote(self.location):
            if not system.exists(inner):
                return {}
            return {each["name"].rpartition("/")[2]: each["size"] for each in system.ls(inner, detail=True)}

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file, in place of one that is there.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if self._remote is None:
            with whole_file(Path(self.path(name))) as temporary:
                temporary.write_bytes(content)
            return
        system, inner = self._remote
        with remote(self.path(name)):
            system.makedirs(inner, exist_ok=True)
            system.pipe_file(f"{inner}/{name}", bytes(content))

    def read(self, name: str) -> bytes:
        """A whole file."""
        with open_binary(self.path(name)) as stream, remote(self.path(name)):
            return stream.read()

    def array(self, name: str, dtype: str) -> NDArray[Any]:
        """A file as an array: mapped where it is on this machine, fetched where it is not."""
        if self._remote is not None:
            return np.frombuffer(self.read(name), dtype)
        kind = np.dtype(dtype)
        if name not in self._maps:
            path = self.path(name)
            # numpy's own maps each keep a file open, and a large corpus has more files than a process may open.
            mapped = torch.from_file(path, shared=False, size=os.path.getsize(path), dtype=torch.uint8).numpy()
            mapped.flags.writeable = False
            self._maps[name] = mapped
        return self._maps[name].view(kind)

    def ranges(
        self, names: Sequence[str], starts: Sequence[int], counts: Sequence[int], dtype: str
    ) -> list[NDArray[Any]]:
        """``counts[i]`` entries from ``starts[i]`` on of the file ``names[i]``: views of maps, or one remote request each."""
        if self._remote is None:
            maps = {name: self.array(name, dtype) for name in set(names)}
            return [maps[name][start : start + n] for name, start, n in zip(names, starts, counts, strict=True)]
        system, inner = self._remote
        size = np.dtype(dtype).itemsize
        with remote(self.location):
            found = system.cat_ranges(
                [f"{inner}/{name}" for name in names],
                [start * size for start in starts],
                [(start + n) * size for start, n in zip(starts, counts, strict=True)],
            )
        for name, content in zip(names, found, strict=True):
            if isinstance(content, BaseException):
                raise UserError(f"{self.path(name)} cannot be read ({content}); check the network and the rights")
        return [np.frombuffer(content, dtype) for content in found]
