"""Train the toy of test_loop.py; with a step as second argument, die there as kill -9 would.

Run as a script: ``run_and_die.py FOLDER [STEP]``. Prints the weights' digest when the last step is done.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from minnow.data.loader import Batch
from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings

CONFIG = lfm2_config(
    vocab_size=64, hidden_size=32, intermediate_size=32, layer_types=("conv", "full_attention"), num_heads=2,
    num_kv_heads=1, head_dim=16, max_positions=64,
)  # fmt: skip


def batches(step: int) -> list[Batch]:
    """Two micro-batches of unequal size, a pure function of the step."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for rows in (3, 1):
        tokens = torch.randint(14, 64, (rows, 17), generator=generator)
        made.append(Batch(tokens[:, :-1], tokens[:, 1:], torch.ones_like(tokens[:, 1:])))
    return made


def make_trainer(folder: Path, steps: int = 8, batches: Any = batches, **values: Any) -> tuple[Trainer, list[dict]]:
    """A trainer and the list its records go to."""
    model = Backbone(CONFIG)
    model.initialise(0)
    records: list[dict] = []
    chosen = {"optimizer": OptimizerSettings(learning_rate=1e-2), "save_seconds": 0.0, "log_every": 1} | values
    settings = TrainSettings(steps=steps, **chosen)

    def record(**line: Any) -> None:
        records.append(line)

    return Trainer(model, next_token, batches, settings, record, folder / "train.pt"), records


def digest(trainer: Trainer) -> str:
    """Of the masters and of the moments."""
    state = trainer.optimizer.state()
    tensors = [*state["masters"], *state["first"], *state["second"].values(), *trainer.model.state_dict().values()]
    return hashlib.sha256(b"".join(t.detach().float().numpy().tobytes() for t in tensors)).hexdigest()


def main() -> None:
    folder, last = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1

    def dying(step: int) -> list[Batch]:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return batches(step)

    trainer, _ = make_trainer(folder, batches=dying)
    print(trainer.done_steps)
    trainer.run()
    print(digest(trainer))


if __name__ == "__main__":
    main()
