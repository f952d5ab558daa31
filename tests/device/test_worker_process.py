"""What a worker writes is kept in bounds, and why it died is known all the same."""

from __future__ import annotations

import os
import textwrap
import threading
import time
from pathlib import Path

import pytest

from minnow.device.worker_process import LOG_BYTES, WorkerDied, WorkerProcess, worker_environment

CHATTY = """
    import os, sys
    from minnow.device.worker_process import answers

    say = answers()
    for line in sys.stdin:
        for place in range(40):
            sys.stderr.write(f"{place} " + "x" * 100_000 + "\\n")
        sys.stderr.write("a request was answered\\n")
        sys.stderr.flush()
        if "die" in line:
            sys.stderr.write("x.cpp:7: GGML_ASSERT(n > 0) failed\\n")
            sys.stderr.flush()
            os.abort()
        say({})
"""


@pytest.fixture
def chatty(tmp_path: Path) -> WorkerProcess:
    (tmp_path / "chatty.py").write_text(textwrap.dedent(CHATTY))
    return WorkerProcess("chatty", PYTHONPATH=os.pathsep.join([worker_environment()["PYTHONPATH"], str(tmp_path)]))


def test_a_log_without_end_stops_nothing_and_is_bounded(chatty: WorkerProcess) -> None:
    threads = threading.active_count()
    with chatty:
        for _ in range(3):  # each far more than a pipe holds
            assert chatty._exchange({}) == {}
            written = chatty._written()
            assert len(written) <= LOG_BYTES
            assert written.endswith("a request was answered\n")
        with pytest.raises(WorkerDied, match="signal 6"):
            chatty._exchange({"die": True})
        assert chatty._complaints() == ["x.cpp:7: GGML_ASSERT(n > 0) failed"]
    # Its reader goes with it.
    deadline = time.monotonic() + 20
    while threading.active_count() >= threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() < threads
