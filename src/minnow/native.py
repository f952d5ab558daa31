"""Compiles C sources on first use, once per source, compiler and flags, and loads the library from the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minnow.errors import UserError
from minnow.files import cache_folder, whole_file


class NotCompiled(Exception):
    """Why there is no library, in a few words."""


@dataclass(frozen=True)
class Loaded:
    """A library, or None, and a line that says what runs and why."""

    library: ctypes.CDLL | None
    description: str


@dataclass(frozen=True)
class Compiler:
    """The C compiler of this machine: the command, and all that it says about its version."""

    command: str
    version: str

    def __str__(self) -> str:
        number = re.search(r"\d+\.\d+(\.\d+)?", self.version)
        return f"{Path(self.command).name} {number[0] if number else '?'}"


@dataclass(frozen=True)
class Library:
    """C sources and how to build them.

    Attributes:
        name: of the file in the cache.
        sources: compiled one by one with ``flags``, then linked with ``link``.
        headers: what the sources include.
        machine: what the code depends on beyond these, such as the processor under ``-march=native``.
    """

    name: str
    sources: Sequence[Path]
    flags: Sequence[str]
    headers: Sequence[Path] = ()
    link: Sequence[str] = ()
    machine: bytes = b""

    def load(self) -> tuple[ctypes.CDLL, Compiler]:
        """The library, compiled if it is not in the cache, and the compiler it was asked of.

        Raises:
            NotCompiled: no compiler, or one that fails.
        """
        command = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if command is None or shutil.which(command) is None:
            raise NotCompiled("no C compiler found")
        try:
            version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
            compiler = Compiler(command, version)
            return ctypes.CDLL(str(self.compiled(compiler))), compiler
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or "").strip().splitlines()
            raise NotCompiled(f"{command} failed: {reason[0] if reason else error}") from error
        except OSError as error:
            raise NotCompiled(str(error)) from error

    def compiled(self, compiler: Compiler) -> Path:
        """Path of the shared library for these sources and this compiler.

        Raises:
            subprocess.CalledProcessError: the compiler failed.
        """
        key = hashlib.sha256()
        code = b"".join(path.read_bytes() for path in (*self.sources, *self.headers))
        words = " ".join((*self.flags, *self.link)).encode()
        for part in (code, compiler.command.encode(), compiler.version.encode(), words, self.machine):
            key.update(part + b"\0")
        target = cache_folder() / key.hexdigest()[:16] / f"{self.name}.so"
        if target.exists():
            return target
        with tempfile.TemporaryDirectory() as scratch:
            linked = Path(scratch) / target.name
            built = [Path(scratch) / source.with_suffix(".o").name for source in self.sources]
            for source, target_object in zip(self.sources, built, strict=True):
                _run([compiler.command, *self.flags, "-c", str(source), "-o", str(target_object)])
            _run([compiler.command, "-shared", *map(str, built), "-o", str(linked), *self.link])
            try:
                with whole_file(target) as partial:
                    shutil.copyfile(linked, partial)
            except (UserError, OSError):
                # No place to keep it (read-only home, full disk): a private copy for this process.
                target = Path(tempfile.mkdtemp(prefix=f"minnow-{self.name}-")) / target.name
                shutil.copyfile(linked, target)
        return target


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
