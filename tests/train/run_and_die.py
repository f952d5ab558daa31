"""Train the toy of test_loop.py, and be killed while doing so.

Run as a script: ``run_and_die.py FOLDER STEPS KILLS``. Forks a process that trains, kills it (SIGKILL) after a few of its
steps, forks another that goes on, and so KILLS times; the last one trains to the end. Prints a line ``step loss`` for
every step that any of them made, the loss in hexadecimal, a line ``killed`` for each kill, and the digest at the end.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minnow.data.loader import Batch
from minnow.model.backbone import Backbone
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.model.families.lfm2 import lfm2_config
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "layer_types": ("conv", "full_attention"),
    "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "max_positions": 64,
}  # fmt: skip
CONFIG = lfm2_config(**SHAPE)
MODELS = {
    "dense": CONFIG,
    "experts": replace(
        CONFIG,
        family="lfm2_moe",
        layers=(
            CONFIG.layers[0],
            *(replace(layer, feed_forward=Experts(experts=4, active=2, width=16)) for layer in CONFIG.layers),
        ),
    ),
    "mixed": ModelConfig(
        "minnow",
        64,
        32,
        tuple(
            LayerConfig(mixer, Experts(experts=4, active=2, width=16) if place == 2 else Dense(32))
            for place, mixer in enumerate(
                [
                    ShortConv(),
                    Attention(2, 1, 16, Rope(1e4)),
                    Attention(2, 2, 16, Rope(1e4), window=6),
                    GatedDelta(key_heads=1, value_heads=2, key_dim=8, value_dim=16),
                    GatedLinear(heads=2, key_dim=8, value_dim=16),
                ]
            )
        ),
        max_positions=64,
    ),
}
"""By name; ``experts`` has a dense layer and two with experts, ``mixed`` one of every mixer."""


def batches(step: int) -> list[Batch]:
    """Two micro-batches of unequal size, a pure function of the step."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for rows in (3, 1):
        tokens = torch.randint(14, 64, (rows, 17), generator=generator)
        made.append(Batch(tokens[:, :-1], tokens[:, 1:], torch.ones_like(tokens[:, 1:])))
    return made


def make_trainer(
    folder: Path, steps: int = 8, batches: Any = batches, ranks: Any = None, **values: Any
) -> tuple[Trainer, list[dict]]:
    """A trainer and the list its records go to."""
    model = Backbone(CONFIG)
    model.initialise(0)
    records: list[dict] = []
    chosen = {"optimizer": OptimizerSettings(learning_rate=1e-2), "save_seconds": 0.0, "log_every": 1} | values
    settings = TrainSettings(steps=steps, **chosen)

    def record(**line: Any) -> None:
        records.append(line)

    return Trainer(model, next_token, batches, settings, record, folder / "train.pt", ranks), records


def digest(trainer: Trainer) -> str:
    """Of the masters and of the moments."""
    state = trainer.optimizer.state()
    tensors = [tensor for kind in ("masters", "first", "second") for tensor in state[kind].values()]
    tensors += trainer.model.state_dict().values()
    return hashlib.sha256(b"".join(t.detach().float().numpy().tobytes() for t in tensors)).hexdigest()


def train(folder: Path, steps: int) -> None:
    """Go on with the run in ``folder``, telling every step."""
    trainer, _ = make_trainer(folder, steps, save_seconds=0.02)

    def tell(step: int, loss: float, **line: Any) -> None:
        print(step, loss.hex(), flush=True)

    trainer.record = tell
    trainer.run()
    trainer.save()
    print(digest(trainer), flush=True)


def main() -> None:
    folder, steps, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(0)
    for life in range(kills + 1):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 1)
            train(folder, steps)
            os._exit(0)
        os.close(writing)
        left = draw.randint(1, 6)
        with os.fdopen(reading) as lines:
            for line in lines:
                print(line, end="")
                left -= 1
                if not left and life < kills:
                    time.sleep(draw.uniform(0, 0.01))  # wherever that is: in a pass, in the update, in a save
                    os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print("killed", flush=True)


if __name__ == "__main__":
    main()
