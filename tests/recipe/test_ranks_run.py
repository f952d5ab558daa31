"""A recipe under torchrun: two ranks, one of which is killed; torchrun starts them again and the run ends as on one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in Linux's /proc"),
]

RECIPE: dict[str, Any] = {
    "name": "ranks", "seed": 1, "threads": 1, "data": {"kind": "pocket", "entities": 300},
    "model": {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "layers": ["conv", "attn"], "heads": 2,
        "kv_heads": 1, "head_dim": 32,
    },
    "stages": {
        "tokenizer": {"documents": 150},
        "pretrain": {
            "documents": 150, "row_length": 64, "rows": 8, "held_out_rows": 8, "measure_every": 10,
            "training": {
                "steps": 20, "log_every": 1, "save_seconds": 0, "checkpoints": {"every": 10, "keep": 2, "average": 2},
                "optimizer": {"learning_rate": 1e-2, "muon": True, "ema": 0.5},
            },
        },
        "sft": {"examples": 20, "row_length": 64, "rows": 8, "training": {"steps": 3, "log_every": 1}},
    },
}  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rank_process(launcher: int, rank: int) -> int:
    """The process that ``launcher`` has started as ``rank``."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rpartition(")")[2].split()
        environment = (status.parent / "environ").read_bytes().split(b"\0") if int(fields[1]) == launcher else []
        if f"RANK={rank}".encode() in environment:
            return int(status.parent.name)
    raise AssertionError(f"{launcher} has no rank {rank}")


def test_a_killed_rank_is_started_again_and_the_run_ends_as_on_one(tmp_path: Path) -> None:
    (tmp_path / "ranks.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    minnow = ["-m", "minnow", "run", "ranks.yaml", "--run-folder"]
    two, one = tmp_path / "two", tmp_path / "one"
    with (tmp_path / "err").open("w") as errors:
        launched = subprocess.Popen(
            [*torchrun, "--max-restarts", "1", *minnow, two], cwd=tmp_path, env=environment, stderr=errors
        )
        while launched.poll() is None and len(lines(two / "pretrain")) < 5:
            time.sleep(0.05)
        os.kill(rank_process(launched.pid, 1), signal.SIGKILL)
        assert launched.wait(timeout=500) == 0, (tmp_path / "err").read_text()
    said = (tmp_path / "err").read_text()
    assert "minnow: rank 1 (process " in said and "pretrain: continues where it stopped" in said
    alone = [sys.executable, *minnow, one]
    subprocess.run(alone, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=500)
    for stage, steps in (("pretrain", 20), ("sft", 3)):
        many, few = lines(two / stage), lines(one / stage)
        assert [line["step"] for line in many] == [line["step"] for line in few]
        losses = [[line["loss"] for line in run if "loss" in line] for run in (many, few)]
        assert len(losses[0]) == steps and losses[0] == pytest.approx(losses[1], rel=0.02)
        ours, theirs = (load_file(run / stage / "checkpoint/model.safetensors") for run in (two, one))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=0.05, rtol=0.1)
    assert sorted(path.name for path in (two / "pretrain/checkpoints").iterdir()) == ["step-0000010", "step-0000020"]
    assert not (two / "pretrain/state").exists()
