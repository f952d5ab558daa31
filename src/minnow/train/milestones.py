"""Checkpoints of a run that goes on: the newest ones, and some for good."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minnow.errors import UserError


@dataclass(frozen=True)
class CheckpointSettings:
    """Hugging Face folders written while training, beside the state that a run resumes from.

    Attributes:
        every: steps between two; 0 writes none before the end.
        keep: how many of the newest stay.
        milestone_every: those at its multiples stay whatever comes after; 0 for none.
        average: the run ends with the mean of the weights of so many of the newest (arXiv 2209.14981); 0 with its own.
    """

    every: int = 0
    keep: int = 2
    milestone_every: int = 0
    average: int = 0

    def __post_init__(self) -> None:
        if min(self.every, self.milestone_every, self.average) < 0 or self.keep < 1:
            raise UserError("checkpoints: every, milestone_every and average are 0 or more and keep is at least 1")
        if self.average and (not self.every or self.average > self.keep):
            raise UserError(
                f"checkpoints: an average of {self.average} needs as many to be kept; set every, and keep to at least "
                f"{self.average}"
            )
        if self.milestone_every and (not self.every or self.milestone_every % self.every):
            raise UserError(
                f"checkpoints: milestone_every is {self.milestone_every} and every {self.every}; make it a multiple"
            )

    def due(self, step: int) -> bool:
        """Whether there is to be a checkpoint after ``step`` steps."""
        return bool(self.every and step and step % self.every == 0)


def newest(folder: Path) -> list[tuple[int, Path]]:
    """``(step, checkpoint folder)`` of what :func:`write_checkpoint` left in ``folder``, oldest first."""
    found = [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*") if path.is_dir()]
    return sorted(found)


def write_checkpoint(write: Callable[[Path], None], folder: Path, step: int, settings: CheckpointSettings) -> None:
    """Write the checkpoint of ``step`` below ``folder``, then remove those that need not stay.

    Args:
        write: makes one checkpoint folder, whole or not at all.
    """
    write(folder / f"step-{step:07}")
    others = [(number, path) for number, path in newest(folder) if number <= step]
    for number, path in others[: -settings.keep]:
        if not settings.milestone_every or number % settings.milestone_every:
            shutil.rmtree(path)
