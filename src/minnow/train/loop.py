"""The training loop: every stage is this loop with another objective and another batch source."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minnow.errors import UserError
from minnow.files import whole_file
from minnow.model.language_model import LanguageModel
from minnow.train.objectives import Objective
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.precision import compute_dtype
from minnow.train.schedule import SCHEDULES

MAX_BAD_STEPS = 10
"""Steps in a row with a non-finite gradient before training gives up."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast.

    Attributes:
        warmup, decay: shares of ``steps`` (see :mod:`minnow.train.schedule`).
        save_seconds: wall time between saves of the training state.
    """

    steps: int
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: str = "wsd"
    warmup: float = 0.02
    decay: float = 0.4
    save_seconds: float = 60.0
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"there is no schedule {self.schedule!r}; use one of {', '.join(SCHEDULES)}")
        if self.steps < 1 or self.log_every < 1:
            raise UserError(f"steps is {self.steps} and log_every {self.log_every}; training needs at least 1 of each")


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done: an update is made and counted, or neither."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler or signal.SIG_DFL)
    for arrived in held:
        signal.raise_signal(arrived)


class Trainer:
    """A model, its optimiser, and the step it has reached; saves and resumes exactly.

    Args:
        batches: the micro-batches of a step; a pure function of the step, so a resumed run reads the same ones.
        record: called with the numbers of a logged step.
        state_file: where the training state lives; when it exists training goes on from there.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: Objective,
        batches: Callable[[int], Sequence[Any]],
        settings: TrainSettings,
        record: Callable[..., None],
        state_file: Path,
    ) -> None:
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.record, self.state_file = record, state_file
        self.optimizer = Optimizer(model, settings.optimizer, compute_dtype(), model.matrices())
        self.done_steps, self.tokens, self.seconds = 0, 0, 0.0
        self.last_loss = math.nan
        self.notes: dict[str, Any] = {}
        self._checked, self._stopped = -1, False
        self._bad_steps = 0
        self._saved_at = time.monotonic()
        if state_file.exists():
            self._resume()

    def run(
        self,
        check: Callable[[Trainer], bool] | None = None,
        check_every: int = 0,
        progress: Callable[[int, str], None] = lambda advanced, note: None,
    ) -> None:
        """Train to the last step.

        Args:
            check: called before the first step, after every ``check_every`` steps and at the end; False stops early.
                A resumed run makes up for a check that was due and did not finish.
            progress: called with the steps just done and a short note.

        Raises:
            KeyboardInterrupt: passed on after the state is saved.
            UserError: the gradient stays non-finite, or the state cannot be saved.
        """
        total = self.settings.steps
        gc.collect()
        gc.freeze()  # the model and data are permanent: the collector need not walk them every few steps
        try:
            while True:
                step = self.done_steps
                due = step in (0, total) or (check_every and step % check_every == 0)
                if check and due and self._checked != step:
                    self._stopped = not check(self)
                    self._checked = step
                    self.save()
                elif time.monotonic() - self._saved_at > self.settings.save_seconds:
                    self.save()
                if self._stopped or step >= total:
                    break
                self._step()
                progress(1, f"loss {self.last_loss:.3f}")
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            gc.unfreeze()

    def _step(self) -> None:
        started = time.perf_counter()
        step, settings = self.done_steps, self.settings
        total, weight, tokens = 0.0, 0.0, 0
        metrics: dict[str, float] = {}
        self.optimizer.discard()  # an interrupted step may have left some
        for batch in self.batches(step):
            loss = self.objective(self.model, batch)
            loss.total.backward()
            self.optimizer.collect()
            total, weight = total + float(loss.total.detach()), weight + loss.weight
            tokens += int((batch.documents > 0).sum())
            for name, value in loss.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        multiplier = SCHEDULES[settings.schedule](step, settings.steps, settings.warmup, settings.decay)
        rate = settings.optimizer.learning_rate * multiplier
        with _all_or_nothing():
            # Without weight there is nothing to learn, for instance where all rollouts earned the same.
            norm = self.optimizer.step(rate, weight) if weight else 0.0
            self.done_steps += 1
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self.tokens += tokens
            if not weight:
                return
            self.last_loss = total / weight
            self._guard(norm)
            if self.done_steps % settings.log_every == 0 or self.done_steps in (1, settings.steps):
                self.record(
                    step=self.done_steps,
                    tokens=self.tokens,
                    loss=self.last_loss,
                    learning_rate=rate,
                    gradient_norm=norm,
                    seconds=self.seconds,
                    tokens_per_second=tokens / elapsed,
                    **{name: value / weight for name, value in metrics.items()},
                )

    def _guard(self, norm: float) -> None:
        """Count updates skipped for a non-finite gradient; a run of them is not bad luck but divergence."""
        self._bad_steps = 0 if math.isfinite(norm) else self._bad_steps + 1
        if self._bad_steps >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row (step {self.done_steps}); "
                "lower learning_rate and run again"
            )

    def save(self) -> None:
        """Write the training state; it appears whole or not at all."""
        state = {
            "step": self.done_steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "last_loss": self.last_loss,
            "checked": self._checked,
            "stopped": self._stopped,
            "notes": self.notes,
            "optimizer": self.optimizer.state(),
        }
        with whole_file(self.state_file) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch reports a failed write as RuntimeError
                raise OSError(str(error)) from error
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        try:
            state = torch.load(self.state_file, weights_only=True)
            self.optimizer.restore(state["optimizer"])
            self.done_steps, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.last_loss, self.notes = state["last_loss"], state["notes"]
            self._checked, self._stopped = state["checked"], state["stopped"]
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{self.state_file} is damaged or of another model ({reason}); delete it to train this stage from its "
                "beginning"
            ) from error
