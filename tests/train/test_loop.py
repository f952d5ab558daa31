"""The training loop stops anywhere and goes on as if it had not."""

from __future__ import annotations

import importlib.util
import math
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from minnow.data.loader import Batch
from minnow.errors import UserError
from minnow.train import guard, loop, state_file
from minnow.train.batches import Prefetch
from minnow.train.loop import MAX_BAD_STEPS, Trainer
from minnow.train.milestones import CheckpointSettings
from minnow.train.objectives import split_rows
from minnow.train.optimizer import Optimizer, OptimizerSettings

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


def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    """Every step that any of the killed processes made has the loss that the uninterrupted run has."""
    command = [sys.executable, SCRIPT, tmp_path, "200", "20"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split("\n")
    trainer, records = toy.make_trainer(tmp_path / "straight", steps=200)
    trainer.run()
    wanted = {str(line["step"]): line["loss"].hex() for line in records}
    made = [line.split() for line in told if " " in line]
    assert told.count("killed") == 20
    assert {step for step, _ in made} == set(wanted)
    assert [(step, loss) for step, loss in made if loss != wanted[step]] == []
    assert told[-2] == toy.digest(trainer)


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
    state["optimizer"]["masters"]["embedding"] = torch.zeros(3, 3)
    torch.save(state, file)


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "one bit": one_bit,
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


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 4 KiB: the system itself refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("aside", [False, True])
def test_a_full_disk_keeps_the_earlier_state(tmp_path: Path, aside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "SLOW_SECONDS", 0.0 if aside else 1e9)
    trainer, _ = toy.make_trainer(tmp_path)
    trainer.save()
    before = (tmp_path / "train.pt").read_bytes()
    with full_disk(), pytest.raises(UserError, match="train.pt: .*free some space") as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "train.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["train.pt"]


def test_a_state_written_aside_is_of_the_step_that_asked_for_it(
    tmp_path: Path, straight: tuple[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is held up until the step after has changed every weight."""
    monkeypatch.setattr(state_file, "SLOW_SECONDS", 0.0)
    write, moved = state_file.write_file, threading.Event()

    def late(path: Path, state: dict[str, Any]) -> None:
        moved.wait(None if threading.current_thread() is not threading.main_thread() else 0)
        write(path, state)

    monkeypatch.setattr(state_file, "write_file", late)
    trainer, _ = toy.make_trainer(tmp_path)
    trainer._step()
    trainer.save()
    trainer._step()
    trainer.save(wait=False)
    trainer._step()
    moved.set()
    trainer._file.finish()
    resumed, _ = toy.make_trainer(tmp_path)
    assert resumed.done_steps == 2
    resumed.run()
    assert toy.digest(resumed) == straight[0]


def test_training_goes_on_while_a_disk_takes_its_time(
    tmp_path: Path, straight: tuple[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save is due at every step, and the second is not through before the last step but two."""
    monkeypatch.setattr(state_file, "SLOW_SECONDS", 0.0)
    write, reached, kept = state_file.write_file, threading.Event(), []

    def slow(path: Path, state: dict[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert reached.wait(60)
        kept.append(state["step"])
        write(path, state)

    monkeypatch.setattr(state_file, "write_file", slow)
    trainer, _ = toy.make_trainer(tmp_path, save_seconds=0.0)
    trainer.run(progress=lambda advanced, note: reached.set() if trainer.done_steps == 6 else None)
    assert kept[:2] == [0, 1] and kept[2] >= 6
    assert toy.digest(trainer) == straight[0]


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


def spiking(trainer: Trainer, bad: Callable[[int], bool]) -> None:
    """Make the loss of some steps, by their number, fifty times what it is."""
    objective = trainer.objective

    def jumping(model: Any, batch: Batch) -> Any:
        loss = objective(model, batch)
        if bad(trainer.done_steps + trainer.skipped_batches):
            loss.total = loss.total * 50
        return loss

    trainer.objective = jumping


def test_a_loss_spike_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the step's batches had been empty, but for the optimiser's rates."""
    monkeypatch.setattr(guard, "WINDOW", 6)
    trainer, records = toy.make_trainer(tmp_path, steps=12)
    spiking(trainer, lambda step: step in (2, 8))
    trainer.run()
    assert [line["step"] for line in records if "skipped_loss" in line] == [9]  # step 2: no level was known yet
    assert "step 9 left out" in capsys.readouterr().err
    other, _ = toy.make_trainer(tmp_path / "other", steps=12, batches=lambda s: [] if s == 8 else toy.batches(s))
    spiking(other, lambda step: step == 2)
    other.run()
    assert toy.digest(trainer) == toy.digest(other)


def test_spikes_in_a_row_go_back_to_the_saved_state_and_on_with_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "WINDOW", 6)
    read: list[int] = []

    def batches(step: int) -> list[Batch]:
        read.append(step)
        return toy.batches(step)

    trainer, records = toy.make_trainer(tmp_path, steps=20, batches=batches)
    spiking(trainer, lambda step: 10 <= step < 15)
    trainer.run()
    assert read == [*range(15), *range(15, 25)] and trainer.done_steps == 20
    back = next(line for line in records if "skipped_batches" in line)
    assert (back["step"], back["skipped_batches"]) == (10, 5)
    assert "back to step 10" in capsys.readouterr().err
    other, _ = toy.make_trainer(tmp_path / "other", steps=20, batches=lambda s: toy.batches(s if s < 10 else s + 5))
    other.run()
    assert toy.digest(trainer) == toy.digest(other)
    trainer.save()
    resumed, _ = toy.make_trainer(tmp_path, steps=20)
    assert resumed.skipped_batches == 5


def test_a_loss_that_never_comes_down_again_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WINDOW", 6)
    trainer, _ = toy.make_trainer(tmp_path, steps=99)
    spiking(trainer, lambda step: step >= 10)
    with pytest.raises(UserError, match="after 3 returns to an earlier state; lower learning_rate"):
        trainer.run()
    sound, _ = toy.make_trainer(tmp_path, steps=99)
    assert sound.done_steps == 10


def test_the_guard_leaves_a_falling_and_a_noisy_loss_alone() -> None:
    draw = random.Random(0)
    judge = guard.SpikeGuard(15.0)
    assert all(judge.passes(2.0 + 5.0 * 0.99**step + draw.gauss(0.0, 0.1)) for step in range(2000))
    assert not judge.passes(4.0) and judge.spikes == 1
    assert judge.passes(2.1) and judge.spikes == 0
    flat = guard.SpikeGuard(15.0)
    assert all(flat.passes(2.0) for _ in range(200)) and flat.passes(2.1) and not flat.passes(2.2)
    learnt = guard.SpikeGuard(15.0)
    assert all(learnt.passes(0.002) for _ in range(200)) and learnt.passes(0.1) and not learnt.passes(0.2)


@pytest.mark.parametrize("held", ["torch.OutOfMemoryError", "the CPU allocator's error"])
def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, held: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of the backward pass; the result is that of the smaller batches from the start."""
    sizes: list[int] = []

    def crowded(trainer: Trainer) -> None:
        objective = trainer.objective

        def limited(model: Any, batch: Batch) -> Any:
            sizes.append(len(batch.tokens))
            loss = objective(model, batch)
            if len(batch.tokens) > 2:
                loss.total.backward(retain_graph=True)
                if held.startswith("torch"):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                torch.empty(1 << 60)
            return loss

        trainer.objective = limited

    def big(step: int) -> list[Batch]:
        one, other = toy.batches(step), toy.batches(step + 100)
        fields = ("tokens", "targets", "documents")
        return [Batch(*(torch.cat([getattr(part, name) for part in [*one, *other]]) for name in fields))]

    trainer, records = toy.make_trainer(tmp_path, batches=big)
    crowded(trainer)
    trainer.run()
    assert sizes == [8, 4, 2, 2, 2, 2] + [2, 2, 2, 2] * 7
    assert "at most 2 rows" in capsys.readouterr().err
    small, wanted = toy.make_trainer(tmp_path / "small", batches=lambda step: split_rows(big(step)[0], 2))
    small.run()
    assert losses(records) == losses(wanted) and toy.digest(trainer) == toy.digest(small)
    resumed, _ = toy.make_trainer(tmp_path, batches=big)
    sizes.clear()
    crowded(resumed)
    resumed.settings = replace(resumed.settings, steps=9)
    resumed.run()
    assert max(sizes) == 2


def test_a_planned_limit_cuts_micro_batches_and_a_begun_run_keeps_to_its_own(tmp_path: Path) -> None:
    def three_rows(step: int) -> list[Batch]:
        return toy.batches(step)[:1]

    trainer, records = toy.make_trainer(tmp_path, batches=three_rows)
    trainer.limit(16)
    trainer.run()
    trainer.save()
    small, wanted = toy.make_trainer(tmp_path / "small", batches=lambda step: split_rows(three_rows(step)[0], 1))
    small.run()
    assert losses(records) == losses(wanted) and toy.digest(trainer) == toy.digest(small)
    resumed, _ = toy.make_trainer(tmp_path, steps=9, batches=three_rows)
    resumed.limit(1000)
    objective, sizes = resumed.objective, []
    resumed.objective = lambda model, batch: (sizes.append(len(batch.tokens)), objective(model, batch))[1]
    resumed.run()
    assert sizes == [1, 1, 1]


def test_a_row_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    trainer, _ = toy.make_trainer(tmp_path)

    def full(model: Any, batch: Batch) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.objective = full
    with pytest.raises(UserError, match="not enough for 1 row of 16 tokens"):
        trainer.run()


def test_prefetched_batches_are_those_of_their_step() -> None:
    """Also after a jump, and an error comes out at its own step."""
    threads: set[str] = set()

    def made(step: int) -> list[int]:
        threads.add(threading.current_thread().name)
        if step == 7:
            raise UserError("the source ran dry")
        return [step]

    source = Prefetch(made)
    assert [source(step) for step in (0, 1, 2, 5, 6, 3)] == [[0], [1], [2], [5], [6], [3]]
    with pytest.raises(UserError, match="ran dry"):
        source(7)
    assert source(8) == [8]
    assert len(threads) == 1 and threading.current_thread().name not in threads


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
        "step", "tokens", "loss", "learning_rate", "gradient_norm", "seconds", "saving_seconds",
            "tokens_per_second",
    }  # fmt: skip
    assert records[1]["learning_rate"] == pytest.approx(1e-2)


def test_the_loop_writes_those_that_are_due_and_a_resumed_run_none_twice(tmp_path: Path) -> None:
    written: list[int] = []
    trainer, _ = toy.make_trainer(tmp_path, checkpoints=CheckpointSettings(every=3))
    trainer.run(checkpoint=written.append)
    trainer.save()
    resumed, _ = toy.make_trainer(tmp_path, steps=9, checkpoints=CheckpointSettings(every=3))
    resumed.run(checkpoint=written.append)
    assert written == [3, 6, 9]


def test_the_moving_average_follows_the_weights(tmp_path: Path) -> None:
    """Against the definition in float64; the masters are those of a run without it, and a resume goes on with it."""
    settings = OptimizerSettings(learning_rate=1e-2, ema=0.8)
    plain, _ = toy.make_trainer(tmp_path / "plain", optimizer=replace(settings, ema=0.0))
    trainer, _ = toy.make_trainer(tmp_path / "ema", optimizer=settings)
    wanted = [master.double() for master in plain.optimizer.masters]
    for _ in range(8):
        plain._step()
        wanted = [0.8 * w + 0.2 * m.double() for w, m in zip(wanted, plain.optimizer.masters, strict=True)]
    for _ in range(4):
        trainer._step()
    trainer.save()
    resumed, _ = toy.make_trainer(tmp_path / "ema", optimizer=settings)
    for _ in range(4):
        resumed._step()
    for mine, theirs in zip(resumed.optimizer.averaged().values(), wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-6, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(resumed.optimizer.masters, plain.optimizer.masters, strict=True))
    assert not torch.equal(resumed.optimizer.averaged()["embedding"], resumed.optimizer.weights()["embedding"])
    assert torch.equal(plain.optimizer.averaged()["embedding"], plain.optimizer.weights()["embedding"])
