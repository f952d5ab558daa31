"""Run a recipe's stages in order, keeping the finished ones, and continue after any stop."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from minnow import progress
from minnow.errors import UserError
from minnow.files import write_json
from minnow.machine import machine, peak_rss_bytes, release_memory
from minnow.recipe import folder as folders
from minnow.recipe.context import Metrics, StageContext
from minnow.recipe.mapping import nearest, to_plain
from minnow.recipe.registry import StageKind, stage_kinds
from minnow.recipe.schema import Recipe, StageSpec
from minnow.recipe.tracking import check_tracker, tracked
from minnow.recipe.versions import versions
from minnow.train.ranks import Ranks


class Stopped(KeyboardInterrupt):
    """The user or the system stopped the run; running the recipe again continues it.

    Attributes:
        exit_code: 128 plus the number of the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Decision:
    """What is to happen to one stage: ``keep``, ``resume`` or ``run``; ``reason`` in words for the user."""

    action: str
    reason: str
    inputs: dict[str, Any] | None = None
    done: dict[str, Any] | None = None


def decide(
    recipe: Recipe, spec: StageSpec, kind: StageKind, finished: Mapping[str, Mapping[str, Any]], forced: bool = False
) -> Decision:
    """Compare a stage's folder with what the recipe asks for; writes nothing.

    Args:
        finished: ``done.json`` of the stages that are finished and up to date, by name.
        forced: treat the stage as if it had never run.
    """
    waiting = [need for need in spec.needs if need not in finished]
    if waiting:
        return Decision("run", f"runs after {', '.join(waiting)}")
    inputs = folders.stage_inputs(recipe, spec, kind, {need: finished[need] for need in spec.needs})
    stage_folder = recipe.run_folder / spec.name
    before = folders.read_record(stage_folder / "inputs.json")
    done = folders.read_record(stage_folder / "done.json")
    if forced or before is None or before["hash"] is None:
        return Decision("run", "runs", inputs)
    if before["hash"] != inputs["hash"]:
        changed = folders.changed_keys(before, inputs)
        return Decision(
            "run", f"{', '.join(changed[:3])}{', …' if len(changed) > 3 else ''} changed, runs again", inputs
        )
    if done is None or done["hash"] != inputs["hash"]:
        state = stage_folder / "state"
        if state.is_dir() and any(state.iterdir()):
            return Decision("resume", "continues where it stopped", inputs)
        return Decision("run", "was stopped before its first checkpoint, starts again", inputs)
    missing = folders.missing_output(stage_folder, done)
    if missing:
        return Decision("run", f"{missing} is gone or was changed, runs again", inputs)
    age = time.time() - datetime.fromisoformat(done["finished"]).timestamp()
    return Decision("keep", f"done {progress.duration(age)} ago, kept", inputs, done)


def survey(recipe: Recipe, restart_from: str | None = None, only: str | None = None) -> list[dict[str, str]]:
    """What :func:`run` would do with each stage, as ``{"stage", "kind", "action", "reason"}``; writes nothing."""
    kinds = stage_kinds()
    forced, chosen = _selection(recipe, restart_from, only)
    finished: dict[str, Mapping[str, Any]] = {}
    rows = []
    for name, spec in recipe.stages.items():
        decision = decide(recipe, spec, kinds[spec.kind], finished, name in forced)
        if decision.done is not None:
            finished[name] = decision.done
        elif name not in chosen:
            decision = Decision("skip", "left out by --only")
        rows.append({"stage": name, "kind": spec.kind, "action": decision.action, "reason": decision.reason})
    return rows


def run(
    recipe: Recipe, restart_from: str | None = None, only: str | None = None, ranks: Ranks | None = None
) -> dict[str, Any]:
    """Run every stage that is not finished, in order; returns what ``summary.json`` holds.

    Args:
        restart_from: run this stage and every later one again even if finished.
        only: run no other stage than this; the stages it reads must be finished.
        ranks: this process, the first, and those that :func:`follow` it.

    Raises:
        UserError: bad input, a full disk, or a run folder in use; what finished before stays whole.
        Stopped: Ctrl-C or SIGTERM; the same run continues.
    """
    kinds = stage_kinds()
    forced, chosen = _selection(recipe, restart_from, only)
    if recipe.track is not None:
        check_tracker(recipe.track)
    _set_threads(recipe)
    with folders.locked(recipe.run_folder), _signals() as received:
        folders.sweep(recipe.run_folder, recipe.stages)
        for name in forced:
            folders.forget(recipe.run_folder / name)
        ranks = ranks or Ranks()
        summary = _Run(recipe, kinds, chosen, received, restart_from is not None, ranks).all_stages()
        ranks.call(None)
        return summary


def _selection(recipe: Recipe, restart_from: str | None, only: str | None) -> tuple[set[str], set[str]]:
    """Names of the stages that must run even if finished, and of those that may run."""
    names = list(recipe.stages)
    for flag, name in (("--from", restart_from), ("--only", only)):
        if name is not None and name not in recipe.stages:
            raise UserError(f"{flag} {name}: the recipe has no such stage; {nearest(name, names)}")
    chosen = set(names) if only is None else {only}
    forced = set() if restart_from is None else set(names[names.index(restart_from) :])
    return forced & chosen, chosen


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt and list those received; elsewhere than in the main thread,
    leave signals as they are."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(recipe: Recipe, ranks: Ranks) -> None:
    """Take part, as a rank beside the first, in the stages that it calls the others to.

    Raises:
        Stopped: as :func:`run`.
    """
    kinds = stage_kinds()
    _set_threads(recipe)
    with _signals() as received:
        try:
            for name in ranks.calls():
                spec = recipe.stages[name]
                kinds[spec.kind].run(_context(recipe, spec, Metrics(None), ranks))
                if received:
                    raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise Stopped("stopped", 128 + (received[-1] if received else signal.SIGINT)) from error


