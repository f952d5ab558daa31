"""Files and folders appear whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from minnow.errors import UserError
from minnow.files import read_json, whole_file, whole_folder, write_json


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_at(call: int) -> Callable[[str | Path, str | Path], None]:
    """A stand-in for ``os.replace`` whose ``call``-th call (from 1) fails as on a full disk."""
    done = 0
    real = os.replace

    def replace(source: str | Path, target: str | Path) -> None:
        nonlocal done
        done += 1
        if done == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    return replace


def write_folder(path: Path, text: str) -> None:
    with whole_folder(path) as temporary:
        (temporary / "weights").write_text(text)


def test_a_file_and_a_folder_replace_what_was_there(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_file(tmp_path / "new/file") as temporary:
            temporary.write_text(text)
        write_folder(tmp_path / "folder", text)
    assert (tmp_path / "new/file").read_text() == (tmp_path / "folder/weights").read_text() == "two"
    assert left_in(tmp_path) == ["folder", "new"] and left_in(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_previous_version(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "file").write_text("before")
    write_folder(tmp_path / "folder", "before")
    for whole in (whole_file(tmp_path / "file"), whole_folder(tmp_path / "folder")):
        with pytest.raises(type(error)), whole as temporary:
            (temporary / "weights" if temporary.is_dir() else temporary).write_text("half")
            raise error
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/weights").read_text() == "before"
    assert left_in(tmp_path) == ["file", "folder"]


def test_a_full_disk_while_writing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(UserError, match="No space left on device; free some space"), whole_file(tmp_path / "file") as t:
        t.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "file").read_text() == "before" and left_in(tmp_path) == ["file"]


def test_a_file_whose_rename_fails_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file", {"version": 1})
    monkeypatch.setattr(os, "replace", fail_at(1))
    with pytest.raises(UserError, match="could not write"):
        write_json(tmp_path / "file", {"version": 2})
    assert read_json(tmp_path / "file") == {"version": 1} and left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("call", [1, 2])
def test_a_folder_whose_rename_fails_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write_folder(tmp_path / "folder", "before")
    monkeypatch.setattr(os, "replace", fail_at(call))
    with pytest.raises(UserError, match="could not write"):
        write_folder(tmp_path / "folder", "after")
    assert (tmp_path / "folder/weights").read_text() == "before" and left_in(tmp_path) == ["folder"]


def test_ctrl_c_between_the_two_renames_of_a_folder_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "before")
    real = os.replace

    def replace(source: str | Path, target: str | Path) -> None:
        real(source, target)
        monkeypatch.setattr(os, "replace", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "folder", "after")
    assert (tmp_path / "folder/weights").read_text() == "before" and left_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_parent_that_is_a_file_is_one_sentence(
    tmp_path: Path, whole: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(UserError, match="could not write .*plain/below"), whole(tmp_path / "plain/below"):
        raise AssertionError("nothing can be written there")
    assert (tmp_path / "plain").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "part"), [(None, "does not exist"), (b"{", "is not valid JSON"), (b"\xff", "is not valid JSON")]
)
def test_json_that_cannot_be_read_names_the_file(tmp_path: Path, content: bytes | None, part: str) -> None:
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=f"file.json {part}"):
        read_json(tmp_path / "file.json")
