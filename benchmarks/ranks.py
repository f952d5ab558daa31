"""One rank against two and four, over gloo on this machine's CPUs: the same tokens, the same losses?

Trains one small model of the LFM2 form from the same start on the same rows: on 1, 2 and 4 ranks, on 4 and then 2, and
on 2 and then 4. Prints how far each loss curve is from that of one rank, and whether the tokens of every step were the
same; writes the same as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.loader import Loader
from minnow.data.packing import Packed
from minnow.data.rows import Batch
from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.train import loop
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import Loss, next_token
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import joined

VOCABULARY, LENGTH, ROWS = 512, 64, 16
CHAINS: dict[str, list[tuple[int, float]]] = {
    "1 rank": [(1, 1.0)],
    "2 ranks": [(2, 1.0)],
    "4 ranks": [(4, 1.0)],
    "4, then 2": [(4, 0.5), (2, 1.0)],
    "2, then 4": [(2, 0.5), (4, 1.0)],
}
"""How many ranks train up to which share of the steps."""


def corpus() -> Packed:
    """Rows of a Markov chain over the vocabulary, so that there is something to learn."""
    draw = np.random.default_rng(0)
    successors = draw.integers(0, VOCABULARY, (VOCABULARY, 4))
    tokens = np.empty((512, LENGTH + 1), np.int32)
    tokens[:, 0] = draw.integers(0, VOCABULARY, len(tokens))
    for place in range(LENGTH):
        tokens[:, place + 1] = successors[tokens[:, place], draw.integers(0, 4, len(tokens))]
    return Packed(tokens[:, :-1], tokens[:, 1:], np.ones((len(tokens), LENGTH), np.int16))


def train(arguments: argparse.Namespace) -> None:
    """What one rank does; it leaves its losses and what it has read beside the state."""
    torch.set_num_threads(1)
    if arguments.dtype:
        loop.compute_dtype = lambda: getattr(torch, arguments.dtype)
    model = Backbone(
        lfm2_config(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256,
            layer_types=("conv", "full_attention", "conv", "full_attention"), num_heads=4, num_kv_heads=2, head_dim=32,
            max_positions=LENGTH,
        )
    )  # fmt: skip
    model.initialise(0)
    loader = Loader(corpus(), ROWS, seed=0)
    lines: list[dict[str, Any]] = []
    with joined(Parallel()) as ranks:

        def objective(model: Any, batch: Batch) -> Loss:
            lines[-1]["rows"] += batch.tokens.tolist()
            return next_token(model, batch)

        def batches(step: int) -> list[Batch]:
            lines.append({"step": step + 1, "rows": []})
            return [loader.batch(step, ranks.rank, ranks.count)]

        def record(**values: Any) -> None:
            lines[-1] |= values

        settings = TrainSettings(
            arguments.steps, OptimizerSettings(arguments.rate, muon=True), save_seconds=1e9, log_every=1
        )
        trainer = Trainer(model, objective, batches, settings, record, arguments.folder / "train.pt", ranks)

        def check(trainer: Trainer) -> bool:
            if trainer.done_steps == arguments.until < arguments.steps:
                raise KeyboardInterrupt  # which saves
            return True

        with suppress(KeyboardInterrupt):
            trainer.run(check, arguments.until)
        name = f"{arguments.until}-{ranks.rank}.json"
        (arguments.folder / name).write_text(json.dumps(lines))


def launch(folder: Path, ranks: int, until: int, arguments: argparse.Namespace) -> None:
    """Start ``ranks`` processes of this script and wait for them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [
        sys.executable, __file__, "--folder", str(folder), "--until", str(until), "--steps", str(arguments.steps),
        "--rate", str(arguments.rate), "--dtype", arguments.dtype,
    ]  # fmt: skip
    environments = [
        {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **{name: str(value) for name, value in (common | {"RANK": rank}).items()},
        }
        for rank in range(ranks)
    ]
    running = [subprocess.Popen(command, env=environment) for environment in environments]
    if sum(process.wait() != 0 for process in running):
        raise SystemExit(f"{ranks} ranks did not end well")


def run(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The losses and a digest of the tokens of each step of one chain."""
    losses, digests = [], []
    for ranks, share in CHAINS[name]:
        until = round(arguments.steps * share)
        launch(folder, ranks, until, arguments)
        told = [json.loads((folder / f"{until}-{rank}.json").read_text()) for rank in range(ranks)]
        losses += [line["loss"] for line in told[0]]
        for step in zip(*told, strict=True):
            rows = [row for part in step for row in part["rows"]]
            digests.append(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
    return {"losses": losses, "digests": digests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="what passes compute in")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        train(arguments)
        return
    table = {}
    print(f"{'':12}{'last loss':>12}{'farthest':>12}{'same tokens':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(CHAINS):
            place = Path(folder) / str(number)
            place.mkdir()
            made = run(name, place, arguments)
            first = table["1 rank"] if table else made
            gaps = [abs(a - b) for a, b in zip(made["losses"], first["losses"], strict=True)]
            same = made["digests"] == first["digests"]
            table[name] = made | {"farthest": max(gaps), "same_tokens": same}
            print(f"{name:12}{made['losses'][-1]:12.5f}{max(gaps):12.2e}{'yes' if same else 'no':>14}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"settings": vars(arguments) | {"out": str(arguments.out)}, **table}))


if __name__ == "__main__":
    main()
