"""Several processes that train one model, over torch.distributed: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from minnow import progress
from minnow.errors import UserError
from minnow.model.language_model import LanguageModel
from minnow.train.objectives import idle, split_positions
from minnow.train.parallel import Parallel
from minnow.train.ranks import Ranks, T
from minnow.train.sharding import shard
from minnow.train.state_file import StateFile
from minnow.train.watch import Watch

STUCK = timedelta(minutes=10)
"""How long the ranks wait for one that is alive and does not come."""

_POLL_SECONDS = 0.1


class ManyRanks(Ranks):
    """One of several processes; made by :func:`joined`."""

    def __init__(self, parallel: Parallel, watch: Watch) -> None:
        super().__init__(parallel)
        self.watch, self.rank, self.count = watch, dist.get_rank(), dist.get_world_size()
        self.per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self._events = 0
        self._signal = 0
        self._before: dict[int, Any] = {}

    def spread(self, model: LanguageModel, dtype: torch.dtype) -> None:
        super().spread(model, dtype)
        device = next(model.parameters()).device.type

        def mesh(**sizes: int) -> DeviceMesh:
            return dist.init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

        expert, context = self.parallel.expert, self.parallel.context
        copies, ranks = self.parallel.copies(self.count, self.per_node)
        if context > 1:
            from minnow.train.context_parallel import split_context

            split_context(model, self.parallel, mesh(data=self.data[1], context=context)["context"].get_group())
        experts = mesh(replicate=copies, data=ranks // expert, expert=expert) if expert > 1 else None
        shard(model, mesh(replicate=copies, shard=ranks), dtype, experts)

    def state(self, path: Path) -> StateFile:
        from minnow.train.state_folder import StateFolder  # takes seconds

        return StateFolder(path)

    def part(self, batch: Any) -> Any:
        if self.parallel.context == 1:
            return batch
        return split_positions(batch, self.parallel.positions(batch.tokens.shape[1], self.rank))

    def even(self, parts: list[Any]) -> list[Any]:
        most = torch.tensor(len(parts))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return parts + [idle(parts[0])] * (int(most) - len(parts))

    def sum(self, *values: float) -> tuple[float, ...]:
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        return tuple(totals.tolist())

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        everyone = self.everyone(values)
        names = dict.fromkeys(name for one in everyone for name in one)
        return {name: sum(one.get(name, 0.0) for one in everyone) for name in names}

    def everyone(self, value: T) -> list[T]:
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held

    def agree(self, wanted: bool) -> bool:
        answers = torch.tensor([int(wanted and self.first), self._signal])
        dist.all_reduce(answers, dist.ReduceOp.MAX)
        if number := int(answers[1]):
            self._signal = 0
            if callable(self._before.get(number)):
                self._before[number](number, None)
            raise KeyboardInterrupt
        return bool(answers[0])

    @contextmanager
    def holding_signals(self) -> Iterator[None]:
        def hold(number: int, frame: Any) -> None:
            self._signal = number

        self._before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self._signal:
            signal.raise_signal(self._signal)

    def from_first(self, value: T) -> T:
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def _event(self, value: str | None = None) -> Any:
        """Pass ``value`` on from the first rank; the others wait for it however long it takes."""
        self._events += 1
        key, store = f"event/{self._events}", self.watch.store
        if self.first:
            store.set(key, json.dumps(value))
        while not store.check([key]):
            if self.watch.verdict is not None:
                raise UserError(self.watch.verdict)
            time.sleep(_POLL_SECONDS)
        return json.loads(store.get(key))

    def after_first(self, make: Callable[[], T]) -> T:
        if self.first:
            made = make()
            self._event()
            return made
        self._event()
        return make()

    def call(self, work: str | None) -> None:
        self._event(work)

    def calls(self) -> Iterator[str]:
        while (work := self._event()) is not None:
            yield work


@contextmanager
def connected(parallel: Parallel) -> Iterator[Ranks]:
    """See :func:`minnow.train.ranks.joined`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank:
        progress.silence()
    kept = _connect(keep=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
    life = _life(kept, rank, count)
    store = dist.PrefixStore(life, kept)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=STUCK, store=store, rank=rank, world_size=count)
    watch = Watch(lambda: dist.PrefixStore(life, _connect()), rank, count)
    try:
        yield ManyRanks(parallel, watch)
        watch.leave()
    except BaseException as error:
        for number in (signal.SIGINT, signal.SIGTERM):  # this rank ends by itself, as soon as it knows why
            signal.signal(number, signal.SIG_IGN)
        cause = watch.explain(error)
        if not isinstance(cause, KeyboardInterrupt):
            _end(cause)
        watch.stop()
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    signal.signal(signal.SIGTERM, before)


def _end(cause: BaseException) -> NoReturn:
    """Say why and end at once: what the interpreter would wait for on its way out may be waiting for a dead rank."""
    if isinstance(cause, UserError):
        sys.stderr.write(f"minnow: {cause}\n")
    else:
        traceback.print_exception(cause)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(cause, UserError) else 1)


def _connect(keep: bool = False) -> dist.Store:
    """A connection of its own to the ranks' store, which torchrun has or this process is to ``keep``.

    Raises:
        UserError: there is none to be had.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.PrefixStore("minnow", dist.TCPStore(address, port, is_master=keep, wait_for_workers=False))
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"could not {'keep' if keep else 'reach'} the ranks' store at {address}:{port} ({reason}); see that "
            "MASTER_ADDR and MASTER_PORT are a free port of rank 0's machine, which all others reach"
        ) from error


def _life(store: dist.Store, rank: int, count: int) -> str:
    """A name that these ranks share and none before them had.

    torchrun may keep its store when it starts the ranks again, and with it what the dead ones left there; how often it has
    is another number on a host that came later. So the first rank makes a name, and tells it to each who calls now.

    Raises:
        UserError: some rank does not come.
    """
    deadline, name = time.monotonic() + STUCK.total_seconds(), uuid.uuid4().hex

    def wait_for(keys: list[str]) -> None:
        while not store.check(keys):
            if rank == 0:
                for caller in (other for other in range(1, count) if store.check([f"call/{other}"])):
                    store.set(f"answer/{store.get(f'call/{caller}').decode()}", name)
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank {rank} waited {STUCK.total_seconds():.0f} s for the others to start; start all again"
                )
            time.sleep(_POLL_SECONDS)

    if rank == 0:
        wait_for([f"heard/{name}/{other}" for other in range(1, count)])
        return name
    store.set(f"call/{rank}", name)  # whatever a dead rank called is answered too, and heard by nobody
    wait_for([f"answer/{name}"])
    told = store.get(f"answer/{name}").decode()
    store.set(f"heard/{told}/{rank}", "")
    return told
