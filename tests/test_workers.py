"""Worker processes: set up, and ended in the middle of their work when this one stops or dies."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from minnow.workers import worker_pool

_given: list[int] = []

PARENT = """
import os, time
from minnow.workers import worker_pool

with worker_pool(1, os.getpid) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def take(number: int) -> None:
    _given.append(number)


def given() -> list[int]:
    return _given


def test_a_worker_has_called_begin() -> None:
    with worker_pool(1, take, 3) as pool:
        assert pool.submit(given).result() == [3]
    assert not multiprocessing.active_children() and given() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_does_not_wait_for_what_workers_are_at(error: type[BaseException]) -> None:
    start = time.monotonic()
    with pytest.raises(error), worker_pool(2, take, 3) as pool:
        pids = [pool.submit(os.getpid).result()]
        for _ in range(4):
            pool.submit(time.sleep, 600)
        raise error
    assert time.monotonic() - start < 300
    wait_for_the_end_of(pids[0])


def test_a_worker_is_gone_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    wait_for_the_end_of(worker)


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