def _set_threads(recipe: Recipe) -> None:
    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)


def _context(recipe: Recipe, spec: StageSpec, metrics: Metrics, ranks: Ranks) -> StageContext[Any]:
    return StageContext(
        folder=recipe.run_folder / spec.name,
        settings=spec.settings,
        recipe=recipe,
        inputs={need: recipe.run_folder / need for need in spec.needs},
        seed=folders.stage_seed(recipe.seed, spec.name),
        metrics=metrics,
        ranks=ranks,
    )


@dataclass
class _Run:
    """One pass over a recipe's stages and its record on disk."""

    recipe: Recipe
    kinds: Mapping[str, StageKind]
    chosen: set[str]
    received: list[int]
    restarted: bool
    ranks: Ranks

    def __post_init__(self) -> None:
        self.folder = self.recipe.run_folder
        self.finished: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, dict[str, Any]] = {
            name: {"stage": name, "kind": spec.kind, "status": "waiting", "seconds": None, "peak_rss_bytes": None}
            for name, spec in self.recipe.stages.items()
        }
        self.started, self.clock = datetime.now(UTC), time.monotonic()

    def all_stages(self) -> dict[str, Any]:
        record = {"recipe": self.recipe.as_dict(), "versions": dict(versions()), "machine": machine()}
        write_json(self.folder / "recipe.json", {**record, "started": self.started.isoformat()})
        current: str | None = None
        try:
            for spec in self.recipe.stages.values():
                current = spec.name
                self._one_stage(spec)
        except KeyboardInterrupt as error:
            self._give_up(current, "stopped")
            again = "the same command without --from" if self.restarted else "the same command"
            number = self.received[-1] if self.received else signal.SIGINT
            raise Stopped(f"stopped in {current or 'the set-up'}; run {again} to continue", 128 + number) from error
        except BaseException:
            self._give_up(current, "failed")
            raise
        return self._write_summary("finished")

    def _one_stage(self, spec: StageSpec) -> None:
        kind = self.kinds[spec.kind]
        decision = decide(self.recipe, spec, kind, self.finished)
        stage_folder = self.folder / spec.name
        if decision.done is not None:
            # Left behind when the process was killed between done.json and the removal of the state.
            shutil.rmtree(stage_folder / "state", ignore_errors=True)
            self._finish(spec.name, "kept", decision.done)
        elif spec.name not in self.chosen:
            self.rows[spec.name]["status"] = "left out"
            return
        elif decision.inputs is None:
            raise UserError(f"--only {spec.name}: {decision.reason}, which must be finished first; run without --only")
        progress.say(f"{spec.name}: {decision.reason}")
        if decision.done is None and decision.inputs is not None:
            self._execute(spec, kind, decision, decision.inputs)

    def _execute(self, spec: StageSpec, kind: StageKind, decision: Decision, inputs: dict[str, Any]) -> None:
        stage_folder = self.folder / spec.name
        if decision.action == "run":
            folders.start_afresh(stage_folder, inputs, spec.kind, spec.settings)
        release_memory()
        began = time.monotonic()
        if kind.together:
            self.ranks.call(spec.name)
        with tracked(self.recipe.track, stage_folder, to_plain(spec.settings)) as log:
            metrics = Metrics(stage_folder / "metrics.jsonl", log)
            ranks = self.ranks if kind.together else self.ranks.alone()
            result = kind.run(_context(self.recipe, spec, metrics, ranks))
        if self.received:
            # The stage took the interrupt for its own and returned early: its result is not the whole one.
            raise KeyboardInterrupt
        metrics.sync()
        write_json(stage_folder / "result.json", result)
        done = {
            "hash": inputs["hash"],
            "outputs": folders.list_outputs(stage_folder, kind.publishes),
            "finished": datetime.now(UTC).isoformat(),
            "seconds": round(time.monotonic() - began, 3),
            "peak_rss_bytes": peak_rss_bytes(),
            "resumed": decision.action == "resume",
        }
        write_json(stage_folder / "done.json", done)
        shutil.rmtree(stage_folder / "state", ignore_errors=True)
        self._finish(spec.name, "ran", done)
        progress.say(f"{spec.name}: finished in {progress.duration(done['seconds'])}")
        self._write_summary("running")

    def _finish(self, name: str, status: str, done: dict[str, Any]) -> None:
        self.finished[name] = done
        numbers = {key: done[key] for key in ("seconds", "peak_rss_bytes", "finished", "resumed")}
        self.rows[name].update(status=status, **numbers)

    def _give_up(self, stage: str | None, status: str) -> None:
        if stage is not None:
            self.rows[stage]["status"] = status
        # The summary is a courtesy here: a full disk must not hide the error that ended the run.
        with contextlib.suppress(UserError, OSError):
            self._write_summary(status)

    def _write_summary(self, status: str) -> dict[str, Any]:
        report = self.folder / "report.html"
        summary = {
            "name": self.recipe.name,
            "run_folder": str(self.folder),
            "status": status,
            "started": self.started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "seconds": round(time.monotonic() - self.clock, 3),
            "peak_rss_bytes": peak_rss_bytes(),
            "stages": list(self.rows.values()),
            "report": str(report) if report.exists() else None,
        }
        write_json(self.folder / "summary.json", summary)
        return summary
