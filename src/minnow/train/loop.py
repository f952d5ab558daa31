"""The training loop: every stage is this loop with another objective and another batch source."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import read_json, write_json
from minnow.model.language_model import LanguageModel
from minnow.progress import say
from minnow.train.experts import ExpertLoads, ExpertSettings
from minnow.train.guard import MAX_SPIKES, SpikeGuard
from minnow.train.lora import LoraOptimizer, LoraSettings
from minnow.train.milestones import CheckpointSettings
from minnow.train.objectives import Objective, split_rows
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.pace import Pace
from minnow.train.precision import compute_dtype, out_of_memory
from minnow.train.quantised import BlockType, QuantisedOptimizer
from minnow.train.ranks import Ranks
from minnow.train.schedule import DECAY_SHAPES, SCHEDULES, DecayShape, Schedule

MAX_BAD_STEPS = 10
"""Steps in a row with a non-finite gradient before training gives up."""

MAX_ROLLBACKS = 3
"""Returns to the last good state before training gives up."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast.

    Attributes:
        warmup, decay: shares of ``steps`` (see :mod:`minnow.train.schedule`).
        decay_shape: of ``wsd``'s decay: linear, cosine, 1-sqrt or exponential.
        spike: a step whose loss lies so many median absolute deviations above the recent median is left out; 0 for
            objectives whose loss has no level (see :mod:`minnow.train.guard`).
        lora: train a low-rank adapter and leave the weights as they are.
        quantised: train the weights as a file of this type rounds them.
        experts: how a mixture's experts are kept in use.
        save_seconds: wall time between saves of the training state.
    """

    steps: int
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = "wsd"
    warmup: float = 0.02
    decay: float = 0.4
    decay_shape: DecayShape = "linear"
    spike: float = 15.0
    lora: LoraSettings | None = None
    quantised: BlockType | None = None
    experts: ExpertSettings = field(default_factory=ExpertSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    save_seconds: float = 60.0
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"there is no schedule {self.schedule!r}; use one of {', '.join(SCHEDULES)}")
        if self.decay_shape not in DECAY_SHAPES:
            raise UserError(f"there is no decay_shape {self.decay_shape!r}; use one of {', '.join(DECAY_SHAPES)}")
        if self.steps < 1 or self.log_every < 1:
            raise UserError(f"steps is {self.steps} and log_every {self.log_every}; training needs at least 1 of each")
        if self.spike < 0:
            raise UserError(f"spike is {self.spike:g}; use a number of deviations above 0, or 0 to let every loss pass")
        if self.lora and self.checkpoints.average:
            raise UserError("an adapter is not averaged over checkpoints; leave out lora or checkpoints.average")
        if self.quantised and (self.lora or self.checkpoints.average):
            raise UserError(
                "rounded weights are neither added to nor averaged; leave out quantised, or lora and checkpoints.average"
            )


@dataclass
class _Sums:
    """What a step's micro-batches add up to."""

    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


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
        batches: the micro-batches of a step, of several ranks this one's rows; a pure function of the step, so a
            resumed run reads the same ones.
        record: called with the numbers of a logged step.
        state_file: where the training state lives; when it exists training goes on from there.
        ranks: the processes that train together; each makes the same trainer and calls the same methods.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: Objective,
        batches: Callable[[int], Sequence[Any]],
        settings: TrainSettings,
        record: Callable[..., None],
        state_file: Path,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.record, self.state_file, self.ranks = record, state_file, ranks or Ranks()
        if (settings.lora or settings.quantised) and self.ranks.count > 1:
            raise UserError(
                "low-rank adapters and rounded weights train on one rank; start this recipe without torchrun, or leave "
                "lora and quantised out"
            )
        # An adapter leaves the rest of the model as it is.
        self.loads = ExpertLoads(model, replace(settings.experts, balance=0.0) if settings.lora else settings.experts)
        self.ranks.spread(model, compute_dtype())
        self.optimizer: Optimizer | LoraOptimizer
        if settings.lora:
            self.optimizer = LoraOptimizer(model, settings.optimizer, settings.lora, compute_dtype())
        elif settings.quantised:
            self.optimizer = QuantisedOptimizer(model, settings.optimizer, compute_dtype(), settings.quantised)
        else:
            self.optimizer = Optimizer(model, settings.optimizer, compute_dtype(), model.matrices())
        self.done_steps, self.tokens, self.seconds = 0, 0, 0.0
        self.saving_seconds = 0.0
        """That training has stood still for saves, in this life."""
        self._pace = Pace()
        self.last_loss = math.nan
        self.notes: dict[str, Any] = {}
        self.skipped_batches = 0
        """Steps' worth of data that a return to an earlier state has passed over."""
        # In a micro-batch, where a larger one does not fit the memory; in the file where that has stopped many ranks.
        self._smaller = state_file.with_name("micro-batch.json")
        self._most_tokens: int | None = read_json(self._smaller) if self._smaller.exists() else None
        self._checked, self._written, self._stopped = -1, -1, False
        self._bad_steps, self._rollbacks = 0, 0
        self._guard = SpikeGuard(settings.spike)
        self._file = self.ranks.state(state_file)
        self._saved_at = time.monotonic()
        self.resumed = self._file.newest() is not None
        if self.resumed:
            self._resume()

    def run(
        self,
        check: Callable[[Trainer], bool] | None = None,
        check_every: int = 0,
        checkpoint: Callable[[int], None] | None = None,
        progress: Callable[[int, str], None] = lambda advanced, note: None,
    ) -> None:
        """Train to the last step.

        Args:
            check: called before the first step, after every ``check_every`` steps and at the end; False stops early.
                A resumed run makes up for a check that was due and did not finish.
            checkpoint: writes a checkpoint for others than this trainer; called with the steps that
                ``settings.checkpoints`` names.
            progress: called with the steps just done (below 0 after a return to an earlier state) and a short note.

        Raises:
            KeyboardInterrupt: passed on after the state is saved.
            UserError: the loss or the gradient stays bad, the memory is not enough for one row, or the state cannot
                be saved.
        """
        total = self.settings.steps
        with self._stoppable():
            while True:
                waited = time.monotonic() - self._saved_at
                overdue = self.ranks.agree(waited > self.settings.save_seconds and not self._file.writing)
                step = self.done_steps
                if checkpoint and self.settings.checkpoints.due(step) and self._written != step:
                    checkpoint(step)
                    self._written = step
                due = step in (0, total) or (check_every and step % check_every == 0)
                if check and due and self._checked != step:
                    self._stopped = not check(self)
                    self._checked = step
                    self.save()
                elif overdue and not self._guard.spikes:
                    self.save(wait=False)
                if self._stopped or step >= total:
                    break
                self._step()
                if self._guard.lost:
                    self._roll_back()
                progress(self.done_steps - step, f"loss {self.last_loss:.3f}")
            self._file.finish()

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Save where Ctrl-C or SIGTERM ends the block, on all ranks."""
        gc.collect()
        gc.freeze()  # the model and data are permanent: the collector need not walk them every few steps
        try:
            with self.ranks.holding_signals():
                try:
                    yield
                except KeyboardInterrupt:
                    self.save()
                    raise
        finally:
            gc.unfreeze()

    def _step(self) -> None:
        started = time.perf_counter()
        step, settings = self.done_steps, self.settings
        self.optimizer.discard()  # an interrupted step may have left some
        self.loads.reset()
        sums = _Sums()
        for batch in self._pace.timed(self.batches(step + self.skipped_batches)):
            for part in self.ranks.even(self._fitting(self.ranks.part(batch))):
                self._backward(part, sums)
        sums.loss, sums.weight, tokens = self.ranks.sum(sums.loss, sums.weight, sums.tokens)
        sums.tokens = int(tokens)
        self.loads.gather(self.ranks)
        rate = settings.optimizer.learning_rate * SCHEDULES[settings.schedule](
            step, settings.steps, settings.warmup, settings.decay, settings.decay_shape
        )
        with _all_or_nothing():
            loss = sums.loss / sums.weight if sums.weight else math.nan
            limit = self._guard.limit
            sound = not math.isfinite(loss) or self._guard.passes(loss)
            # Without weight there is nothing to learn, for instance where all rollouts earned the same.
            norm = self.optimizer.step(rate, sums.weight) if sums.weight and sound else 0.0
            if sums.weight and sound and math.isfinite(norm):
                self.loads.balance()
            self.done_steps += 1
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self.tokens += sums.tokens
            if not sums.weight:
                return
            if not sound:
                self.record(step=self.done_steps, tokens=self.tokens, skipped_loss=loss, limit=limit)
                say(f"step {self.done_steps} left out: its loss of {loss:.3f} is above {limit:.3f}")
                return
            self.last_loss = loss
            self._refuse_divergence(norm)
            if self.done_steps % settings.log_every == 0 or self.done_steps in (1, settings.steps):
                self.record(
                    step=self.done_steps,
                    tokens=self.tokens,
                    loss=self.last_loss,
                    learning_rate=rate,
                    gradient_norm=norm,
                    seconds=self.seconds,
                    saving_seconds=self.saving_seconds,
                    tokens_per_second=sums.tokens / elapsed,
                    **self.loads.shares(),
                    **{name: value / sums.weight for name, value in self.ranks.total(sums.metrics).items()},
                )

    def _fitting(self, batch: Any) -> list[Any]:
        """A micro-batch in parts that are not known to be too large for the memory."""
        rows, length = batch.tokens.shape
        if self._most_tokens is None or rows * length <= self._most_tokens:
            return [batch]
        return split_rows(batch, max(1, self._most_tokens // length))

    def _backward(self, batch: Any, sums: _Sums) -> None:
        """Add one micro-batch's gradients and numbers; what does not fit the memory is cut in two."""
        parts = self._fitting(batch)
        if len(parts) > 1:
            for part in parts:
                self._backward(part, sums)
            return
        rows, length = batch.tokens.shape
        try:
            loss = self.objective(self.model, batch)
            loss.total.backward()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            loss = None
        if loss is None:  # out here the error no longer holds on to what was computed
            self.optimizer.discard_micro_batch()
            self._most_tokens = rows // 2 * length
            if len(self._fitting(batch)) == 1:
                raise UserError(
                    f"the memory is not enough for {rows} row{'s' if rows > 1 else ''} of {length} tokens, the least "
                    "that goes through the model at once; use shorter rows or a smaller model"
                )
            if self.ranks.count > 1:  # which wait in the middle of a pass that this one cannot end
                write_json(self._smaller, self._most_tokens)
                raise UserError(
                    f"out of memory: micro-batches of at most {rows // 2} rows from the last save on, with the same result; "
                    "run the same command again (torchrun --max-restarts 9 does so by itself)"
                )
            say(f"out of memory: micro-batches of at most {rows // 2} rows from here on, with the same result")
            self._backward(batch, sums)
            return
        self.optimizer.collect()
        sums.loss, sums.weight = sums.loss + float(loss.total.detach()), sums.weight + loss.weight
        sums.tokens += int((batch.documents > 0).sum())
        for name, value in loss.metrics.items():
            sums.metrics[name] = sums.metrics.get(name, 0.0) + value

    def _refuse_divergence(self, norm: float) -> None:
        """Count updates skipped for a non-finite gradient; a run of them is not bad luck but divergence."""
        self._bad_steps = 0 if math.isfinite(norm) else self._bad_steps + 1
        if self._bad_steps == 1:
            say(f"step {self.done_steps} left out: its loss is {self.last_loss:.3f} and its gradient not finite")
        if self._bad_steps >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row (step {self.done_steps}); "
                "lower learning_rate and run again"
            )

    def _roll_back(self) -> None:
        """Go back to the last saved state and on with data that has not been read."""
        reached, loss = self.done_steps + self.skipped_batches, self.last_loss
        self._file.finish()
        self._rollbacks += 1
        if self._rollbacks > MAX_ROLLBACKS or self._file.newest() is None:
            raise UserError(
                f"the loss stays far above its level of {loss:.3f} (step {self.done_steps}), after {self._rollbacks - 1} "
                "returns to an earlier state; lower learning_rate and run again"
            )
        self._resume()
        self.skipped_batches = reached - self.done_steps
        self.record(step=self.done_steps, tokens=self.tokens, skipped_batches=self.skipped_batches)
        say(f"{MAX_SPIKES} loss spikes in a row: back to step {self.done_steps}, on with other data")

    def limit(self, tokens: int) -> None:
        """Let micro-batches be of at most ``tokens`` tokens; a run that has begun keeps to what it began with."""
        if not self.done_steps:
            self._most_tokens = min(tokens, self._most_tokens or tokens)

    def save(self, wait: bool = True) -> None:
        """Write the training state; it appears whole or not at all.

        Args:
            wait: until it is on disk; see :meth:`StateFile.write`.
        """
        begun = time.monotonic()
        self._file.write(self._state(), wait)
        self._saved_at = time.monotonic()
        self.saving_seconds += self._saved_at - begun
        self._pace.compare(self.ranks, next(self.model.parameters()).device.type)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.done_steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "last_loss": self.last_loss,
            "checked": self._checked,
            "written": self._written,
            "stopped": self._stopped,
            "skipped_batches": self.skipped_batches,
            "most_tokens": self._most_tokens,
            "guard": self._guard.state(),
            "notes": self.notes,
            "optimizer": self.optimizer.state(),
            "experts": self.loads.state(),
        }

    def _resume(self) -> None:
        try:
            state = self._file.read(self._state())
            self.optimizer.restore(state["optimizer"])
            self.loads.restore(state["experts"])
            self.done_steps, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.last_loss, self.notes = state["last_loss"], state["notes"]
            self._checked, self._written, self._stopped = state["checked"], state["written"], state["stopped"]
            self.skipped_batches = state["skipped_batches"]
            limits = [limit for limit in (self._most_tokens, state["most_tokens"]) if limit is not None]
            self._most_tokens = min(limits, default=None)
            self._guard.restore(state["guard"])
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{self._file.newest()} is damaged or of another model ({reason}); delete it to train this stage from its "
                "beginning"
            ) from error
