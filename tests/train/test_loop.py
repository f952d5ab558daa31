"""The training loop stops anywhere and goes on as if it had not."""

from __future__ import annotations

import importlib.util
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from minnow.data.loader import Batch
from minnow.errors import UserError
from minnow.train import loop
from minnow.train.loop import MAX_BAD_STEPS, Trainer
from minnow.train.optimizer import Optimizer

SCRIPT = Path(__file__).with_name("run_and_die.py")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_and_die", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = _script()


def losses(records: list[dict]) -> list[float]:
    return [line["loss"] for line in records]


@pytest.fixture
def straight(tmp_path: Path) -> tuple[str, list[float]]:
    """Digest and losses of a run that nothing stopped."""
    trainer, records = toy.make_trainer(tmp_path / "straight")
    trainer.run()
    return toy.digest(trainer), losses(records)


def test_training_learns(tmp_path: Path) -> None:
    trainer, records = toy.make_trainer(tmp_path, steps=40, batches=lambda step: toy.batches(0))
    trainer.run()
    assert losses(records)[-1] < 0.5 * losses(records)[0]
    assert [line["step"] for line in records] == list(range(1, 41))
    assert trainer.tokens == records[-1]["tokens"] == 40 * 4 * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_is_bit_identical(
    tmp_path: Path, stop: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "compute_dtype", lambda: dtype)
    straight, wanted = toy.make_trainer(tmp_path / "straight")
    straight.run()

    def stopping(step: int) -> list[Batch]:
        if step == stop:
            raise RuntimeError("power cut")
        return toy.batches(step)

    first, records = toy.make_trainer(tmp_path, batches=stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        first.run()
    second, more = toy.make_trainer(tmp_path)
    assert second.done_steps == stop and second.tokens == first.tokens
    second.run()
    assert losses(records) + losses(more) == losses(wanted)
    assert toy.digest(second) == toy.digest(straight)


def test_kill_9_and_rerun_gives_the_same_weights(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments], check=False, capture_output=True, text=True, timeout=120
        )

    killed = run(str(tmp_path), "5")
    assert killed.returncode == -signal.SIGKILL
    start, resumed = run(str(tmp_path)).stdout.split()
    trainer, _ = toy.make_trainer(tmp_path / "straight")
    trainer.run()
    assert start == "5" and resumed == toy.digest(trainer)


