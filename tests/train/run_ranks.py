"""Train the toy of test_loop.py on several ranks, and have things go wrong on the way.

Run as a script: ``run_ranks.py FOLDER``. The JSON list of phases on standard input is worked through one by one; each
forks its ranks (torch is imported once for all of them) and waits until they have ended. What rank R of phase P tells is
in ``FOLDER/P-R.json``, what it wrote to stderr in ``FOLDER/P-R.err``; how the ranks ended is in ``FOLDER/P.json``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # once, for all that are forked
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor

sys.path.insert(0, str(Path(__file__).parent))
import run_and_die as toy

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.data.rows import Batch
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_model
from minnow.train import guard, loop, pace, state_file
from minnow.train.context_parallel import split_context
from minnow.train.experts import ExpertSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import Ranks, joined


def corpus() -> Packed:
    """Twenty rows of one to four documents, a third of which are trained in half of their places."""
    tokens = np.random.default_rng(0).integers(14, 64, (20, 17))
    targets = tokens[:, 1:].copy()
    targets[::3, :9] = -100
    documents = 1 + (np.random.default_rng(1).random(targets.shape) < 0.08).cumsum(1)
    return Packed(tokens[:, :-1], targets, documents)  # type: ignore[arg-type]


LOADERS = [Loader(corpus(), rows, seed=3) for rows in (6, 4)]
"""Of the two micro-batches of a step; six rows are not shared evenly by four ranks."""


class Odd(torch.nn.Module):
    """Matrices whose rows do not divide, or are fewer than the ranks."""

    def __init__(self) -> None:
        super().__init__()
        for number, (name, shape) in enumerate(SHAPES.items()):
            values = torch.randn(shape, generator=torch.Generator().manual_seed(number))
            setattr(self, name, torch.nn.Parameter(values))


SHAPES = {"one": (7, 4), "fused": (9, 4), "small": (2, 4), "wide": (5, 11), "norm": (3,), "plain": (4, 4)}
BLOCKS = {"one": [7], "fused": [2, 5, 2], "small": [2], "wide": [5]}


def update(ranks: Ranks, phase: dict[str, Any], told: dict[str, Any]) -> None:
    """Three updates of odd matrices by given gradients."""
    model: Any = Odd()
    ranks.spread(model, torch.float32)
    optimizer = Optimizer(model, OptimizerSettings(muon=True), torch.float32, BLOCKS)
    told["norms"] = []
    for step in range(3):
        draw = torch.Generator().manual_seed(100 + step)
        for index, parameter in enumerate(optimizer.parameters):
            whole = torch.randn(SHAPES[optimizer.names[index]], generator=draw)
            parameter.grad = optimizer.layout.tagged(index, optimizer.layout.part(index, whole).clone())
        optimizer.collect()
        told["norms"].append(optimizer.step(0.1, 2.0))
    weights = optimizer.weights()
    if ranks.first:
        torch.save(weights, f"{phase['out']}.weights.pt")


def gradients(ranks: Ranks, phase: dict[str, Any], told: dict[str, Any]) -> None:
    """The loss of one batch and its gradients, all in float64; the model lies whole on every rank but for its rows."""
    batch, model = LOADERS[0].batch(0), Backbone(toy.MODELS[phase["model"]])
    model.initialise(0)
    model.double()
    if ranks.parallel.context > 1:
        split_context(model, ranks.parallel, torch.distributed.group.WORLD)
    total = next_token(model, ranks.part(batch)).total
    total.backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if ranks.count > 1:
            torch.distributed.all_reduce(gradient)
        found[name] = gradient
    told["loss"] = ranks.sum(float(total.detach()))[0]
    if ranks.first:
        torch.save(found, f"{phase['out']}.weights.pt")


def work(rank: int, phase: dict[str, Any], told: dict[str, Any]) -> None:
    shape = Parallel(phase.get("shard"), phase.get("expert", 1), phase.get("context", 1), phase.get("recompute", False))
    with joined(shape) as ranks:
        kinds = {"update": update, "gradients": gradients}
        kinds.get(phase.get("kind", ""), train)(ranks, phase, told)


def train(ranks: Ranks, phase: dict[str, Any], told: dict[str, Any]) -> None:
    fault, place, when = phase.get("fault", ["", -1, -1])
    rank = ranks.rank
    loop.compute_dtype = lambda: getattr(torch, phase.get("dtype", "float32"))
    guard.WINDOW = 5
    pace.PERIOD, pace.READING = (0.0, 0.0) if fault == "slow" else (1e9, 0.1)
    toy.CONFIG = toy.MODELS[phase.get("model", "dense")]
    state_file.SLOW_SECONDS = 0.0 if phase.get("aside") else 1e9
    read: list[list[int]] = []

    def source(step: int) -> Iterator[Batch]:
        if fault == "slow" and rank == place:
            time.sleep(0.1)
        if (rank, step) == (place, when):
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if fault == "error":
                raise UserError("shard 7 is damaged")
            if fault == "flip":
                trainer.optimizer.masters[0].view(torch.int32).flatten()[0] ^= 1
            if fault == "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        for loader in LOADERS:
            yield loader.batch(step, *ranks.data)

    settings = {
        "optimizer": OptimizerSettings(learning_rate=phase.get("rate", 1e-2), muon=True, ema=0.9),
        "save_seconds": phase.get("save_seconds", 1e9),
        "experts": ExpertSettings(balance=0.01),
    }
    trainer, records = toy.make_trainer(Path(phase["folder"]), phase["steps"], source, ranks, **settings)
    told["from"] = trainer.done_steps
    objective = trainer.objective

    def watched(model: Any, batch: Batch) -> Any:
        read.append(batch.tokens[(batch.documents > 0).any(1)].flatten().tolist())
        if fault == "memory" and rank == place and len(batch.tokens) > when:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "spikes" and trainer.done_steps + trainer.skipped_batches in range(when, when + 5):
            loss = objective(model, batch)
            return type(loss)(loss.total * 50, loss.weight, loss.metrics)
        return objective(model, batch)

    trainer.objective = watched
    told.update(read=read, records=records)
    trainer.run(lambda trainer: True, phase.get("check_every", 0))
    with torch.no_grad():
        told["measured"] = float(next_token(trainer.model, LOADERS[0].batch(0)).total)
    weights = trainer.optimizer.weights()
    for name, tensors in (("weights", weights), ("average", trainer.optimizer.averaged())):
        if ranks.first:
            torch.save(tensors | trainer.loads.state(), f"{phase['out']}.{name}.pt")
    if ranks.first and phase.get("export"):
        (folder := Path(phase["folder"]) / "checkpoint").mkdir(parents=True, exist_ok=True)
        save_model(trainer.model, folder, weights)


def begin(rank: int, phase: dict[str, Any], port: int) -> int:
    """Fork one rank; its process id."""
    child = os.fork()
    if child:
        return child
    count = phase["ranks"]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if "life" in phase:
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=str(phase["life"] + rank))
    out = f"{phase['out']}-{rank}"
    os.dup2(os.open(f"{out}.err", os.O_CREAT | os.O_WRONLY), 2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the runner has it
    told: dict[str, Any] = {}
    code = 0
    try:
        work(rank, phase, told)
    except UserError as error:
        print(f"minnow: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(f"{out}.json").write_text(json.dumps(told))
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    folder = Path(sys.argv[1])
    # A phase that has a life keeps its store here, as torchrun does, and the next life of its ranks finds it used.
    kept = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for number, phase in enumerate(json.load(sys.stdin)):
        phase["out"] = str(folder / str(number))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = kept.port if "life" in phase else free.getsockname()[1]
        began = time.monotonic()
        children = [begin(rank, phase, port) for rank in range(phase["ranks"])]
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        (folder / f"{number}.json").write_text(json.dumps({"codes": ended, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
