"""One rank against two and four, over gloo on this machine's CPUs: the same tokens, the same losses?

Trains small models from the same start on the same rows of packed documents, on one rank and laid out over 2 and 4: one of
the LFM2 form by copies, by shards (FSDP2) and with its rows in parts, one of the LFM2-MoE form with its experts shared out,
and one of every mixer with its rows in parts; and on 4 ranks and then 2, and on 2 and then 4. Prints how far each loss curve
is from that of one rank, and whether the tokens of every step were the same; writes the same as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # once, for all that are forked

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.data.rows import IGNORED, Batch
from minnow.model.backbone import Backbone
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.train import loop
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import Loss, next_token
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import joined

VOCABULARY, LENGTH, ROWS, WIDTH = 128, 32, 8, 32

_CONV, _DENSE, _EXPERTS = ShortConv(), Dense(64), Experts(experts=8, active=2, width=32)
_ATTENTION = Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(1e6))


def _model(family: str, *layers: tuple[Mixer, FeedForward]) -> ModelConfig:
    return ModelConfig(
        family, VOCABULARY, WIDTH, tuple(map(LayerConfig, *zip(*layers, strict=True))), max_positions=LENGTH
    )


MODELS = {
    "LFM2": _model("lfm2", (_CONV, _DENSE), (_ATTENTION, _DENSE), (_CONV, _DENSE), (_ATTENTION, _DENSE)),
    "LFM2-MoE": _model("lfm2_moe", (_CONV, _DENSE), (_ATTENTION, _EXPERTS), (_CONV, _EXPERTS)),
    "every mixer": _model(
        "minnow",
        (_CONV, _DENSE),
        (_ATTENTION, _EXPERTS),
        (replace(_ATTENTION, window=12), _DENSE),
        (GatedDelta(key_heads=2, value_heads=4, key_dim=8, value_dim=8), _DENSE),
        (GatedLinear(heads=4, key_dim=8, value_dim=8), _DENSE),
    ),
}


@dataclass(frozen=True)
class Leg:
    """Some ranks that train up to a share of the steps, with ``moved`` from weights that are each off by a rounding."""

    ranks: int
    parallel: Parallel = field(default_factory=Parallel)
    share: float = 1.0
    moved: bool = False


def _change(first: Leg, then: Leg) -> list[Leg]:
    return [replace(first, share=0.5), then]


_COPIES = Parallel(shard=1)
_EXPERT = {count: Leg(count, Parallel(expert=count)) for count in (2, 4)}
_CONTEXT = {count: Leg(count, Parallel(context=count)) for count in (2, 4)}
_PARTS = {
    "context 2": [_CONTEXT[2]],
    "context 4": [_CONTEXT[4]],
    "context 4, then 2": _change(_CONTEXT[4], _CONTEXT[2]),
    "context 2, then 4": _change(_CONTEXT[2], _CONTEXT[4]),
}
CHAINS: dict[str, dict[str, list[Leg]]] = {
    "LFM2": {
        "1 rank": [Leg(1)],
        "1 rank, start moved": [Leg(1, moved=True)],
        "2 copies": [Leg(2, _COPIES)],
        "4 copies": [Leg(4, _COPIES)],
        "2 shards": [Leg(2)],
        "4 shards": [Leg(4)],
        "4 shards, then 2": _change(Leg(4), Leg(2)),
        "2 shards, then 4": _change(Leg(2), Leg(4)),
        **_PARTS,
    },
    "LFM2-MoE": {
        "1 rank": [Leg(1)],
        "1 rank, start moved": [Leg(1, moved=True)],
        "expert 2": [_EXPERT[2]],
        "expert 4": [_EXPERT[4]],
        "expert 2, data 2": [Leg(4, Parallel(expert=2))],
        "expert 4, then 2": _change(_EXPERT[4], _EXPERT[2]),
        "expert 2, then 4": _change(_EXPERT[2], _EXPERT[4]),
    },
    "every mixer": {
        "1 rank": [Leg(1)],
        "1 rank, start moved": [Leg(1, moved=True)],
        **_PARTS,
        "context 2, data 2, expert 2": [Leg(4, Parallel(expert=2, context=2))],
    },
}
"""By model: the legs of each training."""


def corpus() -> Packed:
    """Rows of documents of a Markov chain over the vocabulary, so that there is something to learn."""
    draw = np.random.default_rng(0)
    successors = draw.integers(0, VOCABULARY, (VOCABULARY, 4))
    tokens = np.empty((512, LENGTH + 1), np.int32)
    begins = draw.random(tokens.shape) < 0.05
    begins[:, 0] = True
    for place in range(LENGTH + 1):
        following = successors[tokens[:, place - 1] % VOCABULARY, draw.integers(0, 4, len(tokens))]
        tokens[:, place] = np.where(begins[:, place], draw.integers(0, VOCABULARY, len(tokens)), following)
    targets = np.where(begins[:, 1:], IGNORED, tokens[:, 1:])
    return Packed(tokens[:, :-1], targets, begins[:, :-1].cumsum(1).astype(np.int16))


def _double_everything() -> None:
    """Masters, gradients and their sums too, which are float32 otherwise."""
    policy = torch.distributed.fsdp.MixedPrecisionPolicy
    torch.distributed.fsdp.MixedPrecisionPolicy = lambda **given: policy(**given | {"reduce_dtype": torch.float64})  # type: ignore[misc,assignment]
    torch.Tensor.float, torch.nn.Module.float = torch.Tensor.double, torch.nn.Module.double  # type: ignore[method-assign]


def train(arguments: argparse.Namespace, name: str, leg: Leg, until: int, folder: Path, place: dict[str, int]) -> None:
    """What one rank does, a process of its own; it leaves its losses and what it has read beside the state.

    Args:
        place: what torchrun would say of it.
    """
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    dtype = getattr(torch, arguments.dtype)
    loop.compute_dtype = lambda: dtype
    if dtype == torch.float64:
        _double_everything()
    model = Backbone(MODELS[name])
    model.initialise(0)
    if leg.moved:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.double().parameters():
                weight *= 1 + torch.finfo(dtype).eps * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    loader = Loader(corpus(), ROWS, seed=0)
    lines: list[dict[str, Any]] = []
    with joined(leg.parallel) as ranks:

        def objective(model: Any, batch: Batch) -> Loss:
            lines[-1]["rows"] += batch.tokens.tolist()
            return next_token(model, batch)

        def batches(step: int) -> list[Batch]:
            lines.append({"step": step + 1, "rows": []})
            return [loader.batch(step, *ranks.data)]

        def record(**values: Any) -> None:
            lines[-1] |= values

        settings = TrainSettings(
            arguments.steps, OptimizerSettings(arguments.rate, muon=True), save_seconds=1e9, log_every=1
        )
        trainer = Trainer(model, objective, batches, settings, record, folder / "train.pt", ranks)

        def check(trainer: Trainer) -> bool:
            if trainer.done_steps == until < arguments.steps:
                raise KeyboardInterrupt  # which saves
            return True

        with suppress(KeyboardInterrupt):
            trainer.run(check, until)
        (folder / f"{until}-{ranks.rank}.json").write_text(json.dumps(lines))


def launch(arguments: argparse.Namespace, name: str, leg: Leg, until: int, folder: Path) -> None:
    """Fork the leg's ranks and wait for them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": leg.ranks, "LOCAL_WORLD_SIZE": leg.ranks, "MASTER_PORT": port}
    running = [
        get_context("fork").Process(target=train, args=(arguments, name, leg, until, folder, common | {"RANK": rank}))
        for rank in range(leg.ranks)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise SystemExit(f"{leg} did not end well")


def run(model: str, legs: list[Leg], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The losses and a digest of the tokens of each step of one chain."""
    losses, digests = [], []
    for leg in legs:
        until = round(arguments.steps * leg.share)
        launch(arguments, model, leg, until, folder)
        told = [json.loads((folder / f"{until}-{rank}.json").read_text()) for rank in range(leg.ranks)]
        losses += [line["loss"] for line in told[0]]
        parts = leg.parallel.context
        for step in zip(*told, strict=True):
            shared = [step[first : first + parts] for first in range(0, len(step), parts)]  # the same rows in parts
            rows = [[*chain(*row)] for ranks in shared for row in zip(*(rank["rows"] for rank in ranks), strict=True)]
            digests.append(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
    return {"losses": losses, "digests": digests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "bfloat16"), help="what passes compute in"
    )
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--model", choices=MODELS, help="only this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before it is forked
    table: dict[str, dict[str, Any]] = {}
    print(f"{'model':12}{'ranks':28}{'last loss':>12}{'farthest':>12}{'same tokens':>14}")
    for model in [arguments.model] if arguments.model else MODELS:
        table[model] = {}
        for name, legs in CHAINS[model].items():
            with tempfile.TemporaryDirectory() as folder:
                made = run(model, legs, Path(folder), arguments)
            first = table[model].setdefault("1 rank", made)
            farthest = max(abs(a - b) for a, b in zip(made["losses"], first["losses"], strict=True))
            same = made["digests"] == first["digests"]
            table[model][name] = made | {"farthest": farthest, "same_tokens": same}
            print(
                f"{model:12}{name:28}{made['losses'][-1]:12.5f}{farthest:12.2e}{'yes' if same else 'no':>14}",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps({"settings": vars(arguments) | {"out": str(arguments.out)}, **table}))


if __name__ == "__main__":
    main()
