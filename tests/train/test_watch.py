"""A rank's watch over the others, where what it asks does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from minnow.train import watch
from minnow.train.watch import Watch


class Ended(threading.Event):
    """Stands for the end of the process."""

    code: int | None = None

    def __call__(self, code: int) -> None:
        self.code = code
        self.set()


class CutOff:
    """A store that answers until :attr:`link` is cleared; then its calls neither return nor fail, as over a cut link."""

    def __init__(self) -> None:
        self.store, self.link = dist.HashStore(), threading.Event()
        self.link.set()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.link.wait()
            return getattr(self.store, name)(*arguments)

        return call


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ended]:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, seconds in {"TICK_SECONDS": 0.02, "DEAD_SECONDS": 0.5, "GRACE_SECONDS": 0.2}.items():
        monkeypatch.setattr(watch, name, seconds)
    ended = Ended()
    monkeypatch.setattr(watch.os, "_exit", ended)
    yield ended


def test_a_store_that_does_not_answer_ends_the_rank(ended: Ended, capfd: pytest.CaptureFixture[str]) -> None:
    store = CutOff()
    rank: Any = Watch(lambda: store, 1, 2)  # type: ignore[arg-type,return-value]
    assert rank.verdict is None
    store.link.clear()
    assert ended.wait(60) and ended.code == 2
    sentence = "rank 0 on 10.0.0.1 cannot be reached or died; "
    assert rank.verdict.startswith(sentence) and f"minnow: {sentence}" in capfd.readouterr().err
    store.link.set()
    rank.stop()


def test_a_store_that_answers_late_ends_nothing(ended: Ended) -> None:
    store = CutOff()
    watches = [Watch(lambda: store, rank, 2) for rank in range(2)]  # type: ignore[arg-type,return-value]
    for _ in range(4):
        store.link.clear()
        assert not ended.wait(0.1)
        store.link.set()
        assert not ended.wait(0.1)
    for one in watches:
        assert one.verdict is None
        one.stop()
    assert not ended.is_set()
