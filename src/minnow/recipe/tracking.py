"""Metrics to a tracker beside ``metrics.jsonl``: tensorboard, trackio or wandb, imported only where a recipe asks."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from minnow.errors import UserError

TrackerName = Literal["tensorboard", "trackio", "wandb"]


def check_tracker(name: TrackerName) -> None:
    """Raise UserError where the tracker's package is not installed; imports nothing."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"track: {name} needs the package {name}; install it with: pip install {name}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by slash-joined name; what is no number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found


@contextmanager
def tracked(
    name: TrackerName | None, stage_folder: Path, config: Mapping[str, Any]
) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What takes a stage's records while the context lasts, at their ``step``; None without a tracker.

    ``tensorboard`` writes to ``<run folder>/tensorboard/<stage>-<id>``; for the others the project is the run folder's
    name and the run ``<stage>-<id>``, with their own settings from the environment (``WANDB_MODE``,
    ``TRACKIO_SPACE_ID``, ...). A stage that goes on goes on with its run; one that starts afresh has another id.
    """
    if name is None:
        yield None
        return
    begun = (stage_folder / "inputs.json").stat().st_mtime_ns  # written when a stage starts afresh, and kept
    digest = hashlib.sha256(f"{stage_folder.resolve()} {begun}".encode()).hexdigest()
    label = f"{stage_folder.name}-{digest[:8]}"
    tracker = (_Tensorboard if name == "tensorboard" else _Run)(name, stage_folder.parent, label, dict(config))

    def log(record: dict[str, Any]) -> None:
        if "step" in record:
            tracker.log(record["step"], flat({name: value for name, value in record.items() if name != "step"}))

    try:
        yield log
    finally:
        tracker.close()


class _Tensorboard:
    def __init__(self, name: str, run_folder: Path, label: str, config: dict[str, Any]) -> None:
        self._folder = run_folder / name / label
        self._writer: Any = None

    def log(self, step: int, numbers: dict[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed stage makes its last steps again: what was logged of them is to be forgotten.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=10)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Run:
    """A run of trackio or of wandb, which share their interface."""

    def __init__(self, name: str, run_folder: Path, label: str, config: dict[str, Any]) -> None:
        own = {"id": label, "dir": str(run_folder)} if name == "wandb" else {}
        project = run_folder.resolve().name
        module = importlib.import_module(name)
        self._run = module.init(project=project, name=label, config=config, resume="allow", **own)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
