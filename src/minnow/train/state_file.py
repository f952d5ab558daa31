"""The file a stopped run goes on from: whole, checked, and written aside where writing takes long."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from minnow.files import whole_file

SLOW_SECONDS = 0.5
"""A write that takes longer than this makes the ones after it run beside training."""

_MARK = b"minnow-sha256:"
_FOOTER = len(_MARK) + hashlib.sha256().digest_size


class StateFile:
    """A training state on disk; what is there is the last whole one, whatever interrupts a write.

    The file is torch's own with a checksum at its end (torch reads past it): torch checks no tensor's bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slow = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state file")
        self._pending: Future[None] | None = None

    def write(self, state: dict[str, Any], wait: bool = True) -> None:
        """Replace the file by ``state``.

        Args:
            wait: until it is written. Without it, and where writing has been slow, a thread writes a copy of
                ``state``; the next call or :meth:`finish` raises what went wrong there.

        Raises:
            UserError: the disk is full or the folder cannot be written; the earlier file stays.
        """
        self.finish()
        if wait or not self._slow:
            started = time.monotonic()
            _write(self.path, state)
            self._slow = time.monotonic() - started > SLOW_SECONDS
        else:
            self._pending = self._thread.submit(_write, self.path, _copy(state))

    def finish(self) -> None:
        """Wait for a write that is under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def read(self) -> dict[str, Any]:
        """The state.

        Raises:
            ValueError: the file is cut short or a byte of it changed.
        """
        self.finish()
        size = self.path.stat().st_size - _FOOTER
        with self.path.open("rb") as file:
            digest = hashlib.sha256()
            for start in range(0, max(0, size), 1 << 20):
                digest.update(file.read(min(1 << 20, size - start)))
            if file.read() != _MARK + digest.digest():
                raise ValueError("its checksum is wrong")
        loaded: dict[str, Any] = torch.load(self.path, weights_only=True)
        return loaded


def _write(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch reports a failed write as RuntimeError
            raise OSError(str(error)) from error
        with temporary.open("r+b") as file:
            file.write(_MARK + hashlib.file_digest(file, "sha256").digest())


def _copy(value: Any) -> Any:
    """``value`` with tensors and containers of its own, so that training may go on while it is written."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
