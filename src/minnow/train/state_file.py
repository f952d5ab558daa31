"""The file a stopped run goes on from: whole, checked, and written aside where writing takes long."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from minnow.files import seal, sealed, whole_file

SLOW_SECONDS = 0.5
"""A write that takes longer than this makes the ones after it run beside training."""


class StateFile:
    """A training state on disk; what is there is the last whole one, whatever interrupts a write.

    It reads what several ranks have left beside the file too (:class:`~minnow.train.state_folder.StateFolder`), and
    whoever writes removes what the other has left.
    """

    alone = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slow = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state file")
        self._pending: Future[None] | None = None

    def newest(self) -> Path | None:
        """The file or folder to go on from, if there is one."""
        found = [path for path in (self.path, newest_save(self.path)) if path is not None and path.exists()]
        # Both are there where a process was killed between writing one and removing the other.
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    @property
    def writing(self) -> bool:
        """Whether a write is under way beside training, for which the next would have to wait."""
        return self._pending is not None and not self._pending.done()

    def write(self, state: dict[str, Any], wait: bool = True) -> None:
        """Replace the state on disk by ``state``.

        Args:
            wait: until it is written. Without it, and where writing has been slow, a thread writes a copy of
                ``state``; the next call or :meth:`finish` raises what went wrong there.

        Raises:
            UserError: the disk is full or the folder cannot be written; the earlier state stays.
        """
        self.finish()
        if wait or not self._slow:
            started = time.monotonic()
            self._write(state)
            self._slow = self._is_slow(time.monotonic() - started)
        else:
            self._pending = self._thread.submit(self._write, _copy(state))

    def _write(self, state: dict[str, Any]) -> None:
        write_file(self.path, state)
        shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)

    def _is_slow(self, seconds: float) -> bool:
        return seconds > SLOW_SECONDS

    def finish(self) -> None:
        """Wait for a write that is under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def read(self, like: dict[str, Any]) -> dict[str, Any]:
        """The state.

        Args:
            like: one of the same form. What several ranks wrote is read into its tensors.

        Raises:
            ValueError: a file is cut short or a byte of it changed, or a tensor is not as in ``like``.
        """
        self.finish()
        newest = self.newest()
        if newest is None or newest.is_file():
            return read_file(newest or self.path)
        from minnow.train.state_folder import read_folder  # takes seconds

        return read_folder(newest, like, self.alone)


def newest_save(path: Path) -> Path | None:
    """The last whole folder that several ranks left for the state at ``path``."""
    return max((folder for folder in path.with_suffix("").glob("[0-9]*") if folder.is_dir()), default=None)


def write_file(path: Path, state: dict[str, Any]) -> None:
    """Torch's own file with a checksum at its end (torch reads past it): torch checks no tensor's bytes."""
    with whole_file(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch reports a failed write as RuntimeError
            raise OSError(str(error)) from error
        seal(temporary)


def read_file(path: Path) -> dict[str, Any]:
    """What :func:`write_file` wrote.

    Raises:
        ValueError: the file is cut short or a byte of it changed.
    """
    if not sealed(path):
        raise ValueError("its checksum is wrong")
    return torch.load(path, weights_only=True)


def _copy(value: Any) -> Any:
    """``value`` with tensors and containers of its own, so that training may go on while it is written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
