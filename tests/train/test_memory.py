"""The micro-batch that is planned: what fits, what is said where nothing does, and the same result in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minnow.model.config import ATTENTION, CONV
from minnow.model.families.lfm2 import lfm2_config
from minnow.train import memory, vocabulary
from minnow.train.memory import free_memory, plan_micro_batch, training_memory

CONFIG = lfm2_config(512, 64, 160, (CONV, ATTENTION, CONV), num_heads=4, num_kv_heads=2, head_dim=16)


def needed(rows: int) -> int:
    held = training_memory(CONFIG, rows, 128, True)
    return held["peak"] - held["masters"] - held["weights"] - held["optimiser"]


def test_all_rows_go_at_once_where_they_fit() -> None:
    plan = plan_micro_batch(CONFIG, 32, 128, True, free=2 * needed(32))
    assert (plan.rows, plan.needed, plan.fits) == (32, needed(32), True)


@pytest.mark.parametrize("rows", [32, 24, 7])
def test_rows_are_halved_until_the_step_fits(rows: int) -> None:
    sums = training_memory(CONFIG, 1, 128, True)["masters"]
    for goal in {-(-rows // 2), -(-rows // 4)}:
        plan = plan_micro_batch(CONFIG, rows, 128, True, free=round((needed(goal) + sums) / 0.9) + 1)
        assert (plan.rows, plan.fits) == (goal, True)
        assert plan.needed == needed(goal) + sums, "gradients of parts are added in float32"


def test_more_rows_fit_where_activations_are_computed_again() -> None:
    kept, again = (training_memory(CONFIG, 32, 128, True, checkpointed=way) for way in (False, True))
    assert {name for name in kept if kept[name] != again[name]} == {"activations", "peak"}
    free = round(needed(32) / 0.9) - 1
    assert plan_micro_batch(CONFIG, 32, 128, True, free).rows == 16
    assert plan_micro_batch(CONFIG, 32, 128, True, free, checkpointed=True).rows == 32


def test_what_does_not_fit_at_all_goes_row_by_row() -> None:
    plan = plan_micro_batch(CONFIG, 32, 128, True, free=1000)
    assert (plan.rows, plan.fits) == (1, False)


def test_the_machine_says_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    system = free_memory(torch.device("cpu"))
    assert system > 2**20
    for name, text in (
        ("memory.max", "5000000\n"), ("memory.current", "3000000\n"), ("memory.stat", "anon 7\ninactive_file 500000\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    assert free_memory(torch.device("cpu")) == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 2_500_000


def test_a_gpu_takes_longer_chunks_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    on_gpu = vocabulary.positions_at_once(65_536, torch.device("cuda"))
    assert vocabulary.positions_at_once(65_536, torch.device("cpu")) == 64
    assert 12 * 65_536 * on_gpu == pytest.approx(80 * 2**30 / 64, rel=1e-3)
