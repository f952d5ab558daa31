"""Knowing that a rank is gone: each rank shows that it lives and looks after the next one.

A collective whose other end is gone fails without saying whose, or waits for minutes. So every rank counts up a number
in the store that the launcher keeps, and a thread of each watches the next rank's. The first to find one dead, or to fail
itself, leaves a verdict there, and all others stop by it. A call to a store whose host is cut off neither returns nor
fails, so a second thread watches the first.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from minnow.errors import UserError

TICK_SECONDS = 0.5

DEAD_SECONDS = 20.0
"""Without a sign of life, of a rank on another machine; on this one the system is asked."""

GRACE_SECONDS = 10.0
"""From a verdict until a rank that is stuck in a collective is ended."""

_VERDICT = "verdict"
_ENDED = "the training state of the last save is whole: run the same command again to go on from it"


def _place() -> str:
    """Where process numbers mean the same: the machine, and on Linux the namespace."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()}|{os.readlink(namespace) if namespace.exists() else ''}"


def _gone(process: int) -> bool:
    """Whether a process of this place has ended, waited for or not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{process}/stat")
    with suppress(OSError):
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _keeper() -> str:
    """Who keeps the ranks' store."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return f"{'torchrun' if kept else 'rank 0'} on {os.environ['MASTER_ADDR']}"


class Watch:
    """This rank's sign of life, and its eye on the next rank.

    Args:
        connect: a connection to the ranks' store; called twice, since one that waits blocks its other users.
    """

    def __init__(self, connect: Callable[[], dist.Store], rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.store, self._own = connect(), connect()
        self.verdict: str | None = None
        self._judged, self._left = threading.Event(), threading.Event()
        self._beats = 0
        self.store.set(f"who/{rank}", f"{_place()}|{os.getpid()}")
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._end, name="end", daemon=True).start()

    def _run(self) -> None:
        store, after = self._own, (self.rank + 1) % self.count
        last, seen = b"", time.monotonic()
        while self.verdict is None and not self._left.wait(TICK_SECONDS):
            try:
                self._beats += 1
                store.set(f"beat/{self.rank}", str(self._beats))
                if store.check([_VERDICT]):
                    self._hear(store.get(_VERDICT).decode())
                elif store.check([f"who/{after}"]) and not store.check([f"left/{after}"]):
                    place, _, process = store.get(f"who/{after}").decode().rpartition("|")
                    beat = store.get(f"beat/{after}") if store.check([f"beat/{after}"]) else b"none"
                    if beat != last:
                        last, seen = beat, time.monotonic()
                    if (place == _place() and _gone(int(process))) or time.monotonic() - seen > DEAD_SECONDS:
                        host = place.partition("|")[0]
                        self._hear(self._say(store, f"rank {after} (process {process} on {host}) died; {_ENDED}"))
            except RuntimeError:  # torch's errors of a store that is gone
                self._hear(f"{_keeper()} died; {_ENDED}")

    def _end(self) -> None:
        """End this rank some time after a verdict: its main thread may wait for one that does not come."""
        heard = ticks = 0
        while self.verdict is None and not self._left.wait(TICK_SECONDS):
            # Ticks and no clock: they stand still with the other thread where the machine does.
            heard, ticks = (heard, ticks + 1) if self._beats == heard else (self._beats, 0)
            if ticks * TICK_SECONDS > DEAD_SECONDS:
                self._hear(f"{_keeper()} cannot be reached or died; {_ENDED}")
        if self.verdict is not None and not self._left.wait(GRACE_SECONDS):
            sys.stderr.write(f"minnow: {self.verdict}\n")
            sys.stderr.flush()
            os._exit(2)

    def _say(self, store: dist.Store, verdict: str) -> str:
        """Leave a verdict unless there is one; returns the one that counts."""
        return store.compare_set(_VERDICT, "", verdict).decode()

    def _hear(self, verdict: str) -> None:
        self.verdict = verdict
        self._judged.set()

    def explain(self, error: BaseException) -> BaseException:
        """What to raise where ``error`` ended this rank's work; the others hear of it."""
        lost = _is_of_connection(error)
        # After a death torchrun ends all ranks at once: neither a lost connection nor a signal need be the cause.
        if lost or isinstance(error, KeyboardInterrupt):
            self._judged.wait(DEAD_SECONDS + 4 * TICK_SECONDS if lost else 2 * TICK_SECONDS)
            if self.verdict is not None and (lost or " died; " in self.verdict):
                error = UserError(self.verdict)
            elif lost:
                error = UserError(f"rank {self.rank} lost touch with the others ({error}); {_ENDED}")
        with suppress(RuntimeError):
            # Who waits for the first rank may go by a signal that the first has to finish something before.
            if self.verdict is None and not (self.rank and isinstance(error, KeyboardInterrupt)):
                self._say(self.store, f"rank {self.rank} stopped: {str(error) or type(error).__name__}")
            self._go(GRACE_SECONDS / 2)
        return error

    def leave(self) -> None:
        """The work is done."""
        self._go(DEAD_SECONDS)
        self.stop()

    def stop(self) -> None:
        """No more looking; a thread inside a store would hold up the end of the process."""
        self._left.set()
        self._thread.join(DEAD_SECONDS)

    def _go(self, wait: float) -> None:
        """Tell that this rank goes; the first, which may keep the store, waits for the others before it does."""
        self.store.set(f"left/{self.rank}", "")
        deadline = time.monotonic() + wait
        names = [f"left/{rank}" for rank in range(self.count)]
        while self.rank == 0 and not self.store.check(names) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS / 10)


def _is_of_connection(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a collective or store that has lost its other end."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