@pytest.mark.parametrize("place", ["between micro-batches", "in the update", "in a check"])
def test_ctrl_c_saves_a_state_that_resumes_exactly(
    tmp_path: Path, straight: tuple[str, list[float]], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT itself, wherever it comes; nothing was saved before it."""
    checks: list[int] = []

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    def interrupted(step: int) -> Iterator[Batch]:
        first, second = toy.batches(step)
        yield first
        if step == 4 and place == "between micro-batches":
            interrupt()
        yield second

    def check(trainer: Trainer) -> bool:
        if trainer.done_steps == 4 and place == "in a check" and 4 not in checks:
            checks.append(4)
            interrupt()
        checks.append(trainer.done_steps)
        return True

    plain = Optimizer._muon_step

    def half_way(self: Optimizer, *arguments: Any) -> None:
        if self.steps == 5 and place == "in the update":
            interrupt()
        plain(self, *arguments)

    monkeypatch.setattr(Optimizer, "_muon_step", half_way)
    trainer, records = toy.make_trainer(tmp_path, batches=interrupted, save_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(check, 4)
    assert trainer.done_steps == (5 if place == "in the update" else 4)
    monkeypatch.undo()
    resumed, more = toy.make_trainer(tmp_path)
    assert resumed.done_steps == trainer.done_steps
    resumed.run(check, 4)
    assert toy.digest(resumed) == straight[0]
    assert losses(records) + losses(more) == straight[1]
    assert checks == ([0, 4, 4, 8] if place == "in a check" else [0, 4, 8])


def test_the_same_trainer_goes_on_after_ctrl_c(tmp_path: Path, straight: tuple[str, list[float]]) -> None:
    """Gradients of the interrupted step do not leak into its repetition."""
    pending = [True]

    def interrupted(step: int) -> Iterator[Batch]:
        first, second = toy.batches(step)
        yield first
        if step == 3 and pending:
            pending.clear()
            raise KeyboardInterrupt
        yield second

    trainer, _ = toy.make_trainer(tmp_path, batches=interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer.run()
    assert toy.digest(trainer) == straight[0]


def test_signals_are_left_alone_outside_the_main_thread(tmp_path: Path, straight: tuple[str, list[float]]) -> None:
    trainer, _ = toy.make_trainer(tmp_path)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert toy.digest(trainer) == straight[0]


def test_a_check_that_says_stop_is_final(tmp_path: Path) -> None:
    trainer, _ = toy.make_trainer(tmp_path)
    trainer.run(lambda trainer: trainer.done_steps < 4, 2)
    assert trainer.done_steps == 4
    resumed, records = toy.make_trainer(tmp_path)
    resumed.run(lambda trainer: True, 2)
    assert resumed.done_steps == 4 and not records


def test_a_finished_run_resumes_with_its_numbers(tmp_path: Path) -> None:
    """Killed after the last save and before the stage was done: nothing is trained, nothing is nan."""
    trainer, _ = toy.make_trainer(tmp_path)
    trainer.run(lambda trainer: True)
    trainer.notes["seen"] = [{"step": 8, "rate": 0.25}]
    trainer.save()
    resumed, records = toy.make_trainer(tmp_path)
    resumed.run(lambda trainer: pytest.fail("this check was done"))
    assert not records and resumed.last_loss == trainer.last_loss and resumed.notes == trainer.notes
    assert (resumed.tokens, resumed.seconds) == (trainer.tokens, trainer.seconds)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-700])


def of_another_model(file: Path) -> None:
    state = torch.load(file)
    state["optimizer"]["masters"][0] = torch.zeros(3, 3)
    torch.save(state, file)


DAMAGE = {
    "cut short": cut_short,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not a state"),
    "another file": lambda file: torch.save({"step": 3}, file),
    "another model": of_another_model,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_clear_sentence(tmp_path: Path, damage: str) -> None:
    trainer, _ = toy.make_trainer(tmp_path)
    trainer.save()
    DAMAGE[damage](tmp_path / "train.pt")
    with pytest.raises(UserError, match="train.pt is damaged or of another model .*delete it") as caught:
        toy.make_trainer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = toy.make_trainer(tmp_path)
    trainer.save()
    before = (tmp_path / "train.pt").read_bytes()

    def full(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="free some space"):
        trainer.run()
    assert (tmp_path / "train.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["train.pt"]


def test_divergence_ends_in_a_sentence_with_the_last_sound_weights(tmp_path: Path) -> None:
    trainer, _ = toy.make_trainer(tmp_path, steps=50)
    objective = trainer.objective

    def diverging(model: Any, batch: Batch) -> Any:
        loss = objective(model, batch)
        if trainer.done_steps >= 3:
            loss.total = loss.total * math.inf
        return loss

    trainer.objective = diverging
    with pytest.raises(UserError, match="lower learning_rate"):
        trainer.run()
    assert trainer.done_steps == 3 + MAX_BAD_STEPS
    sound, _ = toy.make_trainer(tmp_path / "sound", steps=50)
    while sound.done_steps < 3:
        sound._step()
    assert toy.digest(trainer) == toy.digest(sound)


def test_micro_batches_give_the_update_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows and one, or four at once: the same losses and weights but for the order of float32 sums."""
    monkeypatch.setattr(loop, "compute_dtype", lambda: torch.float32)

    def joined(step: int) -> list[Batch]:
        parts = toy.batches(step)
        fields = ("tokens", "targets", "documents")
        return [Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))]

    parts, records = toy.make_trainer(tmp_path / "parts")
    parts.run()
    whole, wanted = toy.make_trainer(tmp_path / "whole", batches=joined)
    whole.run()
    assert losses(records) == pytest.approx(losses(wanted), rel=1e-4)
    for one, other in zip(parts.optimizer.masters, whole.optimizer.masters, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-2)


def test_a_step_without_signal_changes_no_weight(tmp_path: Path) -> None:
    trainer, records = toy.make_trainer(tmp_path, batches=lambda step: [] if step % 2 else toy.batches(step))
    trainer._step()
    before = toy.digest(trainer)
    trainer._step()
    assert toy.digest(trainer) == before and trainer.done_steps == 2
    assert [line["step"] for line in records] == [1]


def test_records_hold_what_the_report_reads(tmp_path: Path) -> None:
    trainer, records = toy.make_trainer(tmp_path, steps=25, log_every=10)
    trainer.run()
    assert [line["step"] for line in records] == [1, 10, 20, 25]
    assert set(records[0]) == {
        "step", "tokens", "loss", "learning_rate", "gradient_norm", "seconds", "tokens_per_second",
    }  # fmt: skip
    assert records[1]["learning_rate"] == pytest.approx(1e-2)
