"""Compiled C: built once for a compiler and its sources, kept in the cache, and a reason where there is none."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from minnow import native
from minnow.native import Compiler, Library, NotCompiled


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.c").write_text(f'#include "shared.h"\nint {name}(void) {{ return NUMBER; }}\n')
    (tmp_path / "shared.h").write_text("#define NUMBER 7\n")
    sources = [tmp_path / "one.c", tmp_path / "two.c"]
    return Library("numbers", sources, ["-O1", "-fPIC"], [tmp_path / "shared.h"], ["-lm"])


def test_a_library_is_built_once_and_kept(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"built")

    monkeypatch.setattr(native, "_run", run)
    compiler = Compiler("cc", "cc 1.0")
    first = library.compiled(compiler)
    assert first.name == "numbers.so" and first.read_bytes() == b"built" and tmp_path in first.parents
    assert library.compiled(compiler) == first and len(commands) == len(library.sources) + 1
    assert commands[-1][-1] == "-lm" and "-O1" not in commands[-1]
    others = [
        library.compiled(Compiler("cc", "cc 2.0")),
        replace(library, flags=["-O2", "-fPIC"]).compiled(compiler),
        replace(library, machine=b"another processor").compiled(compiler),
    ]
    (tmp_path / "shared.h").write_text("#define NUMBER 8\n")
    assert len({first, *others, library.compiled(compiler)}) == 5
    # A home that cannot be written costs the cache, not the library.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.compiled(compiler).read_bytes() == b"built"


def test_what_was_compiled_runs(library: Library) -> None:
    try:
        loaded, compiler = library.load()
    except NotCompiled as error:
        pytest.skip(str(error))
    assert (loaded.one(), loaded.two()) == (7, 7)
    assert str(compiler).partition(" ")[0] == Path(compiler.command).name


def test_a_machine_that_cannot_compile_says_why(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library.load()
    except NotCompiled as error:
        pytest.skip(str(error))
    library.sources[0].write_text("this is no C\n")
    with pytest.raises(NotCompiled, match="failed: .*one.c"):
        library.load()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(NotCompiled, match="false failed"):
        library.load()
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(NotCompiled, match="no C compiler found"):
        library.load()


def test_a_damaged_library_is_no_crash(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> None:
        Path(command[command.index("-o") + 1]).write_bytes(b"not a library")

    monkeypatch.setattr(native, "_run", run)
    monkeypatch.setattr(native.shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "cc 1.0", ""))
    with pytest.raises(NotCompiled):
        library.load()
